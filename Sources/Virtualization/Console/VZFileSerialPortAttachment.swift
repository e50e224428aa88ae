import Foundation

/// Guest output into a file; no input.
open class VZFileSerialPortAttachment: VZSerialPortAttachment {
    public let url: URL
    public let append: Bool
    private let descriptor: Int32

    /// Opens the file now, at its end or emptied.
    public init(url: URL, append shouldAppend: Bool) throws {
        self.url = url
        append = shouldAppend
        descriptor = open(url.path, O_WRONLY | O_CREAT | O_CLOEXEC | (shouldAppend ? O_APPEND : O_TRUNC), 0o644)
        guard descriptor >= 0 else {
            let code = errno
            throw NSError(
                domain: NSPOSIXErrorDomain, code: Int(code),
                userInfo: [
                    NSLocalizedDescriptionKey: "Cannot open \(url.path) for the serial port: \(String(cString: strerror(code))).",
                    NSFilePathErrorKey: url.path,
                ])
        }
        super.init()
    }
    deinit { if descriptor >= 0 { close(descriptor) } }
    override func makeEndpoint() throws -> (input: Int32, output: Int32) { (-1, fcntl(descriptor, F_DUPFD_CLOEXEC, 3)) }
}
