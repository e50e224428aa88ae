import CX86

/// Base caches that belong to one operand each, beside the code: a tag and the distance from the guest's addresses to the host's, for
/// reading or for writing. Blocks that run most have one for each operand that mostly stays in its page (`AccessTrial`).
///
/// Those that hold something are listed, in memory that translated code appends to, so that emptying them costs what filling them did.
struct OperandCaches {
    private let filled: UnsafeMutablePointer<UInt>
    private let bytes: UInt
    /// `own_end` is where the list ends, `own_empty` the tag of what holds nothing.
    private let state: UnsafeMutablePointer<x86_cpu>
    private let emptyWay: UInt64
    /// Called with a linear address in r11, less the cache's tag, 4096 less the operand's size in r9, the cache's address in RAX, and RAX in `t1_save`: finds
    /// the page in the TLB and puts it into the cache. "Above" when the interpreter has to see to it.
    private(set) var lookUp: LookUps = (Pair(), Pair(), Pair())
    typealias LookUps = (supervisor: Pair, user: Pair, narrow: Pair)
    struct Pair {
        var read = SharedCode.LookUp()
        var write = SharedCode.LookUp()
    }

    /// - Parameters:
    ///   - most: how many there may be; each is listed once at most.
    ///   - empty: what they hold that hold nothing, see `dropBaseCaches`.
    init(most: Int, state: UnsafeMutablePointer<x86_cpu>, empty: (tag: UInt64, way: UInt64)) {
        bytes = UInt(most * MemoryLayout<UInt>.stride)
        filled = cx_map_zeroed(bytes).bindMemory(to: UInt.self, capacity: most)
        self.state = state
        emptyWay = empty.way
        state.pointee.own_empty = empty.tag
        state.pointee.own_end = UInt64(UInt(bitPattern: filled))
    }
    func deallocate() { cx_unmap(filled, bytes) }

    func empty(_ place: UnsafeMutableRawPointer) {
        place.storeBytes(of: state.pointee.own_empty, as: UInt64.self)
        place.storeBytes(of: emptyWay, toByteOffset: 8, as: UInt64.self)
    }
    func emptyAll() {
        let count = (Int(state.pointee.own_end) - Int(bitPattern: filled)) / MemoryLayout<UInt>.stride
        for n in 0..<count { if let place = UnsafeMutableRawPointer(bitPattern: filled[n]) { empty(place) } }
        state.pointee.own_end = UInt64(UInt(bitPattern: filled))
    }
    /// There are none any more: the code is gone.
    func forget() {
        state.pointee.own_end = UInt64(UInt(bitPattern: filled))
        cx_discard(filled, bytes, 0)
    }

    mutating func makeLookUps(_ code: inout Assembler) {
        lookUp.supervisor = makeLookUps(&code, user: false)
        lookUp.user = makeLookUps(&code, user: true)
        lookUp.narrow = makeLookUps(&code, user: true, isNarrow: true)
    }
    private func makeLookUps(_ code: inout Assembler, user: Bool, isNarrow: Bool = false) -> Pair {
        Pair(read: makeLookUp(&code, user: user, isNarrow: isNarrow, write: false), write: makeLookUp(&code, user: user, isNarrow: isNarrow, write: true))
    }
    private func makeLookUp(_ code: inout Assembler, user: Bool, isNarrow: Bool, write: Bool) -> SharedCode.LookUp {
        let start = code.here
        code.op(0x03, reg: Host.address, .memory(base: 0))
        code.push(1)
        code.push(2)
        let isWide = isNarrow ? code.compareWithNarrow(scratch: 2) : nil
        let (tag, fails) = code.findPage(entry: 1, scratch: 2, user: user, write: write)
        code.load(2, .memory(base: 0))
        code.op(0x3B, reg: 2, Host.cell(Int(X86_OWN_EMPTY_OFFSET)))
        let isListed = code.jump(if: 5)
        code.load(2, Host.cell(Int(X86_OWN_END_OFFSET)))
        code.store(0, .memory(base: 2))
        code.op(0x83, reg: 0, Host.cell(Int(X86_OWN_END_OFFSET)))  // add …, 8
        code.byte(8)
        code.patch(isListed)
        code.load(2, tag)
        code.store(2, .memory(base: 0))
        code.load(2, .memory(base: 1, displacement: 2 * Int32(X86_TLB_COLUMN)))
        code.store(2, .memory(base: 0, displacement: 8))
        code.bytes(0x31, 0xD2)  // xor edx, edx: not above
        code.patch(fails)
        if let isWide { code.patch(isWide) }
        code.pop(2)
        code.pop(1)
        code.load(0, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.byte(0xC3)
        return SharedCode.LookUp(lessTag: start)
    }
}
