import CLinux
import Glibc

/// How fast this host's time stamp counter is.
package enum HostTimeStamp {
    private struct Moment {
        var counter: UInt64 = 0
        var nanoseconds: UInt64 = 0
        /// The counter between two looks at the clock: of several tries the one with the shortest way between them.
        init() {
            var shortest = UInt64.max
            for _ in 0..<8 {
                let before = monotonicNanoseconds()
                let counter = clinux_rdtsc()
                let after = monotonicNanoseconds()
                guard after - before < shortest else { continue }
                shortest = after - before
                self.counter = counter
                nanoseconds = before + shortest / 2
            }
        }
    }
    private static let first = Moment()
    /// Takes the first of two looks, so that `frequency` need not wait. Once a process.
    package static func begin() { _ = first }

    /// In kHz, right to about 50 ppm; takes up to two milliseconds. nil where the counter does not count steadily.
    package static let frequency: UInt64? = {
        guard clinux_tsc_is_invariant() != 0 else { return nil }
        let begin = first
        while monotonicNanoseconds() < begin.nanoseconds + 2_000_000 { usleep(500) }
        let end = Moment()
        guard end.counter > begin.counter else { return nil }
        let (quotient, _) = (end.nanoseconds - begin.nanoseconds).dividingFullWidth((end.counter - begin.counter).multipliedFullWidth(by: 1_000_000))
        return quotient
    }()
}
