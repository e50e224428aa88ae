import Glibc
import HostNetwork
import LinuxSystem
import Synchronization

/// An Ethernet card. VIRTIO 1.2 § 5.1. For each queue pair, one thread sends and another receives.
package final class NetworkDevice: VirtioDevice {
    enum Feature {
        static let checksum: UInt64 = 1 << 0
        static let guestChecksum: UInt64 = 1 << 1
        static let mtu: UInt64 = 1 << 3
        static let mac: UInt64 = 1 << 5
        static let guestTSO4: UInt64 = 1 << 7
        static let guestTSO6: UInt64 = 1 << 8
        static let hostTSO4: UInt64 = 1 << 11
        static let hostTSO6: UInt64 = 1 << 12
        static let mergeableBuffers: UInt64 = 1 << 15
        static let status: UInt64 = 1 << 16
        static let controlQueue: UInt64 = 1 << 17
        static let receiveModes: UInt64 = 1 << 18
        static let announce: UInt64 = 1 << 21
        static let multiQueue: UInt64 = 1 << 22
        static let setAddress: UInt64 = 1 << 23

        static let offloads = checksum | guestChecksum | guestTSO4 | guestTSO6 | hostTSO4 | hostTSO6
        static let control = controlQueue | receiveModes | announce | setAddress
    }
    /// virtio_net_hdr with num_buffers. § 5.1.6.
    static let headerSize = PacketHeader.size
    /// Ethernet header with a VLAN tag, and the largest IP packet.
    static let largestFrame = 18 + 65535
    static let queueSize = 256

    private struct State {
        var backend: (any NetworkBackend)?
        var activation: VirtioActivation?
        var senders: [QueueWorker] = []
        var receivers: [NetworkReceiver] = []
        var control: QueueWorker?
        /// Queue pairs that the driver uses.
        var activePairs = 1
        var linkBounce = LinkBounce.none
        /// The driver is to tell its neighbours where it is. § 5.1.6.5.4.
        var wantsAnnouncement = false
    }
    /// The link is down until the driver has seen that it is.
    private enum LinkBounce { case none, down }
    private let address: [UInt8]
    private let state: Mutex<State>
    /// By queue.
    private let queueEvents: [EventFD]
    private let pairs: Int
    /// Where several queue pairs share a lane, one sends at a time.
    private let sending = Mutex(())
    private let stopping = Atomic<Bool>(false)
    private let maximumTransmissionUnit: UInt16
    /// A backend failed, with the reason; the cable is out.
    private let failed: @Sendable (any NetworkBackend, String) -> Void

    /// - Parameters:
    ///   - address: six bytes.
    ///   - backend: nil for a card whose cable is out.
    ///   - pairs: queue pairs that a driver may use.
    package init(
        address: [UInt8], backend: (any NetworkBackend)?, pairs: Int = 1, failed: @escaping @Sendable (any NetworkBackend, String) -> Void = { _, _ in }
    ) throws(SystemError) {
        self.address = address
        self.failed = failed
        maximumTransmissionUnit = UInt16(clamping: backend?.maximumTransmissionUnit ?? 1500)
        state = Mutex(State(backend: backend))
        self.pairs = pairs
        var events: [EventFD] = []
        for _ in 0...2 * pairs { events.append(try EventFD()) }
        queueEvents = events
        backend?.attached(address, queuePairs: pairs)
    }

    package var deviceType: UInt16 { 1 }
    package var pciClass: UInt32 { 0x020000 }
    package var features: UInt64 {
        Feature.mac | Feature.mtu | Feature.status | Feature.mergeableBuffers | Feature.offloads | Feature.control | (pairs > 1 ? Feature.multiQueue : 0)
    }
    /// Receive and send queues by turns, and the control queue; third of all where the driver knows one pair only (§ 5.1.2).
    package var queueSizes: [UInt16] { [UInt16](repeating: UInt16(Self.queueSize), count: 2 * pairs) + [64] }
    package func queueEvent(_ index: Int) -> EventFD? { queueEvents[index] }
    package func configRead(_ offset: Int, size: Int) -> UInt64 {
        let (status, isSeen, activation) = state.withLock { state in
            let isSeen = state.linkBounce == .down && offset <= 6 && offset + size > 6
            let isUp = state.backend != nil && state.linkBounce == .none
            if isSeen { state.linkBounce = .none }
            return ((isUp ? 1 : 0) | (state.wantsAnnouncement ? 2 : 0) as UInt8, isSeen, state.activation)
        }
        if isSeen { activation?.configurationChanged() }
        let mtu = maximumTransmissionUnit
        return configField(address + [status, 0, UInt8(pairs), 0, UInt8(mtu & 0xFF), UInt8(mtu >> 8)], offset, size)
    }

    /// Another cable, or none: the guest sees the link go down and up.
    package func connect(_ backend: (any NetworkBackend)?) {
        backend?.attached(address, queuePairs: pairs)
        let (activation, receivers) = state.withLock { state in
            state.backend = backend
            backend?.use(lanes: state.activePairs)
            state.wantsAnnouncement = backend != nil && (state.activation?.features ?? 0) & Feature.announce != 0
            return (state.activation, state.receivers)
        }
        for receiver in receivers { receiver.wake() }
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
        state.withLock { state in
            state.activation = activation
            guard let image = activation.image else { return }
            state.activePairs = Int(clamping: min(max(image.numbers["activePairs"] ?? 1, 1), UInt64(self.pairs)))
            state.backend?.use(lanes: state.activePairs)
            // The guest is somewhere else now: its link goes down and up, so that it asks for its address again.
            state.linkBounce = .down
        }
        let isMultiQueue = activation.features & Feature.multiQueue != 0
        let pairs = isMultiQueue ? pairs : 1
        do throws(SystemError) {
            for pair in 0..<pairs { try startPair(pair, activation) }
            if let control = activation.queues[2 * pairs] {
                let worker = try makeController(control, queueEvents[2 * pairs], activation, pairs)
                state.withLock { $0.control = worker }
            }
        } catch { activation.needsReset() }
        // What the guest had open went with the machine that it was saved on.
        if let connections = activation.image?.lists["connections"] { state.withLock { $0.backend }?.end(connections) }
    }
    /// A driver need not set up pairs that it does not use.
    private func startPair(_ pair: Int, _ activation: VirtioActivation) throws(SystemError) {
        guard let receive = activation.queues[2 * pair], let send = activation.queues[2 * pair + 1] else { return }
        let sender = try makeSender(send, pair, activation)
        state.withLock { $0.senders.append(sender) }
        let receiver = try NetworkReceiver(
            queue: receive, event: queueEvents[2 * pair], gate: activation.gate, mergeable: activation.features & Feature.mergeableBuffers != 0,
            accepted: Self.accepted(activation.features), backend: { [weak self] in self?.receivingLane(pair) },
            lost: { [weak self] in self?.loseCurrent($0) }, needsReset: activation.needsReset)
        state.withLock { $0.receivers.append(receiver) }
    }
    private func receivingLane(_ pair: Int) -> (any NetworkBackend)? {
        let (backend, active) = state.withLock { ($0.backend, $0.activePairs) }
        guard let backend, pair < active, pair < backend.laneCount else { return nil }
        return backend.lane(pair)
    }
    private func loseCurrent(_ reason: String) {
        if let backend = state.withLock({ $0.backend }) { lose(backend, reason) }
    }
    package func reset() {
        stopping.store(true, ordering: .releasing)
        let old = state.withLock { state in
            defer { state = State(backend: state.backend) }
            return state
        }
        for sender in old.senders { sender.stop() }
        for receiver in old.receivers { receiver.stop() }
        old.control?.stop()
        old.backend?.driverLeft()
    }
    private static func accepted(_ features: UInt64) -> AcceptedOffloads {
        guard features & Feature.guestChecksum != 0 else { return [] }
        var accepted: AcceptedOffloads = .checksum
        if features & Feature.guestTSO4 != 0 { accepted.insert(.tcp4) }
        if features & Feature.guestTSO6 != 0 { accepted.insert(.tcp6) }
        return accepted
    }

    package func makeImage() -> DeviceImage {
        var image = DeviceImage()
        let (activePairs, backend) = state.withLock { ($0.activePairs, $0.backend) }
        image.numbers["activePairs"] = UInt64(activePairs)
        image.lists["connections"] = backend?.openConnections
        return image
    }

    // MARK: control

    /// § 5.1.6.5. Every frame goes to the guest, so that modes and address filters need nothing done.
    private func makeController(
        _ queue: Virtqueue, _ event: EventFD, _ activation: VirtioActivation, _ pairs: Int
    ) throws(SystemError) -> QueueWorker {
        nonisolated(unsafe) let chain = DescriptorChain(capacity: 8)  // only the worker touches it
        return try QueueWorker(name: "vz-net-control", queue: queue, event: event, gate: activation.gate) { [weak self] queue in
            do throws(QueueError) {
                while try queue.pop(chain) {
                    var acknowledgement = self?.control(chain, pairs) == true ? 0 : 1 as UInt8
                    _ = chain.write(at: 0, from: &acknowledgement, count: 1)
                    queue.complete(chain, written: 1)
                }
                queue.notify()
                return true
            } catch {
                activation.needsReset()
                return false
            }
        }
    }
    private func control(_ chain: DescriptorChain, _ pairs: Int) -> Bool {
        switch chain.load(at: 0, as: UInt8.self) {
        case 0, 1: return true  // receive modes, address tables
        case 3:  // the announcement has been made
            let activation = state.withLock { state in
                state.wantsAnnouncement = false
                return state.activation
            }
            activation?.configurationChanged()
            return true
        case 4:  // how many queue pairs the driver uses. § 5.1.6.5.6
            guard chain.load(at: 1, as: UInt8.self) == 0, let count: UInt16 = chain.load(at: 2), (1...pairs).contains(Int(count)) else { return false }
            let receivers = state.withLock { state in
                state.activePairs = Int(count)
                state.backend?.use(lanes: Int(count))
                return state.receivers
            }
            for receiver in receivers { receiver.wake() }
            return true
        default: return false
        }
    }

    // MARK: sending

    private func makeSender(_ queue: Virtqueue, _ pair: Int, _ activation: VirtioActivation) throws(SystemError) -> QueueWorker {
        nonisolated(unsafe) let chain = DescriptorChain(capacity: Self.queueSize)  // only the worker touches these
        nonisolated(unsafe) let pieces = GuestPieces(capacity: Self.queueSize)
        nonisolated(unsafe) let finisher = FrameFinisher()
        return try QueueWorker(name: "vz-net-send", queue: queue, event: queueEvents[2 * pair + 1], gate: activation.gate) { [weak self] queue in
            do throws(QueueError) {
                guard let backend = self?.state.withLock({ $0.backend }) else { return try Self.dropAll(queue, chain) }
                while try queue.pop(chain) {
                    guard let self, self.transmit(chain, pieces, finisher, backend, pair) else { return false }
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
    /// False when the device is to stop.
    private func transmit(_ chain: DescriptorChain, _ pieces: GuestPieces, _ finisher: FrameFinisher, _ backend: any NetworkBackend, _ pair: Int) -> Bool {
        pieces.clear()
        pieces.append(chain.readable, skip: Self.headerSize)
        let size = pieces.total
        guard size > 0, size <= Self.largestFrame, let offload = Self.header(chain, size) else { return true }
        let lane = pair < backend.laneCount ? backend.lane(pair) : backend
        let isShared = pairs > 1 && backend.laneCount < pairs
        func give(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult {
            isShared ? sending.withLock { _ in send(pieces, count, offload, lane) } : send(pieces, count, offload, lane)
        }
        let result =
            offload.isNone || backend.handlesOffloads
            ? give(pieces.base, pieces.count, offload) : finisher.finish(pieces.base, pieces.count, offload) { give($0, $1, FrameOffload()) }
        if case .failed(let reason) = result { lose(backend, reason) }
        return result != .wouldBlock
    }
    private static func header(_ chain: DescriptorChain, _ size: Int) -> FrameOffload? {
        withUnsafeTemporaryAllocation(byteCount: headerSize, alignment: 8) { bytes in
            guard let base = bytes.baseAddress, chain.read(at: 0, into: base, count: headerSize) else { return nil }
            return PacketHeader.read(base, frame: size)
        }
    }
    /// A receiver that is slow gets a tenth of a second, then frames are lost. `wouldBlock`: the device is to stop.
    private func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload, _ backend: any NetworkBackend) -> FrameResult {
        for _ in 0..<10 {
            let result = backend.send(pieces, count, offload)
            guard result == .wouldBlock else { return result }
            if stopping.load(ordering: .acquiring) { return .wouldBlock }
            var entry = pollfd(fd: backend.descriptor, events: Int16(POLLOUT), revents: 0)
            _ = poll(&entry, 1, 10)
        }
        return stopping.load(ordering: .acquiring) ? .wouldBlock : .lost
    }
}
