import LinuxSystem
import Synchronization

/// A time stamp counter of a fixed frequency, as a function of CLOCK_MONOTONIC.
package struct TimeStampClock: Equatable, Sendable {
    /// The counter was `start` when CLOCK_MONOTONIC was `origin` nanoseconds.
    package let origin: UInt64
    package let start: UInt64
    /// In kHz.
    package let frequency: UInt64
    /// Ticks in a nanosecond, times 2^32.
    package let scale: UInt64

    /// What a processor that anybody made may have, in kHz.
    package static let frequencies: ClosedRange<UInt64> = 1_000...100_000_000

    /// - Parameter frequency: in kHz; brought into `frequencies`.
    package init(origin: UInt64, start: UInt64, frequency: UInt64) {
        self.origin = origin
        self.start = start
        self.frequency = min(max(frequency, Self.frequencies.lowerBound), Self.frequencies.upperBound)
        scale = (self.frequency << 32) / 1_000_000
    }

    package func ticks(in nanoseconds: UInt64) -> UInt64 {
        let product = nanoseconds.multipliedFullWidth(by: scale)
        return product.high << 32 | product.low >> 32
    }
    package func counter(at nanoseconds: UInt64) -> UInt64 { start &+ ticks(in: nanoseconds &- origin) }
    /// The first nanosecond of CLOCK_MONOTONIC at which the counter has reached `counter`: `origin` for one that is past, the
    /// end of time for one that is too far.
    package func nanoseconds(when counter: UInt64) -> UInt64 {
        guard counter > start else { return origin }
        let ticks = counter - start
        guard ticks < scale << 20 else { return .max }  // 2^52 nanoseconds, more than fifty days
        let (quotient, remainder) = scale.dividingFullWidth((ticks >> 32, ticks << 32))
        return origin &+ quotient &+ (remainder == 0 ? 0 : 1)
    }
}

/// The time of a guest whose processors are software: the counter and what the paravirtual clock says. Any thread.
///
/// It is made when it is first asked for, because only a machine that starts afresh needs to know the host's frequency.
package final class GuestClock: Sendable {
    private let current = Mutex<TimeStampClock?>(nil)
    private let systemTimeOffset = Atomic<UInt64>(0)
    private let frequency: @Sendable () -> UInt64

    /// - Parameter frequency: of a new machine's counter, in kHz.
    package init(frequency: @escaping @Sendable () -> UInt64) { self.frequency = frequency }

    package var timeStamp: TimeStampClock {
        current.withLock { current in
            if let clock = current { return clock }
            let clock = TimeStampClock(origin: monotonicNanoseconds(), start: 0, frequency: frequency())
            current = clock
            return clock
        }
    }
    package var counter: UInt64 { timeStamp.counter(at: monotonicNanoseconds()) }
    /// What the paravirtual clock said at the counter's `start`, in nanoseconds.
    package var systemTimeAtStart: UInt64 { systemTimeOffset.load(ordering: .relaxed) }
    /// Nanoseconds of the paravirtual clock.
    package var systemTime: UInt64 { systemTimeAtStart &+ (monotonicNanoseconds() &- timeStamp.origin) }

    /// Goes on from a saved machine's time. Before any processor runs.
    package func goOn(from counter: UInt64, systemTime: UInt64, frequency: UInt64) {
        current.withLock { $0 = TimeStampClock(origin: monotonicNanoseconds(), start: counter, frequency: frequency) }
        systemTimeOffset.store(systemTime, ordering: .relaxed)
    }
}
