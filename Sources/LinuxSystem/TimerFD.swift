import CLinux
import Glibc

/// A timerfd: readable from a time of CLOCK_MONOTONIC on. Setting it wakes nobody. Any thread.
package final class TimerFD: Sendable {
    package let fileDescriptor: Int32

    package init() throws(SystemError) {
        fileDescriptor = Int32(try SystemError.check("timerfd_create") { Int(timerfd_create(CLOCK_MONOTONIC, Int32(TFD_CLOEXEC | TFD_NONBLOCK))) })
    }
    deinit { close(fileDescriptor) }

    /// - Parameter nanoseconds: when, at once if that is over; all ones for never.
    package func set(_ nanoseconds: UInt64) {
        let time = nanoseconds == .max ? 0 : min(max(nanoseconds, 1), UInt64(Int64.max))
        let value = timespec(tv_sec: Int(time / 1_000_000_000), tv_nsec: Int(time % 1_000_000_000))
        var setting = itimerspec(it_interval: timespec(), it_value: value)
        timerfd_settime(fileDescriptor, Int32(TFD_TIMER_ABSTIME), &setting, nil)
    }
    package func drain() {
        var count: UInt64 = 0
        _ = read(fileDescriptor, &count, 8)
    }
}
