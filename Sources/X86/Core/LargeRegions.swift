/// Where in the lower half TLBs may hold parts of large pages, by 2 MiB: one INVLPG drops all of such a page, which may be many entries here.
struct LargeRegions {
    static let size: UInt64 = 2 << 20
    private var regions = HashedSet()
    /// There are pages larger than a region.
    private var areExceeded = false

    func deallocate() { regions.deallocate() }
    mutating func insert(_ linear: UInt64, isLarger: Bool) {
        if isLarger { areExceeded = true }
        regions.insert(linear >> 21)
    }
    func mayContain(_ linear: UInt64) -> Bool { areExceeded || regions.mayContain(linear >> 21) }
    /// Time to empty the TLBs.
    var areTooMany: Bool { areExceeded || regions.isCrowded }
    mutating func clear() {
        regions.clear()
        areExceeded = false
    }
}
