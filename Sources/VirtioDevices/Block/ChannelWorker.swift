import DiskStorage
import Glibc
import LinuxSystem
import Synchronization

/// A thread that serves one block queue through a channel: requests go out as they come, and are given back as they end.
final class ChannelWorker: Sendable {
    private let stopping = Atomic<Bool>(false)
    private let waking: EventFD
    private let thread = Mutex<HostThread?>(nil)

    /// - Parameter event: signalled by the driver's kicks.
    init(
        name: String, queue: Virtqueue, event: EventFD, gate: DeviceGate, backend: any ChannelBackend, identifier: [UInt8], rangesPerRequest: Int,
        needsReset: @escaping @Sendable () -> Void
    ) throws(SystemError) {
        let waking = try EventFD()
        self.waking = waking
        let made = try gate.thread(name: name, wake: event) { [unowned self] member in
            let work = Work(queue, backend, identifier, rangesPerRequest, stop: waking.fileDescriptor)
            do throws(QueueError) {
                while !stopping.load(ordering: .acquiring) { try work.turn(event, waking, member) }
            } catch { needsReset() }
            work.close()
        }
        thread.withLock { $0 = made }
    }
    func stop() {
        stopping.store(true, ordering: .releasing)
        waking.signal()
        thread.withLock { $0 }?.join()
    }

    /// What belongs to the thread.
    private final class Work {
        private static let capacity = Int(BlockDevice.queueSize)
        /// Requests are taken for so many nanoseconds before the driver hears of those that have ended; but until there are so many
        /// requests, or so many bytes, even if that takes longer: telling it costs more than a small request.
        private static let patience: UInt64 = 50_000
        private static let batch = (requests: 32, bytes: 256 << 10)
        private let queue: Virtqueue
        private let backend: any ChannelBackend
        private let channel: any BlockChannel
        private let identifier: [UInt8]
        private let rangesPerRequest: Int
        /// Of a list of ranges, by tag, the one that is being dealt with; -1 for other requests.
        private var ranges = [Int](repeating: -1, count: capacity)
        /// By tag; allocated when first used.
        private var chains: [DescriptorChain?] = [DescriptorChain?](repeating: nil, count: capacity)
        private var waiting = AdaptiveWait()
        private var schedule = GatheringSchedule()
        /// Requests since the thread was woken.
        private var taken = 0
        private var free = Array(0..<capacity)
        private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: capacity)

        init(_ queue: Virtqueue, _ backend: any ChannelBackend, _ identifier: [UInt8], _ rangesPerRequest: Int, stop: Int32) {
            self.queue = queue
            self.backend = backend
            self.identifier = identifier
            self.rangesPerRequest = rangesPerRequest
            channel = backend.makeChannel(capacity: Self.capacity, stop: stop)
        }
        deinit { vectors.deallocate() }
        func close() { channel.close() }

        func turn(_ event: EventFD, _ waking: EventFD, _ member: DeviceGate.Member) throws(QueueError) {
            // At a closed gate nothing is begun, and what is under way ends first.
            if free.count == Self.capacity { member.checkpoint() }
            var isMoving = member.isClosed ? false : try takeRequests()
            channel.advance { tag, result in
                ended(tag, result)
                isMoving = true
            }
            queue.notify()
            if isMoving || !member.isClosed && queue.enableNotifications() && !free.isEmpty { return }
            if member.isClosed, free.count == Self.capacity { return }
            schedule.willSleep(after: taken)
            taken = 0
            let (descriptor, events, milliseconds) = channel.wait
            var entries = (
                pollfd(fd: event.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: waking.fileDescriptor, events: Int16(POLLIN), revents: 0),
                pollfd(fd: descriptor, events: events, revents: 0)
            )
            withUnsafeMutableBytes(of: &entries) { $0.bindMemory(to: pollfd.self).baseAddress.map { waiting.poll($0, 3, milliseconds: milliseconds) } }
            if entries.0.revents != 0 { event.drain() }
        }
        private func takeRequests() throws(QueueError) -> Bool {
            var took = 0
            var bytes = 0
            let begin = monotonicNanoseconds()
            while let tag = free.last {
                if took >= Self.batch.requests || bytes >= Self.batch.bytes, monotonicNanoseconds() &- begin > Self.patience { break }
                let chain = chains[tag] ?? DescriptorChain(capacity: Self.capacity)
                chains[tag] = chain
                guard try queue.pop(chain) else { break }
                free.removeLast()
                took += 1
                bytes += chain.readableCount + chain.writableCount
                submit(tag, chain)
            }
            taken += took
            return took > 0
        }
        private func submit(_ tag: Int, _ chain: DescriptorChain) {
            // The last writable byte is the status; a chain without one can be told nothing.
            guard chain.writableCount >= 1 else { return giveBack(tag, chain, written: 0) }
            switch BlockRequest(chain, backend) {
            case .transfer(let operation):
                channel.submit(operation, vectors, BlockRequest.vectors(operation, chain, into: vectors), tag: tag)
            case .ranges(let zero):
                ranges[tag] = 0
                submitRange(tag, chain, zero)
            case .identify: giveBack(tag, chain, written: BlockRequest.identify(chain, identifier))
            case .refused(let status): give(tag, status)
            }
        }
        /// The ranges of a list go out one after the other.
        private func submitRange(_ tag: Int, _ chain: DescriptorChain, _ zero: Bool) {
            guard BlockRequest.rangeCount(chain, limit: rangesPerRequest) != nil else { return give(tag, BlockRequest.Status.ioError) }
            switch BlockRequest.range(chain, ranges[tag], zero: zero, backend) {
            case .success(let operation): channel.submit(operation, vectors, 0, tag: tag)
            case .failure(let refusal): give(tag, refusal.status)
            }
        }
        private func ended(_ tag: Int, _ result: Int32) {
            guard result == 0, ranges[tag] >= 0, let chain = chains[tag], case .ranges(let zero) = BlockRequest(chain, backend) else {
                return give(tag, result == 0 ? BlockRequest.Status.ok : BlockRequest.Status.ioError)
            }
            ranges[tag] += 1
            // The driver may have changed its list meanwhile.
            guard let count = BlockRequest.rangeCount(chain, limit: rangesPerRequest), ranges[tag] < count else { return give(tag, BlockRequest.Status.ok) }
            submitRange(tag, chain, zero)
        }
        private func give(_ tag: Int, _ status: UInt8) {
            guard let chain = chains[tag] else { return }
            giveBack(tag, chain, written: BlockRequest.finish(chain, status))
        }
        private func giveBack(_ tag: Int, _ chain: DescriptorChain, written: Int) {
            queue.complete(chain, written: written)
            ranges[tag] = -1
            free.append(tag)
        }
    }
}
