import Glibc
import HostNetwork
import LinuxSystem
import Synchronization

/// A socket device: streams between programs of the guest and of the host. VIRTIO 1.2 § 5.10. The guest is context 3, the host 2.
///
/// Each stream is a socket of the host's, one end of which is the device's: the guest's data goes straight from its memory into
/// the socket, on the sending thread, which also answers; what comes back is read straight into its buffers, on the receiving
/// thread.
package final class VsockDevice: VirtioDevice {
    private static let queueSize: UInt16 = 256
    /// The driver fills it with pages, and each goes round before it is used again: twice as many do not stay in the host's caches.
    private static let receiveSize: UInt16 = 128
    /// So many packets that tell of room are taken before any is answered.
    private static let mostUpdates = 32

    private struct Active {
        var sender: QueueWorker?
        var receiver: HostThread?
    }
    private let host: VsockHost
    /// Only touched under `lock`.
    private nonisolated(unsafe) let table: VsockTable
    private let lock = Mutex(())
    private let active = Mutex(Active())
    private let stopping = Atomic<Bool>(false)
    private let isActive = Atomic<Bool>(false)
    private let wake: EventFD
    private let receiveEvent: EventFD
    private let sendEvent: EventFD
    /// Makes the receiving thread look up.
    private let receiverWake: EventFD

    private final class Back: Sendable {
        let device = Mutex<WeakDevice>(WeakDevice())
        struct WeakDevice { weak var value: VsockDevice? }
    }

    package init(host: VsockHost) throws(SystemError) {
        self.host = host
        let (wake, back) = (try EventFD(), Back())
        self.wake = wake
        table = try VsockTable(host, wake: wake) { id, accepts in
            back.device.withLock { $0.value }?.with { $0.answer(id, accepts) }
        }
        receiveEvent = try EventFD()
        sendEvent = try EventFD()
        receiverWake = try EventFD()
        back.device.withLock { $0.value = self }
        host.attach(self)
    }

    package var deviceType: UInt16 { 19 }
    package var pciClass: UInt32 { 0x028000 }
    package var features: UInt64 { 1 }  // streams
    package var queueSizes: [UInt16] { [Self.receiveSize, Self.queueSize, 16] }
    package var restorableQueueSizes: [UInt16] { [Self.queueSize, Self.queueSize, 16] }
    package func queueEvent(_ index: Int) -> EventFD? {
        switch index {
        case 0: receiveEvent
        case 1: sendEvent
        default: nil
        }
    }
    package func configRead(_ offset: Int, size: Int) -> UInt64 { configField([3, 0, 0, 0, 0, 0, 0, 0], offset, size) }

    /// Runs `body` on the table, then tells whoever waits what came of it.
    private func with<R: Sendable, E>(_ body: (VsockTable) throws(E) -> R) throws(E) -> R {
        nonisolated(unsafe) var news: [() -> Void] = []
        let (result, mustWake) = try lock.withLock { _ throws(E) in
            let result = try body(table)
            news = table.takeNews()
            return (result, table.takeWake())
        }
        if mustWake { wake.signal() }
        for item in news { item() }
        return result
    }

    // MARK: the host's wishes

    func connect(_ port: UInt32, _ completion: @escaping @Sendable (Result<VsockStream, SystemError>) -> Void) {
        guard isActive.load(ordering: .acquiring), let (mine, theirs) = UnixSocket.pair() else {
            return completion(.failure(SystemError("connect", errno: ECONNRESET)))
        }
        let source = Mutex<UInt32>(0)
        let hostPort = with { table in
            let hostPort = table.request(port, fd: mine, now: monotonicNanoseconds()) { succeeded in
                if succeeded {
                    completion(.success(VsockStream(sourcePort: source.withLock { $0 }, destinationPort: port, descriptor: theirs)))
                } else {
                    close(theirs)
                    completion(.failure(SystemError("connect", errno: ECONNRESET)))
                }
            }
            if let hostPort { source.withLock { $0 = hostPort } }
            return hostPort
        }
        if hostPort != nil { return }
        close(mine)
        close(theirs)
        completion(.failure(SystemError("connect", errno: EAGAIN)))
    }
    func connect(_ port: UInt32, socket: Int32) {
        let isTaken = isActive.load(ordering: .acquiring) && with { $0.request(port, fd: socket, now: monotonicNanoseconds(), nil) } != nil
        if !isTaken { close(socket) }
    }

    // MARK: life

    package func activate(_ activation: VirtioActivation) {
        stopping.store(false, ordering: .releasing)
        guard let receive = activation.queues[0], let send = activation.queues[1] else { return }
        // Streams do not survive a restored machine: the driver is told to forget them. One that began before it has would be
        // forgotten, too.
        let mustTell = activation.image != nil && activation.queues[2].map { tellReset($0) } == true
        isActive.store(!mustTell, ordering: .releasing)
        do throws(SystemError) {
            nonisolated(unsafe) let receiver = VsockReceiver(receive)  // only touched under `lock`
            let sender = try makeSender(send, receiver, activation)
            active.withLock { $0.sender = sender }
            let thread = try activation.gate.thread(name: "vz-vsock-receive", wake: receiverWake) { [unowned self] member in
                do throws(QueueError) { try receiveLoop(receiver, member) } catch { activation.needsReset() }
            }
            active.withLock { $0.receiver = thread }
        } catch { activation.needsReset() }
    }
    package func reset() {
        isActive.store(false, ordering: .releasing)
        stopping.store(true, ordering: .releasing)
        wake.signal()
        receiveEvent.signal()
        let old = active.withLock { active in
            defer { active = Active() }
            return active
        }
        old.sender?.stop()
        old.receiver?.join()
        with { $0.forgetAll() }
    }

    private func makeSender(_ queue: Virtqueue, _ receiver: VsockReceiver, _ activation: VirtioActivation) throws(SystemError) -> QueueWorker {
        nonisolated(unsafe) let chain = DescriptorChain(capacity: Int(Self.queueSize))  // only the worker touches these
        nonisolated(unsafe) let pieces = GuestPieces(capacity: 1024)
        nonisolated(unsafe) let receiver = receiver  // see `activate`
        return try QueueWorker(name: "vz-vsock-send", queue: queue, event: sendEvent, gate: activation.gate) { [weak self] queue in
            do throws(QueueError) {
                while try queue.pop(chain) {
                    guard let self else { return false }
                    try self.with { table throws(QueueError) in
                        // Linux tells of room for each few packets it has taken, all at once: answered one by one, it would idle meanwhile.
                        var more = Self.mostUpdates
                        while Self.take(chain, pieces, table), more > 0 {
                            Self.complete(chain, queue)
                            more -= 1
                            guard try queue.pop(chain) else { return try table.answer(receiver) }
                        }
                        Self.complete(chain, queue)
                        try table.answer(receiver)
                    }
                }
                return true
            } catch {
                activation.needsReset()
                return false
            }
        }
    }
    /// True when the guest's packet only told of room.
    private static func take(_ chain: DescriptorChain, _ pieces: GuestPieces, _ table: VsockTable) -> Bool {
        guard let packet = VsockPacket(chain) else { return false }
        pieces.clear()
        pieces.append(chain.readable, skip: VsockPacket.size)
        table.input(packet, pieces)
        return packet.operation == VsockPacket.Operation.creditUpdate
    }
    private static func complete(_ chain: DescriptorChain, _ queue: Virtqueue) {
        queue.complete(chain, written: 0)
        // That its packet was taken means nothing to the driver until the queue is full.
        if queue.untold >= Int(queue.size) / 4 { queue.notify() }
    }
    /// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, in a buffer of the event queue (§ 5.10.6.7); false for a driver that gave none. When
    /// the driver has done as it is told, it gives the buffer back to the queue.
    private func tellReset(_ queue: Virtqueue) -> Bool {
        let chain = DescriptorChain(capacity: 16)
        guard (try? queue.pop(chain)) == true else { return false }
        queue.notifyOfMore()
        var event: UInt32 = 0
        _ = chain.write(at: 0, from: &event, count: 4)
        queue.complete(chain, written: 4)
        queue.notify()
        return true
    }
    package func queueNotified(_ index: Int) { if index == 2 { isActive.store(true, ordering: .releasing) } }
    private func receiveLoop(_ receiver: VsockReceiver, _ member: DeviceGate.Member) throws(QueueError) {
        var waiting = AdaptiveWait()
        while !stopping.load(ordering: .acquiring) {
            member.checkpoint()
            switch try with({ table throws(QueueError) in try table.output(receiver) }) {
            case .done: break
            case .needsBuffers:
                if !with({ _ in receiver.queue.enableNotifications() }) { wait(&waiting, receiveEvent.fileDescriptor) }
                receiveEvent.drain()
            case .nothing: wait(&waiting, table.epoll)
            }
        }
    }
    /// Until the descriptor is readable, or a connection has waited long enough for the guest.
    private func wait(_ waiting: inout AdaptiveWait, _ descriptor: Int32) {
        let (deadline, isStarving) = with { ($0.deadline, $0.isStarving) }
        let now = monotonicNanoseconds()
        var entries = (pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: receiverWake.fileDescriptor, events: Int16(POLLIN), revents: 0))
        let milliseconds = deadline == 0 ? -1 : deadline <= now ? 0 : Int32(clamping: (deadline - now) / 1_000_000 + 1)
        withUnsafeMutableBytes(of: &entries) { $0.bindMemory(to: pollfd.self).baseAddress.map { waiting.poll($0, 2, milliseconds: milliseconds, looks: !isStarving) } }
        if entries.1.revents != 0 { receiverWake.drain() }
        if deadline != 0 { with { $0.expire(monotonicNanoseconds()) } }
    }
}
