import CX86

// Short names for the types every handler takes. SAFETY (whole room): an `Op` points into its vCPU's operation arena and
// is only followed while that arena is live; a `CPU` is the state of the vCPU whose thread runs the handler.
typealias Op = UnsafeMutablePointer<x86_op>
typealias CPU = UnsafeMutablePointer<x86_cpu>
/// What a handler returns: 0 when the run loop has the word, else (debug builds) the address of the operation to go on with.
/// An integer, because a phi of optional pointers keeps the compiler from making the tail call.
typealias Next = UInt64
typealias Handler = @convention(c) (UnsafeMutablePointer<x86_op>, UnsafeMutablePointer<x86_cpu>) -> UInt64

/// Why the operations stopped and the run loop has the word.
enum ExitReason {
    /// Go on at `rip`.
    static let next: UInt32 = 0
    /// `fault_vector` is to be delivered at `fault_op`.
    static let fault: UInt32 = 1
    static let halt: UInt32 = 2
    static let shutdown: UInt32 = 3
    /// An internal limit; the message is in the core.
    static let internalError: UInt32 = 4
    /// The instruction at `fault_op` is to begin anew, by itself.
    static let again: UInt32 = 5
}

/// Bits of `x86_cpu.pending`.
enum Pending {
    static let interrupt: UInt32 = 1
    static let cancel: UInt32 = 2
    /// Write tags must be dropped: another vCPU found code in a page.
    static let flushWriteTags: UInt32 = 4
    static let initOrStartup: UInt32 = 8
    static let nonMaskable: UInt32 = 16
    /// Code pages changed: see `X86Core.requestUnlink`.
    static let unlink: UInt32 = 32
    /// Never served: keeps handlers and translated code from going on to a next block by themselves.
    static let hold: UInt32 = 64
}

/// Byte offsets into the register file that are not general registers.
enum RegisterOffset {
    static let zero: UInt8 = 128
    static let blockBase: UInt8 = 136
    static let zeroSegment: UInt8 = 48
}

/// Continues with the following operation. A tail call in release builds, one turn of the run loop in debug builds,
/// where the compiler does not make tail calls.
@inline(__always) func next(_ op: Op, _ s: CPU) -> Next {
    #if DEBUG
        return UInt64(UInt(bitPattern: op + 1))
    #else
        return (op + 1).pointee.fn(op + 1, s)
    #endif
}

/// Continues with the following instruction through the run loop: for handlers that the compiler cannot end with a tail
/// call because something must be released after it. Scripts/check-tail-calls finds those that should but do not.
@inline(__always) func step(_ op: Op, _ s: CPU) -> Next {
    s.pointee.rip = followingRIP(op, s)
    return 0
}

// MARK: registers

@inline(__always) func reg<T: FixedWidthInteger>(_ s: CPU, _ offset: UInt8) -> T {
    UnsafeRawPointer(s).load(fromByteOffset: Int(offset), as: T.self)
}

/// Writes a register: 32-bit results clear the upper half, narrower ones leave it. SDM vol. 1 § 3.4.1.1.
@inline(__always) func setReg<T: FixedWidthInteger>(_ s: CPU, _ offset: UInt8, _ value: T) {
    if T.bitWidth == 32 {
        UnsafeMutableRawPointer(s).storeBytes(
            of: UInt64(truncatingIfNeeded: value) & 0xFFFF_FFFF, toByteOffset: Int(offset), as: UInt64.self)
    } else {
        UnsafeMutableRawPointer(s).storeBytes(of: value, toByteOffset: Int(offset), as: T.self)
    }
}

@inline(__always) func gpr(_ s: CPU, _ number: Int) -> UInt64 { reg(s, UInt8(truncatingIfNeeded: number &* 8)) }
@inline(__always) func setGPR(_ s: CPU, _ number: Int, _ value: UInt64) {
    setReg(s, UInt8(truncatingIfNeeded: number &* 8), value)
}

/// Numbers of general registers that instructions name implicitly.
enum GPR {
    static let rax = 0
    static let rcx = 1
    static let rdx = 2
    static let rbx = 3
    static let rsp = 4
    static let rbp = 5
    static let rsi = 6
    static let rdi = 7
}

@inline(__always) func segmentBase(_ s: CPU, _ offset: UInt8) -> UInt64 {
    UnsafeRawPointer(s).load(fromByteOffset: Int(X86_SEGBASE_OFFSET) &+ Int(offset), as: UInt64.self)
}

/// The offset part of a memory operand, cut to the address size.
@inline(__always) func effectiveOffset(_ op: Op, _ s: CPU) -> UInt64 {
    let base: UInt64 = reg(s, op.pointee.base)
    let index: UInt64 = reg(s, op.pointee.index)
    let sum = base &+ (index &<< UInt64(op.pointee.scale)) &+ UInt64(bitPattern: op.pointee.disp)
    let shift = UInt64(op.pointee.ashift)
    return (sum &<< shift) &>> shift
}

/// The linear address of a memory operand.
@inline(__always) func address(_ op: Op, _ s: CPU) -> UInt64 {
    effectiveOffset(op, s) &+ segmentBase(s, op.pointee.seg)
}

// MARK: memory

@inline(__always) func tlbEntry(_ s: CPU, _ linear: UInt64) -> TLBEntry { TLBEntry(s.pointee.tlb, TLBEntry.index(linear)) }

@inline(__always) func hostPointer(_ entry: TLBEntry, _ linear: UInt64) -> UnsafeMutableRawPointer {
    // SAFETY: `delta` leads from the tag's page to a page of guest RAM, and the tag check bounds the operand to that page.
    UnsafeMutableRawPointer(bitPattern: UInt(truncatingIfNeeded: linear &+ entry.delta)).unsafelyUnwrapped
}

/// Loads through the soft TLB; nil when a fault was raised.
@inline(__always) func load<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _ linear: UInt64) -> T? {
    let entry = tlbEntry(s, linear)
    if linear ^ entry.readTag <= UInt64(4096 - T.bitWidth / 8) {
        return UnsafeRawPointer(hostPointer(entry, linear)).loadUnaligned(as: T.self)
    }
    let value = slowLoad(op, s, linear, T.bitWidth / 8)
    if s.pointee.exit_reason != 0 { return nil }
    return T(truncatingIfNeeded: value)
}

/// Stores through the soft TLB; false when a fault was raised.
@inline(__always) func store<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _ linear: UInt64, _ value: T) -> Bool {
    let entry = tlbEntry(s, linear)
    if linear ^ entry.writeTag <= UInt64(4096 - T.bitWidth / 8) {
        hostPointer(entry, linear).storeBytes(of: value, as: T.self)
        return true
    }
    return slowStore(op, s, linear, UInt64(truncatingIfNeeded: value), T.bitWidth / 8)
}

/// The host address of a writable operand that lies in one page of plain RAM, or nil.
@inline(__always) func writablePointer<T: FixedWidthInteger>(_ s: CPU, _ linear: UInt64, _: T.Type) -> UnsafeMutableRawPointer? {
    let entry = tlbEntry(s, linear)
    guard linear ^ entry.writeTag <= UInt64(4096 - T.bitWidth / 8) else { return nil }
    return hostPointer(entry, linear)
}

/// Runs code that is not the guest's: the guest's MXCSR is live in the host's, and even a Dictionary computes with Double.
@inline(__always) func outside<R>(_ body: () -> R) -> R {
    let guest = cx_stmxcsr()
    cx_ldmxcsr(0x1F80)
    defer { cx_ldmxcsr(guest) }
    return body()
}

// MARK: control flow

@inline(__always) func instructionRIP(_ op: Op, _ s: CPU) -> UInt64 {
    s.pointee.block_base &+ UInt64(op.pointee.off) &- segmentBase(s, 8)
}
@inline(__always) func followingRIP(_ op: Op, _ s: CPU) -> UInt64 {
    instructionRIP(op, s) &+ UInt64(op.pointee.len)
}

/// Leaves the handlers with a fault at `op`.
@inline(never) func raise(_ op: Op, _ s: CPU, _ vector: UInt8, _ error: UInt64? = nil) -> Next {
    s.pointee.fault_vector = vector
    s.pointee.fault_has_error = error == nil ? 0 : 1
    s.pointee.fault_error = error ?? 0
    s.pointee.fault_op = op
    s.pointee.exit_reason = ExitReason.fault
    return 0
}

/// The address of a block's header, which stands before its first operation: it is current while the versions of the
/// code pages it was decoded from add up to what they did then.
@inline(__always) func isCurrent(_ first: Op) -> Bool {
    let header = first - 1
    // SAFETY: both cells are in the code map, which outlives every block, or the constant zero cell.
    let one = UnsafePointer<UInt32>(bitPattern: UInt(truncatingIfNeeded: header.pointee.imm)).unsafelyUnwrapped
    let two = UnsafePointer<UInt32>(bitPattern: UInt(truncatingIfNeeded: header.pointee.disp)).unsafelyUnwrapped
    return one.pointee &+ two.pointee == header.pointee.extra
}

/// The block at `rip`, if the jump cache has it.
@inline(__always) func notedBlock(_ s: CPU, _ rip: UInt64) -> Op? {
    var index = JumpHash.index(rip) ^ Int(s.pointee.jump_salt &>> 1)
    if s.pointee.jcache[index].rip != rip {
        index ^= 1
        guard s.pointee.jcache[index].rip == rip else { return nil }
    }
    return JumpTable.operations(s.pointee.jcache)[index]
}

/// Goes to the block at `rip`: straight on when the jump cache knows it, else through the run loop.
@inline(__always) func jump(_ s: CPU, _ rip: UInt64) -> Next {
    s.pointee.rip = rip
    #if !DEBUG
        if s.pointee.pending == 0, let first = notedBlock(s, rip), isCurrent(first) {
            s.pointee.block_base = (rip &+ segmentBase(s, 8)) & ~4095
            return first.pointee.fn(first, s)
        }
    #endif
    return 0
}

/// Goes to a direct branch's target. `op.disp` links to the target's block once it is known and in the same page.
@inline(__always) func branch(_ op: Op, _ s: CPU) -> Next {
    let linear = s.pointee.block_base &+ op.pointee.imm
    #if !DEBUG
        if op.pointee.disp != 0, s.pointee.pending == 0 {
            // SAFETY: links are made by the block cache to operations of the same arena generation.
            let first = Op(bitPattern: Int(op.pointee.disp)).unsafelyUnwrapped
            if isCurrent(first) {
                s.pointee.rip = linear &- segmentBase(s, 8)
                return first.pointee.fn(first, s)
            }
        }
    #endif
    return slowBranch(op, s, linear)
}

@inline(never) func slowBranch(_ op: Op, _ s: CPU, _ linear: UInt64) -> Next {
    var rip = linear &- segmentBase(s, 8)
    if s.pointee.mode != CodeSize.bits64.rawValue { rip &= op.pointee.aux == 2 ? 0xFFFF : 0xFFFF_FFFF }
    // A link may be made when source and target lie in one page and nothing can come between.
    if linear & ~4095 == s.pointee.block_base, s.pointee.lma != 0 {
        if let first = notedBlock(s, rip), isCurrent(first), (first - 1).pointee.reg == 0 { op.pointee.disp = Int64(Int(bitPattern: first)) }
    }
    return jump(s, rip)
}
