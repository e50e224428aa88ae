import Glibc

/// How a worker's thread is scheduled on a host with one processor. Linux runs a thread as soon as it is woken, in the middle of what
/// its waker was about: with one request in hand where the guest was about to make thirty. Scheduled as a batch thread, it runs when
/// the guest has nothing more to do, or has had its slice. That is worth it only while requests do come together, so it is tried now
/// and then, and given up when they do not. One thread's; nothing on hosts with several processors.
package struct GatheringSchedule {
    /// How many times it is woken before the next judgement, and the requests that are enough by then.
    private static let sample = (wakes: 4, requests: 32)
    /// How many times it is woken before the next attempt.
    private static let intervals = 64...4096
    private let isOfUse = AdaptiveWait.hasOneProcessor && sched_getscheduler(0) == SCHED_OTHER
    private var isGathering = false
    private var interval = intervals.lowerBound
    private var left = intervals.lowerBound
    private var requests = 0

    /// On the worker's thread. Where the host permits it, the thread also comes before the guest's processors: a single request is then
    /// answered before the guest has gone to sleep over it.
    package init() { if isOfUse { setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) - 4) } }

    /// To be called before the thread sleeps, with how many requests it has met since it was woken.
    package mutating func willSleep(after count: Int) {
        guard isOfUse else { return }
        requests += count
        left -= 1
        if left > 0 { return }
        let isEnough = requests >= Self.sample.requests
        if !isGathering {
            set(SCHED_BATCH)
            isGathering = true
        } else if isEnough {
            interval = Self.intervals.lowerBound
        } else {
            set(SCHED_OTHER)
            isGathering = false
            interval = min(interval * 2, Self.intervals.upperBound)
        }
        left = isGathering ? Self.sample.wakes : interval
        requests = 0
    }
    private func set(_ policy: Int32) {
        var parameters = sched_param()
        _ = sched_setscheduler(0, policy, &parameters)
    }
}
