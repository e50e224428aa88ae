import Foundation
import HostNetwork

/// A network device on a connected datagram socket, Unix or UDP: one Ethernet frame a datagram, nothing around it.
open class VZFileHandleNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    public let fileHandle: FileHandle
    /// Largest packet in bytes, without the Ethernet header: 1500 (the default) to 65535. The peer's receive buffer should be
    /// at least twice its send buffer.
    open var maximumTransmissionUnit = 1500

    /// - Parameter fileHandle: of a connected datagram socket; anything else makes the configuration invalid.
    public init(fileHandle: FileHandle) {
        self.fileHandle = fileHandle
        super.init()
    }

    override func validate() throws {
        guard (1500...65535).contains(maximumTransmissionUnit) else {
            throw VZError.configuration("The maximum transmission unit of a network device attachment must be between 1500 and 65535.")
        }
        if let problem = DatagramSocket.problem(fileHandle.fileDescriptor) {
            throw VZError.configuration("The file handle of a network device attachment is invalid: \(problem).")
        }
    }
    override func makeBackend() throws -> any NetworkBackend {
        try DatagramSocket(fileHandle.fileDescriptor, maximumTransmissionUnit: maximumTransmissionUnit)
    }
}
