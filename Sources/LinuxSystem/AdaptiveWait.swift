import CLinux
import Glibc

/// Waits for what another thread is about to do: looks for it for a while, and sleeps only then, as going to sleep and being woken
/// take tens of microseconds where the host's processor goes idle meanwhile. What has not come soon lately is not looked for, so
/// that a thread with little to do costs nothing. One thread's.
package struct AdaptiveWait {
    /// Nanoseconds that are looked for at most.
    private static let longest: UInt64 = 50_000
    /// And how often whoever is waited for may go first: it may have been put on this thread's processor.
    private static let betweenYields: UInt64 = 3_000
    /// Whether other threads cannot run while this one does.
    static let hasOneProcessor: Bool = {
        var set = cpu_set_t()
        return sched_getaffinity(0, MemoryLayout<cpu_set_t>.size, &set) != 0 || withUnsafeBytes(of: &set) { $0.reduce(0) { $0 + $1.nonzeroBitCount } } == 1
    }()
    /// Whether the last one came soon enough to be worth looking for.
    private var isPromising = false
    /// How many are slept for after one that was looked for in vain: twice as many each time.
    private var penalty = 1
    private var skipped = 0

    package init() {}

    /// - Parameters:
    ///   - isReady: whether it has come; takes what says so.
    ///   - sleep: returns when it may have come.
    package mutating func wait(_ isReady: () -> Bool, orSleep sleep: () -> Void) {
        let begin = monotonicNanoseconds()
        if isPromising, skipped == 0 {
            var now = begin
            var lastYield = begin
            repeat {
                if isReady() {
                    penalty = 1
                    return
                }
                if now &- lastYield >= Self.betweenYields {
                    sched_yield()
                    lastYield = now
                } else {
                    clinux_pause()
                }
                now = monotonicNanoseconds()
            } while now &- begin < Self.longest
            skipped = penalty
            penalty = min(penalty * 2, 64)
        } else if skipped > 0 {
            skipped -= 1
        }
        sleep()
        isPromising = !Self.hasOneProcessor && monotonicNanoseconds() &- begin < 4 * Self.longest
    }
    /// `poll` of Linux: until one of the descriptors has something, or the time is over.
    /// - Parameter looks: false where nothing is expected soon.
    package mutating func poll(_ entries: UnsafeMutablePointer<pollfd>, _ count: Int, milliseconds: Int32, looks: Bool = true) {
        if milliseconds == 0 || !looks { return _ = Glibc.poll(entries, nfds_t(count), milliseconds) }
        wait({ Glibc.poll(entries, nfds_t(count), 0) != 0 }, orSleep: { _ = Glibc.poll(entries, nfds_t(count), milliseconds) })
    }
}
