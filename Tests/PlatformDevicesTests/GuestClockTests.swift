import Hypervisor
import LinuxSystem
import Testing
import TestSupport

/// Time stamp counters of any frequency.
struct GuestClockTests {
    @Test func counterAndTimeAreInverse() {
        var generator = SeededGenerator(state: 11)
        for _ in 0..<20_000 {
            let clock = TimeStampClock(
                origin: .random(in: 0...1 << 60, using: &generator), start: .random(in: 0...1 << 60, using: &generator),
                frequency: .random(in: 1_000...10_000_000, using: &generator))
            let counter = clock.start + clock.ticks(in: UInt64.random(in: 0...1 << 50, using: &generator)) + UInt64.random(in: 0...1000, using: &generator)
            let time = clock.nanoseconds(when: counter)
            #expect(clock.counter(at: time) >= counter)
            if time > clock.origin { #expect(clock.counter(at: time - 1) < counter) }
        }
    }
    @Test func whatIsPastOrTooFarIsNoTrap() {
        let clock = TimeStampClock(origin: 5_000, start: 1_000_000, frequency: 2_500_000)
        #expect(clock.nanoseconds(when: 0) == 5_000)
        #expect(clock.nanoseconds(when: .max) == .max)
        #expect(clock.counter(at: 1_005_000) == 3_500_000)
        for frequency in [0, 1, UInt64.max] { #expect(TimeStampClock.frequencies.contains(TimeStampClock(origin: 0, start: 0, frequency: frequency).frequency)) }
        _ = TimeStampClock(origin: 0, start: .max, frequency: .max).counter(at: .max)
    }
    @Test func clockGoesOnFromWhereItWas() {
        let clock = GuestClock { 1_000_000 }
        clock.goOn(from: 1 << 40, systemTime: 77_000_000_000, frequency: 3_000_000)
        let (counter, time) = (clock.counter, clock.systemTime)
        #expect(counter >= 1 << 40 && counter < 1 << 40 + 30_000_000_000 && time >= 77_000_000_000)
        #expect(clock.timeStamp.frequency == 3_000_000)
    }
    /// The host's counter, where it is steady, against its clock.
    @Test func hostFrequencyIsPlausible() {
        if let frequency = HostTimeStamp.frequency { #expect(TimeStampClock.frequencies.contains(frequency)) }
    }
}
