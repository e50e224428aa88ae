import Foundation
import VirtioDevices

/// A stream to a program of the guest. It owns its descriptor; duplicates of that keep the stream alive.
open class VZVirtioSocketConnection: NSObject {
    /// The guest's port for the guest's connections; a random one of the host's otherwise.
    public let sourcePort: UInt32
    public let destinationPort: UInt32
    /// A connected stream socket; -1 once closed.
    open private(set) var fileDescriptor: Int32

    init(_ stream: VsockStream) {
        sourcePort = stream.sourcePort
        destinationPort = stream.destinationPort
        fileDescriptor = stream.descriptor
        super.init()
    }
    deinit { close() }

    /// Closes the descriptor; the stream ends unless there are duplicates.
    open func close() {
        guard fileDescriptor >= 0 else { return }
        Foundation.close(fileDescriptor)
        fileDescriptor = -1
    }
}
