import CX86

/// The operations of decoded blocks, in one arena, found by physical address. Belongs to one core.
///
/// A block is a header operation (versions of its code pages: see `isCurrent`), then its operations, the last of which
/// leaves the block. The arena is only ever emptied as a whole.
final class BlockCache {
    static let maximumOperations = 48
    static let maximumBytes = 256
    /// Enough for what a distribution executes while it starts; memory is taken as it is used.
    private static let capacity = 3072 * 1024
    private static let arenaBytes = UInt(capacity * MemoryLayout<x86_op>.stride)
    /// Four slots share a cache line and a hash value.
    private static let hashBits: UInt64 = 19
    private static let hashSize = 1 << Int(hashBits)
    private static let hashBytes = UInt(hashSize * MemoryLayout<Slot>.stride)

    private struct Slot {
        var key: UInt64
        var first: Op?
    }
    let arena: Op
    private let slots: UnsafeMutablePointer<Slot>
    private(set) var used = 0
    private var victim = 0
    /// A version cell for blocks that lie in one page: always 0.
    let zeroCell: UnsafeMutablePointer<UInt32>

    static let blankOperation = x86_op(
        fn: leaveBlock, imm: 0, disp: 0, reg: RegisterOffset.zero, rm: RegisterOffset.zero, base: RegisterOffset.zero,
        index: RegisterOffset.zero, scale: 0, seg: RegisterOffset.zeroSegment, ashift: 0, len: 0, off: 0, size: 0, aux: 0,
        extra: 0)

    init() {
        let memory = cx_map_zeroed(Self.arenaBytes)
        // It is filled from one end to the other: a fault for each small page would cost as much as decoding what lies there.
        cx_prefer_large(memory, Self.arenaBytes)
        arena = memory.bindMemory(to: x86_op.self, capacity: Self.capacity)
        slots = cx_map_zeroed(Self.hashBytes).bindMemory(to: Slot.self, capacity: Self.hashSize)
        zeroCell = .allocate(capacity: 1)
        zeroCell.initialize(to: 0)
    }
    deinit {
        cx_unmap(arena, Self.arenaBytes)
        cx_unmap(slots, Self.hashBytes)
        zeroCell.deallocate()
    }

    /// Memory in use.
    var bytes: Int { used * MemoryLayout<x86_op>.stride }
    var isFull: Bool { used + Self.maximumOperations + 4 > Self.capacity }

    /// Each privilege has its own blocks: translated code names the base caches of one.
    ///
    /// - Parameter isCrossing: of a block whose instruction goes on in another page: what calls it looks whether that page is the same.
    static func key(_ gpa: UInt64, user: Bool, _ code: CodeKind, isCrossing: Bool = false) -> UInt64 {
        (isCrossing ? 1 << 63 : 0) | gpa << 3 | (user ? 4 : 0) | UInt64(code.rawValue)
    }
    private func bucket(_ key: UInt64) -> UnsafeMutablePointer<Slot> {
        // The blocks of a code page lie near each other, over 64 buckets: they are looked for one after the other.
        let page = (((key >> 12) &* 0x9E37_79B9_7F4A_7C15) >> (70 - Self.hashBits)) << 4
        let offset = ((key & 4095) &* 0x9E37_79B9_7F4A_7C15) >> 58
        return slots + (Int(page &+ offset) & (Self.hashSize / 4 - 1)) * 4
    }
    func find(_ key: UInt64) -> Op? {
        let bucket = bucket(key)
        for n in 0..<4 where bucket[n].key == key {
            guard let first = bucket[n].first, isCurrent(first) else { return nil }
            return first
        }
        return nil
    }
    func insert(_ key: UInt64, _ first: Op) {
        let bucket = bucket(key)
        var place = -1
        for n in 0..<4 {
            if bucket[n].key == key || bucket[n].first == nil {
                place = n
                break
            }
            if let old = bucket[n].first, !isCurrent(old) { place = n }
        }
        if place < 0 {
            place = victim & 3
            victim &+= 1
        }
        bucket[place] = Slot(key: key, first: first)
    }

    /// Room for a header and operations; call `commit` with what was used.
    func open() -> Op { arena + used }
    func commit(_ count: Int) {
        used += count
        lastCount = count
    }
    /// Operations of the newest block.
    private(set) var lastCount = 0

    func flush() {
        used = 0
        cx_discard(arena, Self.arenaBytes, 0)
        cx_discard(slots, Self.hashBytes, 0)
    }
}
