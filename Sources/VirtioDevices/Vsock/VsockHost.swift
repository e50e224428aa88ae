import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// One end of a stream to the guest.
package struct VsockStream: Sendable {
    package let sourcePort: UInt32
    package let destinationPort: UInt32
    /// Belongs to whoever gets the stream.
    package let descriptor: Int32
}

/// The host's side of a machine's socket device: who listens, and who wants to connect. It outlives the guest's reboots.
/// Any thread.
package final class VsockHost: Sendable {
    private struct State {
        var listening: Set<UInt32> = []
        var sockets: [UInt32: String] = [:]
        weak var device: VsockDevice?
    }
    private let state = Mutex(State())
    /// The guest has connected to a port that is listened at: what to do with the stream, to be answered once, later or at once.
    private let offered: @Sendable (VsockStream, _ answer: @escaping @Sendable (Bool) -> Void) -> Void

    package init(offered: @escaping @Sendable (VsockStream, _ answer: @escaping @Sendable (Bool) -> Void) -> Void) { self.offered = offered }

    package func setListening(_ port: UInt32, _ isListening: Bool) {
        state.withLock { if isListening { $0.listening.insert(port) } else { $0.listening.remove(port) } }
    }
    /// Connections of the guest to `port` lead to a Unix socket; nil ends that.
    package func setSocket(_ port: UInt32, path: String?) { state.withLock { $0.sockets[port] = path } }
    /// Connects to a port of the guest. `completion` comes on any thread; ECONNRESET when nobody listens there.
    package func connect(_ port: UInt32, _ completion: @escaping @Sendable (Result<VsockStream, SystemError>) -> Void) {
        guard let device = state.withLock({ $0.device }) else { return completion(.failure(SystemError("connect", errno: ECONNRESET))) }
        device.connect(port, completion)
    }
    /// Connects a host's stream socket, which the device takes, to a port of the guest.
    package func connect(_ port: UInt32, socket: Int32) {
        guard let device = state.withLock({ $0.device }) else {
            close(socket)
            return
        }
        device.connect(port, socket: socket)
    }

    func attach(_ device: VsockDevice) { state.withLock { $0.device = device } }
    enum Answer { case nobody, listener, socket(String) }
    func whoListens(_ port: UInt32) -> Answer {
        state.withLock { state in
            if state.listening.contains(port) { return .listener }
            return state.sockets[port].map { .socket($0) } ?? .nobody
        }
    }
    func offer(_ stream: VsockStream, _ answer: @escaping @Sendable (Bool) -> Void) { offered(stream, answer) }
}
