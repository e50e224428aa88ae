import Foundation

/// Two file handles: what can be read from the first goes to the guest, what the guest writes goes to the second.
open class VZFileHandleSerialPortAttachment: VZSerialPortAttachment {
    public let fileHandleForReading: FileHandle?
    public let fileHandleForWriting: FileHandle?

    public init(fileHandleForReading: FileHandle?, fileHandleForWriting: FileHandle?) {
        self.fileHandleForReading = fileHandleForReading
        self.fileHandleForWriting = fileHandleForWriting
        super.init()
    }
    override func makeEndpoint() throws -> (input: Int32, output: Int32) {
        let input = try Self.duplicate(fileHandleForReading, "reading")
        do {
            return (input, try Self.duplicate(fileHandleForWriting, "writing"))
        } catch {
            if input >= 0 { close(input) }
            throw error
        }
    }
    private static func duplicate(_ handle: FileHandle?, _ purpose: String) throws -> Int32 {
        guard let handle else { return -1 }
        let copy = fcntl(handle.fileDescriptor, F_DUPFD_CLOEXEC, 3)
        guard copy >= 0 else { throw VZError.configuration("The file handle for \(purpose) of a serial port attachment is not open.") }
        return copy
    }
}
