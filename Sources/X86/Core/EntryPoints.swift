import CX86

/// Blocks of programs that were looked for and found, by page: where code comes in from elsewhere. Each new process looks for some
/// hundreds of them again, and where one of a page is found, the others go into its jump cache, too.
struct EntryPoints {
    private struct Page {
        /// Its version cell; 0: none.
        var cell: UInt = 0
        /// What that held when the blocks were current.
        var version: UInt32 = 0
        /// In all, of which the newest are kept.
        var count: UInt32 = 0
    }
    private static let most = 32
    private static let hashBits: UInt64 = 12
    private static let capacity = 1 << Int(hashBits)
    private static let bytes = UInt(capacity * (MemoryLayout<Page>.stride + most * (MemoryLayout<Op>.stride + MemoryLayout<UInt16>.stride)))

    /// Taken as it is used.
    private let memory = cx_map_zeroed(bytes)
    private let pages: UnsafeMutablePointer<Page>
    private let blocks: UnsafeMutablePointer<Op?>
    /// In their page.
    private let offsets: UnsafeMutablePointer<UInt16>

    init() {
        pages = memory.bindMemory(to: Page.self, capacity: Self.capacity)
        let behind = memory + Self.capacity * MemoryLayout<Page>.stride
        blocks = behind.bindMemory(to: Op?.self, capacity: Self.capacity * Self.most)
        offsets = (behind + Self.capacity * Self.most * MemoryLayout<Op>.stride).bindMemory(to: UInt16.self, capacity: Self.capacity * Self.most)
    }
    func deallocate() { cx_unmap(memory, Self.bytes) }
    func removeAll() { cx_discard(memory, Self.bytes, 0) }

    private static func index(_ cell: UInt) -> Int { Int((UInt64(cell) &* 0x9E37_79B9_7F4A_7C15) >> (64 - hashBits)) }
    /// A current block of 64-bit code, which lies in one page. Of pages that share a place, the last is kept.
    func note(_ first: Op) {
        let header = first - 1
        let (cell, version) = (UInt(header.pointee.imm), header.pointee.extra)
        let index = Self.index(cell)
        if pages[index].cell != cell || pages[index].version != version { pages[index] = Page(cell: cell, version: version) }
        let count = Int(pages[index].count)
        let start = index * Self.most
        for n in start..<start + min(count, Self.most) where blocks[n] == first { return }
        blocks[start + count % Self.most] = first
        offsets[start + count % Self.most] = first.pointee.off
        pages[index].count &+= 1
    }
    /// Blocks of the page that has this version now, and where in it they begin.
    func forEach(in cell: UInt, version: UInt32, _ body: (Op, UInt16) -> Void) {
        let index = Self.index(cell)
        guard pages[index].cell == cell, pages[index].version == version else { return }
        let start = index * Self.most
        for n in start..<start + min(Int(pages[index].count), Self.most) { if let first = blocks[n] { body(first, offsets[n]) } }
    }
}
