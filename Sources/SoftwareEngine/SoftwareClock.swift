import GuestMemory
import Hypervisor
import LinuxSystem

/// The KVM paravirtual clock, which tells the guest how its time stamp counter, the same on every vCPU, makes nanoseconds.
/// Linux Documentation/virt/kvm/x86/msr.rst, cpuid.rst.
final class SoftwareClock: Sendable {
    private let memory: GuestMemory
    let guest: GuestClock

    init(memory: GuestMemory, guest: GuestClock) {
        self.memory = memory
        self.guest = guest
    }

    /// `pvclock_wall_clock`: version, seconds, nanoseconds of the moment system time was zero.
    func writeWallClock(at address: UInt64) {
        let boot = realtimeNanoseconds() &- guest.systemTime
        try? memory.store(UInt32(1), at: address)
        try? memory.store(UInt32(truncatingIfNeeded: boot / 1_000_000_000), at: address &+ 4)
        try? memory.store(UInt32(truncatingIfNeeded: boot % 1_000_000_000), at: address &+ 8)
        try? memory.store(UInt32(2), at: address)
    }

    /// `kvm_clock_pairing`: the host's time of day and the guest's counter at one moment. False where there is no memory for it.
    func writePair(at address: UInt64) -> Bool {
        // Of a few tries the one in which nothing came between the two clocks' readings.
        var best = (width: UInt64.max, time: 0 as UInt64, moment: 0 as UInt64)
        for _ in 0..<3 {
            let (before, time, after) = (monotonicNanoseconds(), realtimeNanoseconds(), monotonicNanoseconds())
            if after &- before < best.width { best = (after &- before, time, before &+ (after &- before) / 2) }
        }
        guard memory.pointer(address, 64) != nil else { return false }
        let fields = [best.time / 1_000_000_000, best.time % 1_000_000_000, guest.timeStamp.counter(at: best.moment), 0, 0, 0, 0, 0]
        for (index, field) in fields.enumerated() { try? memory.store(field, at: address &+ UInt64(8 * index)) }
        return true
    }

    /// `pvclock_vcpu_time_info`: system time = start + (tsc - tsc at start) * 2^shift * multiplier / 2^32, for good.
    /// - Parameter afterStop: tells the guest that it did not run for a while, so that its watchdogs do not bark.
    func writeSystemTime(at address: UInt64, afterStop: Bool = false) {
        let version = ((try? memory.load(address) as UInt32) ?? 0) & ~1
        let clock = guest.timeStamp
        let (multiplier, shift) = Self.factor(clock.frequency)
        try? memory.store(version &+ 1, at: address)
        try? memory.store(clock.start, at: address &+ 8)
        try? memory.store(guest.systemTimeAtStart, at: address &+ 16)
        try? memory.store(multiplier, at: address &+ 24)
        try? memory.store(UInt8(bitPattern: shift), at: address &+ 28)
        try? memory.store(UInt8(afterStop ? 3 : 1), at: address &+ 29)  // PVCLOCK_TSC_STABLE_BIT, PVCLOCK_GUEST_STOPPED
        try? memory.store(version &+ 2, at: address)
    }

    /// Nanoseconds a tick as 2^shift * multiplier / 2^32, with the multiplier's highest bit set.
    static func factor(_ frequency: UInt64) -> (multiplier: UInt32, shift: Int8) {
        let ratio = (1_000_000 << 32) / frequency
        let shift = 32 - ratio.leadingZeroBitCount
        let multiplier = shift >= 0 ? ratio >> UInt64(shift) : (1_000_000 << UInt64(32 - shift)) / frequency
        return (UInt32(truncatingIfNeeded: multiplier), Int8(shift))
    }
}
