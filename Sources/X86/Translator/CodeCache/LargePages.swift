import CX86

/// Large pages of the host's under the code. A program with much of it waits for the host's page tables otherwise (a tenth of gcc's
/// time). The memory is a file's: hosts put that into large pages only when they are asked to, page by page.
struct LargePages {
    private static let size = 2 << 20
    /// How much of a part's first large page is in use when it is asked for: guests that run little code are to stay small. The others
    /// are asked for with their first byte: what has to be copied, and the small pages until then, took a quarter of all time spent
    /// translating.
    private static let worthwhile = size / 4
    /// The host cannot do it, or has no such page left: asking may take it milliseconds each time.
    private var isRefused = false

    /// More of a part of a buffer is in use, and written. Its two mappings begin at boundaries of large pages, and so does each part.
    mutating func grown(_ first: UnsafeMutableRawPointer, _ second: UnsafeMutableRawPointer, from old: Int, to new: Int, of part: Int) {
        guard new > old, new - part >= Self.worthwhile else { return }
        let (before, now) = (old - part < Self.worthwhile ? -1 : (old - 1) / Self.size, (new - 1) / Self.size)
        guard now > before, !isRefused else { return }
        isRefused = cx_collapse(first + now * Self.size, UInt(Self.size)) != 0
        // The pages are one large page now; the second mapping has that as well.
        if !isRefused { _ = cx_collapse(second + now * Self.size, UInt(Self.size)) }
    }
}
