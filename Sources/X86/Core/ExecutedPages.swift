/// Numbers by a hash: may say yes too often.
struct HashedSet {
    private static let hashBits: UInt64 = 14
    private static let words = 1 << (Int(hashBits) - 6)
    private let bits: UnsafeMutablePointer<UInt64> = .allocate(capacity: words)
    private var count = 0

    init() { bits.initialize(repeating: 0, count: Self.words) }
    func deallocate() { bits.deallocate() }
    private static func place(_ number: UInt64) -> (word: Int, mask: UInt64) {
        let hash = (number &* 0x9E37_79B9_7F4A_7C15) >> (64 - hashBits)
        return (Int(truncatingIfNeeded: hash >> 6), 1 << (hash & 63))
    }
    mutating func insert(_ number: UInt64) {
        let (word, mask) = Self.place(number)
        if bits[word] & mask == 0 { count += 1 }
        bits[word] |= mask
    }
    func mayContain(_ number: UInt64) -> Bool {
        let (word, mask) = Self.place(number)
        return bits[word] & mask != 0
    }
    /// So many that it says yes to many others.
    var isCrowded: Bool { count > 1 << Int(Self.hashBits - 2) }
    mutating func clear() {
        if count == 0 { return }
        bits.update(repeating: 0, count: Self.words)
        count = 0
    }
}

/// Pages that a privilege has fetched instructions from in the current context; where it says yes too often, that costs all of its edges
/// between pages.
struct ExecutedPages {
    private var pages = HashedSet()
    /// The same by 2 MiB.
    private var regions = HashedSet()
    /// All pages lie from one to the other: most that programs change are far from where the kernel runs.
    private var (lowest, highest) = (UInt64.max, UInt64.min)

    func deallocate() {
        pages.deallocate()
        regions.deallocate()
    }
    mutating func insert(_ linear: UInt64) {
        pages.insert(linear >> 12)
        regions.insert(linear >> 21)
        (lowest, highest) = (min(lowest, linear & ~4095), max(highest, linear | 4095))
    }
    func mayContain(_ linear: UInt64) -> Bool { linear >= lowest && linear <= highest && pages.mayContain(linear >> 12) }
    func mayContainRegion(_ linear: UInt64) -> Bool {
        let first = linear & ~(LargeRegions.size - 1)
        return first | (LargeRegions.size - 1) >= lowest && first <= highest && regions.mayContain(linear >> 21)
    }
    mutating func clear() {
        pages.clear()
        regions.clear()
        (lowest, highest) = (.max, .min)
    }
}
