import CLinux
import GuestMemory
import LinuxSystem
import Synchronization

/// A memory balloon with free-page reporting. VIRTIO 1.2 § 5.5. What the guest gives goes back to the host at once: its pages
/// are punched out of the memory file, and read as zeroes when the guest takes them again.
///
/// Reported pages come by and by, as Linux sees fit (about a quarter of a GiB every two seconds). Free page hinting would name
/// them all at once, but is of no use here: Linux takes hinted pages back when it is short of memory, without waiting for the
/// device, which must therefore not empty them.
package final class BalloonDevice: VirtioDevice {
    private enum Feature {
        static let deflateOnOOM: UInt64 = 1 << 2
        static let reporting: UInt64 = 1 << 5
    }
    private static let pageSize: UInt64 = 4096
    private static let queueSize: UInt16 = 128
    /// Page numbers that one chain may hold; Linux sends 256.
    private static let maximumPages = 4096

    private struct State {
        var target: UInt32 = 0
        var actual: UInt32 = 0
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
    package var features: UInt64 { Feature.deflateOnOOM | Feature.reporting }
    /// Inflate, deflate, and the reporting queue: Linux numbers only the queues whose features were negotiated.
    package var queueSizes: [UInt16] { [Self.queueSize, Self.queueSize, Self.queueSize] }
    package func queueEvent(_ index: Int) -> EventFD? { event }
    package func configRead(_ offset: Int, size: Int) -> UInt64 {
        let (target, actual) = state.withLock { ($0.target, $0.actual) }
        let bytes = [target, actual].flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(8 * $0)) } }
        return configField(bytes, offset, size)
    }
    package func configWrite(_ offset: Int, _ value: UInt64, size: Int) {
        guard offset == 4, size == 4 else { return }
        state.withLock { $0.actual = UInt32(truncatingIfNeeded: value) }
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

    package func activate(_ activation: VirtioActivation) {
        stopping.store(false, ordering: .releasing)
        let made = try? HostThread(name: "vz-balloon") { [unowned self] in serve(activation) }
        state.withLock { state in
            state.activation = activation
            state.thread = made
        }
        if made == nil { activation.needsReset() }
    }
    package func reset() {
        stopping.store(true, ordering: .releasing)
        event.signal()
        let thread = state.withLock { state in
            defer { (state.thread, state.activation, state.actual) = (nil, nil, 0) }
            return state.thread
        }
        thread?.join()
    }

    // MARK: worker

    private func serve(_ activation: VirtioActivation) {
        let chain = DescriptorChain(capacity: Int(Self.queueSize))
        var pages: [UInt32] = []
        pages.reserveCapacity(Self.maximumPages)
        let queues = activation.queues
        while !stopping.load(ordering: .acquiring) {
            do throws(QueueError) {
                var more = false
                for (index, queue) in queues.enumerated() {
                    guard let queue else { continue }
                    while !stopping.load(ordering: .acquiring), try queue.pop(chain) {
                        switch index {
                        case 0: inflate(chain, &pages)
                        case 2: report(chain)
                        default: break  // pages that are taken back come by themselves
                        }
                        queue.complete(chain, written: 0)
                    }
                    queue.notify()
                    if queue.enableNotifications() { more = true }
                }
                if !more { event.wait() }
            } catch {
                activation.needsReset()
                return
            }
        }
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
