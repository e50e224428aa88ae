import CLinux
import Glibc
import HostNetwork
import LinuxSystem
import Synchronization

/// One network device's place on a `UserNetwork`.
///
/// What the guest sends is handled on the sending thread, down to the host's sockets; what comes for it is read from the
/// sockets on the receiving thread, which waits on an epoll descriptor. One lock keeps the two apart.
package final class UserNetworkPort: NetworkBackend {
    private let network: UserNetwork
    private let number: UInt8
    /// Only touched under `lock`.
    private nonisolated(unsafe) let stack: Stack
    private let lock = Mutex(())
    /// Only used by the sending thread.
    private nonisolated(unsafe) let finisher = FrameFinisher()
    private let wake: EventFD
    private let address = Atomic<UInt64>(0)
    package let descriptor: Int32
    package let maximumTransmissionUnit = 1500
    package let handlesOffloads = true

    init(_ network: UserNetwork, number: UInt8) throws {
        self.network = network
        self.number = number
        let wake = try EventFD()
        let stack = try Stack(network.options, guest: IPAddress(192, 168, 64, number), wake: wake)
        self.wake = wake
        descriptor = stack.epoll
        self.stack = stack
    }
    deinit { network.release(number) }
    private func locked<R: Sendable>(_ body: (Stack) throws -> R) rethrows -> R { try lock.withLock { _ in try body(stack) } }

    /// The device's Ethernet address.
    var hardware: UInt64 { address.load(ordering: .relaxed) }
    /// The address that the guest is given.
    package var guestAddress: IPAddress { IPAddress(192, 168, 64, number) }

    package func attached(_ address: [UInt8], queuePairs: Int) {
        let value = address.prefix(6).reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
        self.address.store(value, ordering: .relaxed)
        locked { $0.hardware = value }
    }
    package func driverLeft() { locked { $0.forgetGuest() } }

    package var openConnections: [[UInt8]] { locked { $0.connections.values.filter { $0.phase == .open }.map { LostConnection($0).bytes } } }
    package func end(_ connections: [[UInt8]]) {
        let mustWake = locked { stack in
            for connection in connections.compactMap(LostConnection.init(_:)) { stack.emitReset(connection) }
            return stack.takeWake()
        }
        if mustWake { wake.signal() }
    }

    /// Carries a port of the host to one of the guest; ends with `remove` or with the port. Throws what the host says.
    package func add(_ forward: ForwardedPort) throws { try locked { try $0.add(forward) } }
    package func remove(_ forward: ForwardedPort) { locked { $0.remove(forward) } }

    package func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult {
        let frame = MemoryPieces(pieces: pieces, count: count)
        let size = frame.total
        let (target, mustWake) = locked { stack in (stack.input(frame, size), stack.takeWake()) }
        if mustWake { wake.signal() }
        if let target { pass(frame, offload, to: target) }
        return .done(size)
    }
    package func receive(
        _ pieces: UnsafeMutablePointer<iovec>, _ count: Int, _ accepted: AcceptedOffloads, _ offload: inout FrameOffload
    ) -> FrameResult {
        let room = MemoryPieces(pieces: pieces, count: count)
        let (result, made) = locked { $0.output(room, accepted) }
        offload = made
        return result
    }

    /// To other guests of the network, as it would go over a wire.
    private func pass(_ frame: MemoryPieces, _ offload: FrameOffload, to target: UInt64) {
        let neighbours = network.neighbours(of: self, for: target)
        guard !neighbours.isEmpty else { return }
        func deliver(_ pieces: UnsafePointer<iovec>, _ count: Int) -> FrameResult {
            let frame = MemoryPieces(pieces: pieces, count: count)
            let size = frame.total
            guard size <= 18 + 65535 else { return .lost }
            let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, initialized in
                if let base = buffer.baseAddress { initialized = frame.copy(from: 0, limit: size, to: base) }
            }
            for neighbour in neighbours { neighbour.deliver(bytes) }
            return .done(size)
        }
        if offload.isNone {
            _ = deliver(frame.pieces, frame.count)
        } else {
            _ = finisher.finish(frame.pieces, frame.count, offload, deliver)
        }
    }
    private func deliver(_ bytes: [UInt8]) {
        let mustWake = locked { stack in
            stack.emit(bytes)
            return stack.takeWake()
        }
        if mustWake { wake.signal() }
    }
}
