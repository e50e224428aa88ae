import CLinux
import GuestMemory
import LinuxSystem
import Synchronization

/// A memory balloon with statistics and free-page reporting. VIRTIO 1.2 § 5.5. What the guest gives goes back to the host at once: its pages
/// are punched out of the memory file, and read as zeroes when the guest takes them again.
///
/// Reported pages come by and by, as Linux sees fit (about a quarter of a GiB every two seconds); `BalloonPulse` is quicker where there
/// are many. Free page hinting would name them all at once, but is of no use here: Linux takes hinted pages back when it is short of
/// memory, without waiting for the device, which must therefore not empty them.
package final class BalloonDevice: VirtioDevice {
    private enum Feature {
        static let statistics: UInt64 = 1 << 1
        static let deflateOnOOM: UInt64 = 1 << 2
        static let reporting: UInt64 = 1 << 5
    }
    private static let pageSize: UInt64 = 4096
    private static let queueSize: UInt16 = 128
    /// Page numbers that one chain may hold; Linux sends 256.
    private static let maximumPages = 4096
    /// Entries of a buffer of statistics that are looked at; the specification names ten.
    private static let maximumStatistics = 32
    /// What a queue carries. Linux numbers only the queues whose features were negotiated.
    private enum Role { case inflate, deflate, statistics, report }

    private struct State {
        var target: UInt32 = 0
        var actual: UInt32 = 0
        var pulse = BalloonPulse()
        /// Those who wait for fresh statistics.
        var waiting: [@Sendable (GuestMemoryStatistics?) -> Void] = []
        var activation: VirtioActivation?
        var thread: HostThread?
    }
    private let memory: GuestMemory
    private let state = Mutex(State())
    private let event: EventFD
    private let stopping = Atomic<Bool>(false)

    package init(memory: GuestMemory) throws(SystemError) {
        self.memory = memory
        event = try EventFD()
    }

    package var deviceType: UInt16 { 5 }
    package var pciClass: UInt32 { 0x00FF00 }
    package var features: UInt64 { Feature.statistics | Feature.deflateOnOOM | Feature.reporting }
    package var queueSizes: [UInt16] { [Self.queueSize, Self.queueSize, Self.queueSize, Self.queueSize] }
    package func queueEvent(_ index: Int) -> EventFD? { event }
    package func configRead(_ offset: Int, size: Int) -> UInt64 {
        let (target, actual) = state.withLock { (UInt32(clamping: UInt64($0.target) + UInt64($0.pulse.pages)), $0.actual) }
        let bytes = [target, actual].flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(8 * $0)) } }
        return configField(bytes, offset, size)
    }
    package func configWrite(_ offset: Int, _ value: UInt64, size: Int) {
        guard offset == 4, size == 4 else { return }
        let isAnswer = state.withLock { state in
            state.actual = UInt32(truncatingIfNeeded: value)
            return state.pulse.isAnswered(given: state.actual, target: state.target)
        }
        if isAnswer { event.signal() }
    }

    /// How many pages of 4 KiB the guest is to give.
    package func setTarget(pages: UInt32) {
        let activation = state.withLock { state in
            state.target = pages
            return state.activation
        }
        activation?.configurationChanged()
    }
    /// How many it says it gave.
    package var actualPages: UInt32 { state.withLock { $0.actual } }

    /// What the guest says of its memory, asked anew; nil when no driver that tells is there. `done` comes on a thread of the
    /// device's, or at once; a guest that never answers is never heard.
    package func readStatistics(_ done: @escaping @Sendable (GuestMemoryStatistics?) -> Void) {
        let asks = state.withLock { state in
            guard let activation = state.activation, state.thread != nil, activation.features & Feature.statistics != 0 else { return false }
            // A guest that does not answer makes nobody hold more than this.
            guard state.waiting.count < 64 else { return false }
            state.waiting.append(done)
            return true
        }
        if asks { event.signal() } else { done(nil) }
    }

    package func activate(_ activation: VirtioActivation) {
        stopping.store(false, ordering: .releasing)
        let made = try? activation.gate.thread(name: "vz-balloon", wake: event) { [unowned self] in serve(activation, $0) }
        state.withLock { state in
            state.actual = UInt32(clamping: activation.image?.numbers["actual"] ?? 0)
            state.activation = activation
            state.thread = made
        }
        if made == nil { activation.needsReset() }
    }
    package func reset() {
        stopping.store(true, ordering: .releasing)
        event.signal()
        let old = state.withLock { state in
            defer { state = State(target: state.target) }
            return state
        }
        old.thread?.join()
        for done in old.waiting { done(nil) }
    }

    package func makeImage() -> DeviceImage {
        var image = DeviceImage()
        image.numbers["actual"] = UInt64(actualPages)
        return image
    }

    // MARK: worker

    private static func roles(_ features: UInt64) -> [Role] {
        var roles: [Role] = [.inflate, .deflate]
        if features & Feature.statistics != 0 { roles.append(.statistics) }
        if features & Feature.reporting != 0 { roles.append(.report) }
        return roles
    }
    private func serve(_ activation: VirtioActivation, _ member: DeviceGate.Member) {
        let chain = DescriptorChain(capacity: Int(Self.queueSize))
        let report = StatisticsBuffer()
        var pages: [UInt32] = []
        pages.reserveCapacity(Self.maximumPages)
        let queues = zip(Self.roles(activation.features), activation.queues).compactMap { role, queue in queue.map { (role, $0) } }
        while !stopping.load(ordering: .acquiring) {
            member.checkpoint()
            do throws(QueueError) {
                var (more, hasReported) = (false, false)
                for (role, queue) in queues {
                    if role == .statistics {
                        try serveStatistics(queue, report)
                    } else {
                        while !stopping.load(ordering: .acquiring), try queue.pop(chain) {
                            switch role {
                            case .inflate: inflate(chain, &pages)
                            case .report:
                                self.report(chain)
                                hasReported = true
                            default: break  // pages that are taken back come by themselves
                            }
                            queue.complete(chain, written: 0)
                        }
                    }
                    queue.notify()
                    // The one buffer of statistics stays here; a driver that gives more of them is not looked at for it.
                    if queue.enableNotifications(), role != .statistics || !report.isHeld { more = true }
                }
                if hasReported, state.withLock({ $0.pulse.asks(now: monotonicNanoseconds()) }) { readStatistics { [weak self] in self?.decidePulse($0) } }
                advancePulse()
                if !more { event.wait(milliseconds: state.withLock { $0.pulse.pages > 0 } ? Int32(BalloonPulse.limit / 1_000_000) : -1) }
            } catch {
                activation.needsReset()
                return
            }
        }
    }

    private func decidePulse(_ statistics: GuestMemoryStatistics?) {
        let held = memory.heldBytes
        let activation = state.withLock { state in
            let changes = state.pulse.decide(
                free: statistics?.values[GuestMemoryStatistics.Tag.free], held: held, size: memory.size, given: UInt64(state.actual) * Self.pageSize,
                now: monotonicNanoseconds())
            return changes ? state.activation : nil
        }
        activation?.configurationChanged()
    }
    private func advancePulse() {
        let activation = state.withLock { state in
            state.pulse.advance(given: state.actual, target: state.target, now: monotonicNanoseconds()) ? state.activation : nil
        }
        activation?.configurationChanged()
    }

    /// The driver's one buffer of statistics, which the device keeps until it wants them afresh. § 5.5.6.3.
    private final class StatisticsBuffer {
        let chain = DescriptorChain(capacity: 4)
        var isHeld = false
        /// Whether it was given back for fresh numbers.
        var isAsked = false
    }
    private func serveStatistics(_ queue: Virtqueue, _ buffer: StatisticsBuffer) throws(QueueError) {
        while !buffer.isHeld, !stopping.load(ordering: .acquiring), try queue.pop(buffer.chain) {
            buffer.isHeld = true
            let statistics = Self.statistics(buffer.chain)
            let waiting = state.withLock { state in
                // The numbers that a driver gives with its first buffer are fresh, too.
                defer { state.waiting = [] }
                return state.waiting
            }
            buffer.isAsked = false
            for done in waiting { done(statistics) }
        }
        guard buffer.isHeld, !buffer.isAsked, state.withLock({ !$0.waiting.isEmpty }) else { return }
        (buffer.isHeld, buffer.isAsked) = (false, true)
        queue.complete(buffer.chain, written: 0)
    }
    /// Pairs of a tag (16 bits) and a value (64 bits), packed.
    private static func statistics(_ chain: DescriptorChain) -> GuestMemoryStatistics {
        var statistics = GuestMemoryStatistics()
        for index in 0..<min(chain.readableCount / 10, maximumStatistics) {
            guard let tag: UInt16 = chain.load(at: index * 10), let value: UInt64 = chain.load(at: index * 10 + 2) else { break }
            statistics.values[tag] = value
        }
        return statistics
    }
    /// Page numbers, 32 bits each, in the order in which the guest's allocator gave them: mostly runs, often downward.
    private func inflate(_ chain: DescriptorChain, _ pages: inout [UInt32]) {
        pages.removeAll(keepingCapacity: true)
        for index in 0..<min(chain.readableCount / 4, Self.maximumPages) {
            if let page: UInt32 = chain.load(at: index * 4) { pages.append(page) }
        }
        pages.sort()
        var start = 0
        while start < pages.count {
            var end = start + 1
            while end < pages.count, pages[end] &- pages[start] == UInt32(end - start) { end += 1 }
            memory.discard(UInt64(pages[start]) * Self.pageSize, Int(Self.pageSize) * (end - start))
            start = end
        }
    }
    /// Free ranges of whole pages. § 5.5.6.7.
    private func report(_ chain: DescriptorChain) {
        for buffer in chain.writable { memory.discard(buffer.address, buffer.count) }
    }
}
