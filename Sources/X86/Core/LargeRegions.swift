/// Where in the lower half TLBs may hold parts of large pages, by 2 MiB: one INVLPG drops all of such a page, which may be many entries here.
/// By a hash: may say yes too often.
struct LargeRegions {
    static let size: UInt64 = 2 << 20
    private static let hashBits: UInt64 = 14
    private static let words = 1 << (Int(hashBits) - 6)
    private let bits: UnsafeMutablePointer<UInt64> = .allocate(capacity: words)
    private var count = 0
    /// There are pages larger than a region.
    private(set) var areExceeded = false

    init() { bits.initialize(repeating: 0, count: Self.words) }
    func deallocate() { bits.deallocate() }
    private static func bit(_ linear: UInt64) -> Int { Int(truncatingIfNeeded: ((linear >> 21) &* 0x9E37_79B9_7F4A_7C15) >> (64 - hashBits)) }

    mutating func insert(_ linear: UInt64, isLarger: Bool) {
        if isLarger { areExceeded = true }
        let (bit, mask) = (Self.bit(linear) >> 6, 1 << UInt64(Self.bit(linear) & 63) as UInt64)
        if bits[bit] & mask != 0 { return }
        bits[bit] |= mask
        count += 1
    }
    func mayContain(_ linear: UInt64) -> Bool { count > 0 && bits[Self.bit(linear) >> 6] >> UInt64(Self.bit(linear) & 63) & 1 != 0 }
    /// So many that it says yes to others, too: time to empty the TLBs.
    var isCrowded: Bool { count > 1 << Int(Self.hashBits - 2) }
    mutating func clear() {
        if count == 0 { return }
        bits.update(repeating: 0, count: Self.words)
        (count, areExceeded) = (0, false)
    }
}
