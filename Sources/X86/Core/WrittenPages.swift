import CX86
import Synchronization

/// Pages of RAM that a core's TLB has had write tags for: a core that decodes code from a page has to see to it that none has one any
/// more, and most never had.
///
/// A core notes a page before it looks whether that holds code, and one that decodes marks the page before it asks here, both sequentially
/// consistent: so that one of the two sees the other.
struct WrittenPages: @unchecked Sendable {  // the memory is fixed; its cells are atomic
    private let words: UnsafeMutablePointer<Atomic<UInt64>>
    private let bytes: UInt

    init(pages: Int) {
        bytes = UInt(max((pages + 63) / 64, 1) * MemoryLayout<UInt64>.stride)
        words = cx_map_zeroed(bytes).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
    func deallocate() { cx_unmap(words, bytes) }

    /// The core's own thread only, as are the next two.
    @inline(__always) func insert(_ page: Int) {
        let bit = (1 as UInt64) << UInt64(page & 63)
        if words[page >> 6].load(ordering: .relaxed) & bit == 0 { words[page >> 6].bitwiseOr(bit, ordering: .sequentiallyConsistent) }
    }
    /// No tag is left.
    func remove(_ page: Int) { words[page >> 6].bitwiseAnd(~(1 << UInt64(page & 63)), ordering: .sequentiallyConsistent) }
    func removeAll() { cx_discard(words, bytes, 0) }
    /// Any thread.
    func contains(_ page: Int) -> Bool { words[page >> 6].load(ordering: .sequentiallyConsistent) >> UInt64(page & 63) & 1 != 0 }
}
