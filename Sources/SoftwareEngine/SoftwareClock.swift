import GuestMemory
import LinuxSystem
import Synchronization

/// The guest's time: a TSC of 1 GHz that is CLOCK_MONOTONIC since the machine was made, the same on every vCPU, and the KVM
/// paravirtual clock that tells the guest so. Linux Documentation/virt/kvm/x86/msr.rst, cpuid.rst.
final class SoftwareClock: Sendable {
    private let memory: GuestMemory
    private let origin: Atomic<UInt64>
    /// CLOCK_MONOTONIC at which the TSC is zero. Set before any processor runs.
    var base: UInt64 {
        get { origin.load(ordering: .relaxed) }
        set { origin.store(newValue, ordering: .relaxed) }
    }

    init(memory: GuestMemory, base: UInt64) {
        self.memory = memory
        origin = Atomic(base)
    }
    var timeStampCounter: UInt64 { monotonicNanoseconds() &- base }
    static let frequencyInKHz: UInt64 = 1_000_000

    /// `pvclock_wall_clock`: version, seconds, nanoseconds of the moment system time was zero.
    func writeWallClock(at address: UInt64) {
        let boot = realtimeNanoseconds() &- timeStampCounter
        try? memory.store(UInt32(1), at: address)
        try? memory.store(UInt32(truncatingIfNeeded: boot / 1_000_000_000), at: address &+ 4)
        try? memory.store(UInt32(truncatingIfNeeded: boot % 1_000_000_000), at: address &+ 8)
        try? memory.store(UInt32(2), at: address)
    }

    /// `pvclock_vcpu_time_info`: system time = (tsc - 0) * 1, for good, since the TSC counts nanoseconds.
    func writeSystemTime(at address: UInt64) {
        try? memory.store(UInt32(1), at: address)
        try? memory.store(UInt64(0), at: address &+ 8)
        try? memory.store(UInt64(0), at: address &+ 16)
        try? memory.store(UInt32(0x8000_0000), at: address &+ 24)
        try? memory.store(UInt8(1), at: address &+ 28)  // shift
        try? memory.store(UInt8(1), at: address &+ 29)  // PVCLOCK_TSC_STABLE_BIT
        try? memory.store(UInt32(2), at: address)
    }

    /// Tells the guest that it did not run for a while, so that its watchdogs do not bark (PVCLOCK_GUEST_STOPPED).
    func noteStop(at address: UInt64) {
        guard let flags: UInt8 = try? memory.load(address &+ 29) else { return }
        try? memory.store(flags | 2, at: address &+ 29)
    }
}
