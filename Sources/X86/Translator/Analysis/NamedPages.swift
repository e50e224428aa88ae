/// Pages that a segment has found in their base caches already: operands whose addresses are in the instruction.
struct NamedPages {
    private struct Page {
        var cache: Int
        var page: Int64
        /// To the page of the block that runs.
        var isRelative: Bool
        var write: Bool
    }
    enum Knowledge { case read, written }
    private var pages: InlineArray<4, Page> = InlineArray(repeating: Page(cache: -1, page: 0, isRelative: false, write: false))
    private var next = 0

    /// Whether a page was found, and what for: the base cache has a place for each.
    func knows(_ cache: Int, page: Int64, isRelative: Bool, write: Bool) -> Knowledge? {
        for n in pages.indices where pages[n].cache == cache && pages[n].page == page && pages[n].isRelative == isRelative {
            if pages[n].write { return .written }
            if !write { return .read }
        }
        return nil
    }
    mutating func note(_ cache: Int, page: Int64, isRelative: Bool, write: Bool) {
        forget(cache)
        pages[next] = Page(cache: cache, page: page, isRelative: isRelative, write: write)
        next = (next + 1) & 3
    }
    /// When another page may have taken the place.
    mutating func forget(_ cache: Int) {
        for n in pages.indices where pages[n].cache == cache { pages[n].cache = -1 }
    }
}
