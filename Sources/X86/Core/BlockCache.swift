import CX86

/// The operations of decoded blocks, in one arena, found by physical address. Belongs to one core.
///
/// A block is a header operation (versions of its code pages: see `isCurrent`), then its operations, the last of which
/// leaves the block. The arena is only ever emptied as a whole.
final class BlockCache {
    static let maximumOperations = 48
    static let maximumBytes = 256
    private static let capacity = 192 * 1024
    private static let hashSize = 32 * 1024

    private struct Slot {
        var key: UInt64
        var first: Op?
    }
    private let arena: Op
    private let slots: UnsafeMutablePointer<Slot>
    private(set) var used = 0
    /// A version cell for blocks that lie in one page: always 0.
    let zeroCell: UnsafeMutablePointer<UInt32>

    static let blankOperation = x86_op(
        fn: leaveBlock, imm: 0, disp: 0, reg: RegisterOffset.zero, rm: RegisterOffset.zero, base: RegisterOffset.zero,
        index: RegisterOffset.zero, scale: 0, seg: RegisterOffset.zeroSegment, ashift: 0, len: 0, off: 0, size: 0, aux: 0,
        extra: 0)

    init() {
        arena = cx_allocate_zeroed(Self.capacity * MemoryLayout<x86_op>.stride).bindMemory(to: x86_op.self, capacity: Self.capacity)
        slots = cx_allocate_zeroed(Self.hashSize * MemoryLayout<Slot>.stride).bindMemory(to: Slot.self, capacity: Self.hashSize)
        zeroCell = .allocate(capacity: 1)
        zeroCell.initialize(to: 0)
    }
    deinit {
        cx_free(arena)
        cx_free(slots)
        zeroCell.deallocate()
    }

    var isFull: Bool { used + Self.maximumOperations + 4 > Self.capacity }

    private func slot(_ key: UInt64) -> UnsafeMutablePointer<Slot> {
        slots + Int((key &* 0x9E37_79B9_7F4A_7C15) >> 49)
    }
    func find(_ key: UInt64) -> Op? {
        let slot = slot(key)
        guard slot.pointee.key == key, let first = slot.pointee.first, isCurrent(first) else { return nil }
        return first
    }
    func insert(_ key: UInt64, _ first: Op) { slot(key).pointee = Slot(key: key, first: first) }

    /// Room for a header and operations; call `commit` with what was used.
    func open() -> Op { arena + used }
    func commit(_ count: Int) { used += count }

    func flush() {
        used = 0
        for index in 0..<Self.hashSize { slots[index] = Slot(key: 0, first: nil) }
    }
}
