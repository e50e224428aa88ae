import Glibc
import HostNetwork
import LinuxSystem
import Synchronization

/// An Ethernet card. VIRTIO 1.2 § 5.1. One thread sends, another receives.
package final class NetworkDevice: VirtioDevice {
    enum Feature {
        static let mtu: UInt64 = 1 << 3
        static let mac: UInt64 = 1 << 5
        static let mergeableBuffers: UInt64 = 1 << 15
        static let status: UInt64 = 1 << 16
    }
    /// virtio_net_hdr with num_buffers. § 5.1.6.
    static let headerSize = 12
    /// Ethernet header with a VLAN tag, and the largest IP packet.
    static let largestFrame = 18 + 65535
    static let queueSize = 256

    private struct State {
        var backend: (any NetworkBackend)?
        var activation: VirtioActivation?
        var sender: QueueWorker?
        var receiver: NetworkReceiver?
    }
    private let address: [UInt8]
    private let state: Mutex<State>
    private let sendEvent: EventFD
    private let receiveEvent: EventFD
    private let stopping = Atomic<Bool>(false)
    private let maximumTransmissionUnit: UInt16
    /// A backend failed, with the reason; the cable is out.
    private let failed: @Sendable (any NetworkBackend, String) -> Void

    /// - Parameters:
    ///   - address: six bytes.
    ///   - backend: nil for a card whose cable is out.
    package init(
        address: [UInt8], backend: (any NetworkBackend)?, failed: @escaping @Sendable (any NetworkBackend, String) -> Void = { _, _ in }
    ) throws(SystemError) {
        self.address = address
        self.failed = failed
        maximumTransmissionUnit = UInt16(clamping: backend?.maximumTransmissionUnit ?? 1500)
        state = Mutex(State(backend: backend))
        sendEvent = try EventFD()
        receiveEvent = try EventFD()
    }

    package var deviceType: UInt16 { 1 }
    package var pciClass: UInt32 { 0x020000 }
    package var features: UInt64 { Feature.mac | Feature.mtu | Feature.status | Feature.mergeableBuffers }
    package var queueSizes: [UInt16] { [UInt16(Self.queueSize), UInt16(Self.queueSize)] }
    package func queueEvent(_ index: Int) -> EventFD? { index == 0 ? receiveEvent : sendEvent }
    package func configRead(_ offset: Int, size: Int) -> UInt64 {
        let isUp: UInt8 = state.withLock { $0.backend != nil } ? 1 : 0
        let mtu = maximumTransmissionUnit
        return configField(address + [isUp, 0, 1, 0, UInt8(mtu & 0xFF), UInt8(mtu >> 8)], offset, size)
    }

    /// Another cable, or none: the guest sees the link go down and up.
    package func connect(_ backend: (any NetworkBackend)?) {
        let (activation, receiver) = state.withLock { state in
            state.backend = backend
            return (state.activation, state.receiver)
        }
        receiver?.wake()
        activation?.configurationChanged()
    }
    private func lose(_ backend: any NetworkBackend, _ reason: String) {
        let (isCurrent, activation) = state.withLock { state in
            let isCurrent = state.backend === backend
            if isCurrent { state.backend = nil }
            return (isCurrent, state.activation)
        }
        guard isCurrent else { return }
        activation?.configurationChanged()
        failed(backend, reason)
    }

    package func activate(_ activation: VirtioActivation) {
        stopping.store(false, ordering: .releasing)
        state.withLock { $0.activation = activation }
        guard let receive = activation.queues[0], let send = activation.queues[1] else { return }
        do throws(SystemError) {
            let sender = try makeSender(send, activation)
            state.withLock { $0.sender = sender }
            let receiver = try NetworkReceiver(
                queue: receive, event: receiveEvent, mergeable: activation.features & Feature.mergeableBuffers != 0,
                backend: { [weak self] in self?.state.withLock { $0.backend } }, lost: { [weak self] in self?.lose($0, $1) },
                needsReset: activation.needsReset)
            state.withLock { $0.receiver = receiver }
        } catch { activation.needsReset() }
    }
    package func reset() {
        stopping.store(true, ordering: .releasing)
        let (sender, receiver) = state.withLock { state in
            defer { (state.sender, state.receiver, state.activation) = (nil, nil, nil) }
            return (state.sender, state.receiver)
        }
        sender?.stop()
        receiver?.stop()
    }

    // MARK: sending

    private func makeSender(_ queue: Virtqueue, _ activation: VirtioActivation) throws(SystemError) -> QueueWorker {
        nonisolated(unsafe) let chain = DescriptorChain(capacity: Self.queueSize)  // only the worker touches it
        nonisolated(unsafe) let pieces = FramePieces(capacity: Self.queueSize)
        return try QueueWorker(name: "vz-net-send", queue: queue, event: sendEvent) { [weak self] queue in
            do throws(QueueError) {
                guard let backend = self?.state.withLock({ $0.backend }) else { return try Self.dropAll(queue, chain) }
                while try queue.pop(chain) {
                    guard let self, self.transmit(chain, pieces, backend) else { return false }
                    queue.complete(chain, written: 0)
                    if !queue.hasAvailable { queue.notify() }
                }
                queue.notify()
                return true
            } catch {
                activation.needsReset()
                return false
            }
        }
    }
    /// The cable is out.
    private static func dropAll(_ queue: Virtqueue, _ chain: DescriptorChain) throws(QueueError) -> Bool {
        while try queue.pop(chain) { queue.complete(chain, written: 0) }
        queue.notify()
        return true
    }
    /// False when the device is to stop. A receiver that is slow gets a tenth of a second, then frames are lost.
    private func transmit(_ chain: DescriptorChain, _ pieces: FramePieces, _ backend: any NetworkBackend) -> Bool {
        let size = pieces.fill(chain.readable, skip: Self.headerSize)
        guard size > 0, size <= Self.largestFrame else { return true }
        for _ in 0..<10 {
            switch backend.send(pieces.base, pieces.count) {
            case .done, .lost: return true
            case .failed(let reason):
                lose(backend, reason)
                return true
            case .wouldBlock:
                if stopping.load(ordering: .acquiring) { return false }
                var entry = pollfd(fd: backend.descriptor, events: Int16(POLLOUT), revents: 0)
                _ = poll(&entry, 1, 10)
            }
        }
        return !stopping.load(ordering: .acquiring)
    }
}

/// The parts of a frame in guest memory, for one system call.
final class FramePieces {
    let base: UnsafeMutablePointer<iovec>
    private(set) var count = 0
    private let capacity: Int

    init(capacity: Int) {
        self.capacity = capacity
        base = .allocate(capacity: capacity)
    }
    deinit { base.deallocate() }

    /// Buffers without their first `skip` bytes. Returns how many bytes that are.
    func fill(_ buffers: [GuestBuffer], skip: Int) -> Int {
        var (skip, total) = (skip, 0)
        count = 0
        for buffer in buffers {
            if skip >= buffer.count {
                skip -= buffer.count
                continue
            }
            guard count < capacity else { return total }
            base[count] = iovec(iov_base: buffer.pointer + skip, iov_len: buffer.count - skip)
            count += 1
            total += buffer.count - skip
            skip = 0
        }
        return total
    }
}
