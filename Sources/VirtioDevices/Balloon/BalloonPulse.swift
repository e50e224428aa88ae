/// Takes at once what a guest has just freed. Linux reports free pages by and by, some of them every two seconds; its balloon takes a GiB
/// in less than a second, and takes first what was freed last. So when reports begin to come, and much of what the host still holds is
/// free, the guest is asked for that, and has it back as soon as it has given it: the pages are then empty.
struct BalloonPulse {
    /// Bytes; where less is to be had, reports do well enough.
    static let least: UInt64 = 128 << 20
    /// Bytes that stay free in the guest meanwhile, at least, and its part of what is free.
    static let spare: (bytes: UInt64, part: UInt64) = (64 << 20, 8)
    /// Nanoseconds: how long the guest has for it, and the pause behind; a guest that frees and takes all the time is not asked for more
    /// than a tenth of it.
    static let limit: UInt64 = 3_000_000_000
    static let pause: UInt64 = 2_000_000_000
    private static let pageSize: UInt64 = 4096

    /// What the guest is to give beyond its target, in pages of 4 KiB.
    private(set) var pages: UInt32 = 0
    private var isAsking = false
    private var begin: UInt64 = 0
    private var notBefore: UInt64 = 0

    /// Whether a report of free pages is a reason to ask the guest how many more there are.
    mutating func asks(now: UInt64) -> Bool {
        guard pages == 0, !isAsking, now >= notBefore else { return false }
        isAsking = true
        return true
    }
    /// - Parameters:
    ///   - free: what the guest says is free; nil when it says nothing.
    ///   - held: what the host holds for it; nil when that is not known.
    ///   - given: what the balloon has.
    /// - Returns: whether the target changes.
    mutating func decide(free: UInt64?, held: UInt64?, size: UInt64, given: UInt64, now: UInt64) -> Bool {
        isAsking = false
        notBefore = now &+ Self.pause
        guard let free, let held, free <= size, given <= size - free else { return false }
        let inUse = size - free - given
        guard held > inUse else { return false }
        // Some of what it gives will be what the host does not hold.
        let wanted = (held - inUse) + (held - inUse) / 8
        let amount = min(wanted, free - min(free, max(Self.spare.bytes, free / Self.spare.part)))
        guard amount >= Self.least else { return false }
        pages = UInt32(clamping: amount / Self.pageSize)
        begin = now
        return true
    }
    /// Ends when the guest has given what it was asked for, or its time is over. Returns whether the target changes.
    mutating func advance(given: UInt32, target: UInt32, now: UInt64) -> Bool {
        guard pages > 0, isAnswered(given: given, target: target) || now &- begin >= Self.limit else { return false }
        pages = 0
        notBefore = now &+ max(Self.pause, 10 * (now &- begin))
        return true
    }
    func isAnswered(given: UInt32, target: UInt32) -> Bool { pages > 0 && UInt64(given) >= UInt64(target) + UInt64(pages) }
}
