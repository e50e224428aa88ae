import CX86

/// Large pages of the host's under the code. A program with much of it waits for the host's page tables otherwise (a tenth of gcc's
/// time). The memory is a file's: hosts put that into large pages only when they are asked to, page by page.
struct LargePages {
    private static let size = 2 << 20
    /// How much of a large page is in use when it is asked for, as it takes memory for all of it.
    private static let worthwhile = size / 4
    /// The host cannot do it, or has no such page left: asking may take it milliseconds each time.
    private var isRefused = false

    /// More of a buffer is in use. Its two mappings begin at boundaries of large pages.
    mutating func grown(_ first: UnsafeMutableRawPointer, _ second: UnsafeMutableRawPointer, from old: Int, to new: Int) {
        let (before, now) = ((old - Self.worthwhile) / Self.size, (new - Self.worthwhile) / Self.size)
        guard now > before, !isRefused else { return }
        isRefused = cx_collapse(first + now * Self.size, UInt(Self.size)) != 0
        // The pages are one large page now; the second mapping has that as well.
        if !isRefused { _ = cx_collapse(second + now * Self.size, UInt(Self.size)) }
    }
}
