import CX86

/// Which operands remember the page they used last. A pointer that stays in one page for long is checked faster against a base cache
/// than against the TLB; one that wanders, much slower. So a block that runs often is watched for a while: each operand asks its base
/// cache and counts how often that was of no use, and then the block is translated once more.
struct AccessTrial {
    /// Operands of a block that are watched.
    static let mostSites = 31
    /// How often a page may be another: one in so many executions.
    static let tolerance: Int32 = 16
    /// Failures of base caches after which the block is watched again: programs have phases.
    static let patience: Int16 = 4096
    /// How often a block is watched; then all its operands ask the TLB.
    static let most: UInt8 = 2

    /// A block all of whose operands stay goes on counting for so many executions in the code it has: judged by those, it may be
    /// translated a last time.
    static let probation = Int16.max
    /// How often a window's range may lie in two pages, or in one that the TLB does not have, before the block gets fallbacks. While its
    /// executions are counted it has none: they were half of all code, and most are never needed.
    static let mostFailedWindows: UInt8 = 200

    enum Phase {
        /// Never watched.
        case none
        /// Watched when it has run so often.
        case counted(Int16)
        /// Watched for so many executions.
        case trial(Int16)
        /// These operands, a bit each, ask base caches.
        case judged(UInt32)

        /// Executions are counted.
        var counts: Bool {
            switch self {
            case .counted, .trial: true
            case .none, .judged: false
            }
        }
        /// Segments go further, and on where jumps lead: watched ones, too, as what is judged is what was watched.
        var goesFar: Bool {
            switch self {
            case .trial, .judged: true
            case .none, .counted: false
            }
        }
        /// What is translated now runs often, and stays.
        var isLast: Bool { if case .judged = self { true } else { false } }
    }
    /// What the counters of `mostSites` operands hold after a trial, behind the first cell.
    static func verdict(_ counters: UnsafePointer<Int32>, executions: Int16, sites: Int) -> UInt32 {
        var stays: UInt32 = 0
        for site in 0..<sites where counters[1 + site] &* tolerance <= Int32(executions) { stays |= 1 << UInt32(site) }
        return stays
    }
}

/// Where a translated block keeps its trial: fields of its first operation that only untranslated code uses.
extension UnsafeMutablePointer<x86_op> {
    /// How often it was watched, this time included.
    var timesWatched: UInt8 {
        get { pointee.ashift }
        nonmutating set { pointee.ashift = newValue }
    }
    /// Its counters in the code cache: of its executions, and once operands are watched, the trial's.
    var counters: TranslationCache.CodeOffset {
        get { Int32(bitPattern: pointee.extra) }
        nonmutating set { pointee.extra = UInt32(bitPattern: newValue) }
    }
    /// Operands that are being watched; 0 while only executions are counted.
    var watchedOperands: Int {
        get { Int(pointee.seg) }
        nonmutating set { pointee.seg = UInt8(truncatingIfNeeded: newValue) }
    }
    /// How often a window failed in code without fallbacks.
    var failedWindows: UInt8 {
        get { pointee.rm }
        nonmutating set { pointee.rm = newValue }
    }
    var needsFallbacks: Bool { failedWindows >= AccessTrial.mostFailedWindows }
    var isOnProbation: Bool {
        get { pointee.base == 1 }
        nonmutating set { pointee.base = newValue ? 1 : 0 }
    }
    /// Its executions are counted, but it has no operands to watch then.
    var hasNothingToWatch: Bool {
        get { pointee.base == 2 }
        nonmutating set { pointee.base = newValue ? 2 : 0 }
    }
}
