/// Where the current address space has the pages that code runs from: pages by their version cells. An edge between two pages may be
/// linked only where each is in one place, since translated code is the page's, wherever that is mapped.
struct CodePlaces {
    private struct Entry {
        var page: UInt
        var linear: UInt64
        var epoch: UInt64
    }
    private static let capacity = 8192
    /// No page's address.
    private static let several = UInt64.max
    private let entries: UnsafeMutablePointer<Entry>
    private var epoch: UInt64 = 1
    private var count = 0

    init() {
        entries = .allocate(capacity: Self.capacity)
        entries.initialize(repeating: Entry(page: 0, linear: 0, epoch: 0), count: Self.capacity)
    }
    func deallocate() { entries.deallocate() }

    mutating func clear() {
        epoch &+= 1
        count = 0
    }
    /// The entry of a page, or the free one where it would be.
    private func find(_ page: UInt) -> UnsafeMutablePointer<Entry> {
        var index = Int((UInt64(page) &* 0x9E37_79B9_7F4A_7C15) >> 51)
        while entries[index].epoch == epoch, entries[index].page != page { index = (index + 1) & (Self.capacity - 1) }
        return entries + index
    }
    enum Note { case known, secondPlace, full }
    /// Code of a page is run at an address.
    mutating func note(_ page: UInt, at linear: UInt64) -> Note {
        let entry = find(page)
        if entry.pointee.epoch == epoch {
            if entry.pointee.linear == linear || entry.pointee.linear == Self.several { return .known }
            entry.pointee.linear = Self.several
            return .secondPlace
        }
        if count >= Self.capacity * 3 / 4 { return .full }
        entry.pointee = Entry(page: page, linear: linear, epoch: epoch)
        count += 1
        return .known
    }
    /// nil for a page in several places, or of which nothing is known.
    func place(of page: UInt) -> UInt64? {
        let entry = find(page)
        guard entry.pointee.epoch == epoch, entry.pointee.linear != Self.several else { return nil }
        return entry.pointee.linear
    }
}
