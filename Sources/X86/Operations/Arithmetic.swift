import CX86

// Two-operand arithmetic and logic. Each operation is a type, each operand form a generic function; the closures in
// Generated/HandlerTables.swift specialise the products. Memory is written before flags and registers, so that a fault
// leaves the state of the instruction's start.

protocol BinaryOperation {
    /// The result and the change of flags, applied only when the operands were reached.
    static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T
    static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T)
    static var writes: Bool { get }
}

enum Add: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a &+ b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        setFlags(s, result: r, carries: (a & b) | ((a | b) & ~r))
    }
    @inline(__always) static var writes: Bool { true }
}
enum Adc: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T {
        a &+ b &+ (carryFlag(s) ? 1 : 0)
    }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        Add.flags(s, a, b, r)
    }
    @inline(__always) static var writes: Bool { true }
}
enum Sub: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a &- b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        setFlags(s, result: r, carries: (~a & b) | ((~a | b) & r))
    }
    @inline(__always) static var writes: Bool { true }
}
enum Sbb: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T {
        a &- b &- (carryFlag(s) ? 1 : 0)
    }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        Sub.flags(s, a, b, r)
    }
    @inline(__always) static var writes: Bool { true }
}
enum Cmp: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a &- b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        Sub.flags(s, a, b, r)
    }
    @inline(__always) static var writes: Bool { false }
}
enum And: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a & b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        setFlagsLogic(s, result: r)
    }
    @inline(__always) static var writes: Bool { true }
}
enum Or: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a | b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        setFlagsLogic(s, result: r)
    }
    @inline(__always) static var writes: Bool { true }
}
enum Xor: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a ^ b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        setFlagsLogic(s, result: r)
    }
    @inline(__always) static var writes: Bool { true }
}
enum Test: BinaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T) -> T { a & b }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ b: T, _ r: T) {
        setFlagsLogic(s, result: r)
    }
    @inline(__always) static var writes: Bool { false }
}

/// rm register op= reg register.
@inline(__always) func binaryRR<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let a: T = reg(s, op.pointee.rm)
    let b: T = reg(s, op.pointee.reg)
    let r = O.compute(s, a, b)
    O.flags(s, a, b, r)
    if O.writes { setReg(s, op.pointee.rm, r) }
    return next(op, s)
}
@inline(__always) func binaryRI<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let a: T = reg(s, op.pointee.rm)
    let b = T(truncatingIfNeeded: op.pointee.imm)
    let r = O.compute(s, a, b)
    O.flags(s, a, b, r)
    if O.writes { setReg(s, op.pointee.rm, r) }
    return next(op, s)
}
/// reg register op= memory.
@inline(__always) func binaryRM<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    guard let b: T = load(op, s, address(op, s)) else { return 0 }
    let a: T = reg(s, op.pointee.reg)
    let r = O.compute(s, a, b)
    O.flags(s, a, b, r)
    if O.writes { setReg(s, op.pointee.reg, r) }
    return next(op, s)
}
@inline(__always) func modifyMemory<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _ b: T
) -> Next {
    let linear = address(op, s)
    if O.writes {
        if let p = writablePointer(s, linear, T.self) {
            let a = UnsafeRawPointer(p).loadUnaligned(as: T.self)
            let r = O.compute(s, a, b)
            p.storeBytes(of: r, as: T.self)
            O.flags(s, a, b, r)
            return next(op, s)
        }
        guard let a: T = loadForWrite(op, s, linear) else { return 0 }
        let r = O.compute(s, a, b)
        guard store(op, s, linear, r) else { return 0 }
        O.flags(s, a, b, r)
    } else {
        guard let a: T = load(op, s, linear) else { return 0 }
        O.flags(s, a, b, O.compute(s, a, b))
    }
    return next(op, s)
}
/// memory op= reg register.
@inline(__always) func binaryMR<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _ o: O.Type, _: T.Type
) -> Next {
    modifyMemory(op, s, o, reg(s, op.pointee.reg) as T)
}
@inline(__always) func binaryMI<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _ o: O.Type, _: T.Type
) -> Next {
    modifyMemory(op, s, o, T(truncatingIfNeeded: op.pointee.imm))
}

/// memory op= operand, atomically. The immediate form has the zero register's offset in `reg`.
@inline(__always) func binaryLocked<O: BinaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let b: T = op.pointee.aux == 1 ? T(truncatingIfNeeded: op.pointee.imm) : reg(s, op.pointee.reg)
    guard let (a, r) = atomicUpdate(op, s, address(op, s), { O.compute(s, $0, b) }) else { return 0 }
    O.flags(s, a, b, r)
    return next(op, s)
}

/// Replaces a memory operand atomically with respect to every other vCPU and device; returns old and new value.
@inline(__always) func atomicUpdate<T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _ linear: UInt64, _ transform: (T) -> T
) -> (T, T)? {
    if writablePointer(s, linear, T.self) == nil {
        // Fills the TLB when it can: not where code lies, or a breakpoint, in two pages, or in a device.
        guard (loadForWrite(op, s, linear) as T?) != nil else { return nil }
        if writablePointer(s, linear, T.self) == nil { return slowAtomicUpdate(op, s, linear, transform) }
    }
    guard let p = writablePointer(s, linear, T.self) else { return nil }
    return atomicUpdate(p, transform)
}
@inline(__always) private func atomicUpdate<T: FixedWidthInteger & UnsignedInteger>(_ p: UnsafeMutableRawPointer, _ transform: (T) -> T) -> (T, T) {
    var old = UnsafeRawPointer(p).loadUnaligned(as: T.self)
    while true {
        let r = transform(old)
        if compareAndSwap(p, &old, r) { return (old, r) }
    }
}
@inline(__always) private func slowAtomicUpdate<T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _ linear: UInt64, _ transform: (T) -> T
) -> (T, T)? {
    if let (host, gpa) = beginUpdate(op, s, linear, T.bitWidth / 8) {
        let values = atomicUpdate(host, transform)
        endUpdate(op, s, gpa, T.bitWidth / 8)
        return values
    }
    guard s.pointee.exit_reason == 0 else { return nil }
    // What lies in two pages is atomic for all who see it so; what is a device's is not.
    let isSplit = linear & 4095 > UInt64(4096 - T.bitWidth / 8)
    if isSplit { beginSplitUpdate(s) }
    defer { if isSplit { endSplitUpdate(s) } }
    guard let a: T = loadForWrite(op, s, linear) else { return nil }
    let r = transform(a)
    guard store(op, s, linear, r) else { return nil }
    return (a, r)
}

/// `lock cmpxchg` on a host address: on failure `expected` becomes what was found.
@inline(__always) func compareAndSwap<T: FixedWidthInteger & UnsignedInteger>(
    _ p: UnsafeMutableRawPointer, _ expected: inout T, _ value: T
) -> Bool {
    switch T.bitWidth {
    case 8:
        var e = UInt8(truncatingIfNeeded: expected)
        let done = cx_cas8(p.assumingMemoryBound(to: UInt8.self), &e, UInt8(truncatingIfNeeded: value)) != 0
        expected = T(truncatingIfNeeded: e)
        return done
    case 16:
        var e = UInt16(truncatingIfNeeded: expected)
        let done = cx_cas16(p.assumingMemoryBound(to: UInt16.self), &e, UInt16(truncatingIfNeeded: value)) != 0
        expected = T(truncatingIfNeeded: e)
        return done
    case 32:
        var e = UInt32(truncatingIfNeeded: expected)
        let done = cx_cas32(p.assumingMemoryBound(to: UInt32.self), &e, UInt32(truncatingIfNeeded: value)) != 0
        expected = T(truncatingIfNeeded: e)
        return done
    default:
        var e = UInt64(truncatingIfNeeded: expected)
        let done = cx_cas64(p.assumingMemoryBound(to: UInt64.self), &e, UInt64(truncatingIfNeeded: value)) != 0
        expected = T(truncatingIfNeeded: e)
        return done
    }
}

// MARK: one operand

protocol UnaryOperation {
    static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T) -> T
    static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ r: T)
}
enum Inc: UnaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T) -> T { a &+ 1 }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ r: T) {
        let carry = carryFlag(s)
        setFlags(s, result: r, carries: a & ~r)
        setCarry(s, carry)
    }
}
enum Dec: UnaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T) -> T { a &- 1 }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ r: T) {
        let carry = carryFlag(s)
        setFlags(s, result: r, carries: ~a & r)
        // Bit 0 borrows when it was 0; the vector above says so for every bit that changed from 0 to 1.
        setCarry(s, carry)
    }
}
enum Neg: UnaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T) -> T { 0 &- a }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ r: T) {
        Sub.flags(s, 0, a, r)
    }
}
enum Not: UnaryOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T) -> T { ~a }
    @inline(__always) static func flags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ r: T) {}
}

@inline(__always) func unaryR<O: UnaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let a: T = reg(s, op.pointee.rm)
    let r = O.compute(a)
    O.flags(s, a, r)
    setReg(s, op.pointee.rm, r)
    return next(op, s)
}
@inline(__always) func unaryM<O: UnaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let linear = address(op, s)
    if let p = writablePointer(s, linear, T.self) {
        let a = UnsafeRawPointer(p).loadUnaligned(as: T.self)
        let r = O.compute(a)
        p.storeBytes(of: r, as: T.self)
        O.flags(s, a, r)
        return next(op, s)
    }
    guard let a: T = loadForWrite(op, s, linear) else { return 0 }
    let r = O.compute(a)
    guard store(op, s, linear, r) else { return 0 }
    O.flags(s, a, r)
    return next(op, s)
}
@inline(__always) func unaryLocked<O: UnaryOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    guard let (a, r): (T, T) = atomicUpdate(op, s, address(op, s), { O.compute($0) }) else { return 0 }
    O.flags(s, a, r)
    return next(op, s)
}

/// Loads an operand that will be written: faults as a write does, and fills the TLB for writing.
@inline(__always) func loadForWrite<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _ linear: UInt64) -> T? {
    let value = slowLoadForWrite(op, s, linear, T.bitWidth / 8)
    if s.pointee.exit_reason != 0 { return nil }
    return T(truncatingIfNeeded: value)
}
