import CLinux
import Glibc

/// A system call that the host refused: what was tried, on what, and its errno.
package struct SystemError: Error, CustomStringConvertible, Equatable, Sendable {
    package let operation: String
    package let errno: Int32

    package init(_ operation: String, errno: Int32 = Glibc.errno) {
        self.operation = operation
        self.errno = errno
    }
    package var description: String { "\(operation): \(String(cString: strerror(errno)))" }

    /// Calls until it is not interrupted; throws when the result is negative.
    @discardableResult
    package static func check(_ operation: @autoclosure () -> String, _ call: () -> Int) throws(SystemError) -> Int {
        while true {
            let result = call()
            if result >= 0 { return result }
            if Glibc.errno != EINTR { throw SystemError(operation()) }
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
package func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
}
/// CLOCK_REALTIME in nanoseconds since 1970.
package func realtimeNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
}

package func usleepMilliseconds(_ count: UInt32) { usleep(count * 1000) }
