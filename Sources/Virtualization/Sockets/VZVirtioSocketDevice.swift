import Foundation
import VirtioDevices

/// The socket device of a machine. On the machine's queue.
open class VZVirtioSocketDevice: VZSocketDevice {
    private var listeners: [UInt32: VZVirtioSocketListener] = [:]
    private let queue: DispatchQueue
    private let checkQueue: (StaticString) -> Void
    private(set) var host: VsockHost!

    /// - Parameter checkQueue: stops the program when called elsewhere than on the machine's queue.
    init(queue: DispatchQueue, checkQueue: @escaping (StaticString) -> Void) {
        self.queue = queue
        self.checkQueue = checkQueue
        super.init()
        let this = Unchecked(WeakDevice(self))
        host = VsockHost { stream, answer in
            queue.async {
                let connection = VZVirtioSocketConnection(stream)
                answer(this.value.device?.accepts(connection) ?? false)
            }
        }
    }
    private struct WeakDevice {
        weak var device: VZVirtioSocketDevice?
        init(_ device: VZVirtioSocketDevice) { self.device = device }
    }

    /// Takes the guest's connections to a port, in place of any listener there. One listener may serve many ports.
    open func setSocketListener(_ listener: VZVirtioSocketListener, forPort port: UInt32) {
        checkQueue("VZVirtioSocketDevice.setSocketListener")
        listeners[port] = listener
        host.setListening(port, true)
    }
    /// The guest's connections to the port are reset from now on.
    open func removeSocketListener(forPort port: UInt32) {
        checkQueue("VZVirtioSocketDevice.removeSocketListener")
        listeners[port] = nil
        host.setListening(port, false)
    }
    private func accepts(_ connection: VZVirtioSocketConnection) -> Bool {
        guard let listener = listeners[connection.destinationPort] else { return false }
        return listener.delegate?.listener(listener, shouldAcceptNewConnection: connection, from: self) ?? false
    }

    /// Connects to a port that a program of the guest listens at; with nobody there it fails with `POSIXError.ECONNRESET`. The
    /// handler comes on the machine's queue.
    open func connect(toPort port: UInt32, completionHandler: @escaping (Result<VZVirtioSocketConnection, any Error>) -> Void) {
        checkQueue("VZVirtioSocketDevice.connect")
        let (queue, handler) = (queue, Unchecked(completionHandler))
        host.connect(port) { result in
            queue.async {
                switch result {
                case .success(let stream): handler.value(.success(VZVirtioSocketConnection(stream)))
                case .failure(let error): handler.value(.failure(POSIXError(POSIXErrorCode(rawValue: error.errno) ?? .ECONNRESET)))
                }
            }
        }
    }
    public nonisolated(nonsending) func connect(toPort port: UInt32) async throws -> VZVirtioSocketConnection {
        let connection = try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Unchecked<VZVirtioSocketConnection>, any Error>) in
            let this = Unchecked(self)
            queue.async {
                this.value.connect(toPort: port) { result in continuation.resume(with: result.map { Unchecked($0) }) }
            }
        }
        return connection.value
    }
}
