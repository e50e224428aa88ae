import CLinux
import LinuxSystem
import X86

/// Watches how much a processor works, and gives the memory of its decoded and translated code back once it has hardly done
/// anything for a while: what it needs when idle is made again in milliseconds. On the processor's thread.
struct Idleness {
    /// Nanoseconds of one look.
    private static let period: UInt64 = 5_000_000_000
    /// Below this there is nothing worth giving back.
    private static let worthwhile = 8 << 20

    private var began = monotonicNanoseconds()
    private var awakeSince = monotonicNanoseconds()
    private var worked: UInt64 = 0

    mutating func wakes() { awakeSince = monotonicNanoseconds() }
    mutating func sleeps(_ core: X86Core) {
        let now = monotonicNanoseconds()
        worked += now &- awakeSince
        awakeSince = now
        guard now &- began > Self.period else { return }
        if worked * 33 < now &- began, core.codeBytes > Self.worthwhile {
            core.releaseCode()
            // What was kept beside the code, too, and what only starting a machine needed.
            clinux_trim_heaps()
            clinux_forget_cold_code()
        }
        began = now
        worked = 0
    }
}
