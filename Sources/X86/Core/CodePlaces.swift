import CX86

/// Where the current address space has the pages that code runs from: pages by their version cells. An edge between two pages may be
/// linked only where each is in one place, since translated code is the page's, wherever that is mapped; and what the jump cache
/// holds stays right as long as all of them are where they were.
struct CodePlaces {
    private struct Entry {
        var page: UInt
        var linear: UInt64
        var epoch: UInt64
    }
    private static let hashBits: UInt64 = 15
    private static let capacity = 1 << Int(hashBits)
    private static let bytes = UInt(capacity * (MemoryLayout<Entry>.stride + MemoryLayout<UInt16>.stride))
    /// No page's address.
    private static let several = UInt64.max
    /// Zeroes: of no epoch, taken as they are used.
    private let entries: UnsafeMutablePointer<Entry>
    /// The entries in use, in the order in which they came.
    private let order: UnsafeMutablePointer<UInt16>
    private var epoch: UInt64 = 1
    private(set) var count = 0
    /// Of several places, at most.
    private(set) var hasSeveral = false

    init() {
        let memory = cx_map_zeroed(Self.bytes)
        entries = memory.bindMemory(to: Entry.self, capacity: Self.capacity)
        order = (memory + Self.capacity * MemoryLayout<Entry>.stride).bindMemory(to: UInt16.self, capacity: Self.capacity)
    }
    func deallocate() { cx_unmap(entries, Self.bytes) }

    mutating func clear() {
        epoch &+= 1
        count = 0
        hasSeveral = false
    }
    /// Whether there may be no room for the pages of another block.
    var isFull: Bool { count + 2 > Self.capacity * 3 / 4 }
    /// The entry of a page, or the free one where it would be.
    private func find(_ page: UInt) -> Int {
        var index = Int((UInt64(page) &* 0x9E37_79B9_7F4A_7C15) >> (64 - Self.hashBits))
        while entries[index].epoch == epoch, entries[index].page != page { index = (index + 1) & (Self.capacity - 1) }
        return index
    }
    enum News { case none, first, second }
    /// Code of a page is run at an address: whether it is the first that is known, or the second.
    mutating func note(_ page: UInt, at linear: UInt64) -> News {
        let index = find(page)
        if entries[index].epoch == epoch {
            if entries[index].linear == linear || entries[index].linear == Self.several { return .none }
            entries[index].linear = Self.several
            hasSeveral = true
            return .second
        }
        entries[index] = Entry(page: page, linear: linear, epoch: epoch)
        order[count] = UInt16(truncatingIfNeeded: index)
        count += 1
        return .first
    }
    /// nil for a page in several places, or of which nothing is known.
    func place(of page: UInt) -> UInt64? {
        let entry = entries[find(page)]
        guard entry.epoch == epoch, entry.linear != Self.several else { return nil }
        return entry.linear
    }
    /// What is known of the n-th page; the address means something only where none has several.
    subscript(_ n: Int) -> (page: UInt, linear: UInt64) {
        let entry = entries[Int(order[n])]
        return (entry.page, entry.linear)
    }
}
