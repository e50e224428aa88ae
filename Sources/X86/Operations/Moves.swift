import CX86

@inline(__always) func movRR<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    setReg(s, op.pointee.rm, reg(s, op.pointee.reg) as T)
    return next(op, s)
}
@inline(__always) func movRI<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    setReg(s, op.pointee.rm, T(truncatingIfNeeded: op.pointee.imm))
    return next(op, s)
}
@inline(__always) func movRM<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard let value: T = load(op, s, address(op, s)) else { return 0 }
    setReg(s, op.pointee.reg, value)
    return next(op, s)
}
@inline(__always) func movMR<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard store(op, s, address(op, s), reg(s, op.pointee.reg) as T) else { return 0 }
    return next(op, s)
}
@inline(__always) func movMI<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard store(op, s, address(op, s), T(truncatingIfNeeded: op.pointee.imm)) else { return 0 }
    return next(op, s)
}
/// Zero- or sign-extending moves, F (from) to T.
@inline(__always) func extendRR<F: FixedWidthInteger & UnsignedInteger, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: F.Type, _: T.Type, signed: Bool
) -> Next {
    let value: F = reg(s, op.pointee.rm)
    setReg(s, op.pointee.reg, signed ? T(truncatingIfNeeded: signExtended(value)) : T(truncatingIfNeeded: value))
    return next(op, s)
}
@inline(__always) func extendRM<F: FixedWidthInteger & UnsignedInteger, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: F.Type, _: T.Type, signed: Bool
) -> Next {
    guard let value: F = load(op, s, address(op, s)) else { return 0 }
    setReg(s, op.pointee.reg, signed ? T(truncatingIfNeeded: signExtended(value)) : T(truncatingIfNeeded: value))
    return next(op, s)
}
@inline(__always) func lea<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    setReg(s, op.pointee.reg, T(truncatingIfNeeded: effectiveOffset(op, s)))
    return next(op, s)
}
@inline(__always) func exchangeRR<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let a: T = reg(s, op.pointee.rm)
    let b: T = reg(s, op.pointee.reg)
    setReg(s, op.pointee.rm, b)
    setReg(s, op.pointee.reg, a)
    return next(op, s)
}
/// XCHG with memory locks whether or not the prefix is there.
@inline(__always) func exchangeM<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let b: T = reg(s, op.pointee.reg)
    guard let (a, _): (T, T) = atomicUpdate(op, s, address(op, s), { _ in b }) else { return 0 }
    setReg(s, op.pointee.reg, a)
    return next(op, s)
}
@inline(__always) func cmovR<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let value: T = condition(s, op.pointee.aux) ? reg(s, op.pointee.rm) : reg(s, op.pointee.reg)
    setReg(s, op.pointee.reg, value)
    return next(op, s)
}
/// The memory operand is read, and may fault, whether or not the condition holds.
@inline(__always) func cmovM<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard let loaded: T = load(op, s, address(op, s)) else { return 0 }
    setReg(s, op.pointee.reg, condition(s, op.pointee.aux) ? loaded : reg(s, op.pointee.reg))
    return next(op, s)
}
@inline(__always) func exchangeAddR<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let a: T = reg(s, op.pointee.rm)
    let b: T = reg(s, op.pointee.reg)
    let r = a &+ b
    Add.flags(s, a, b, r)
    setReg(s, op.pointee.reg, a)
    setReg(s, op.pointee.rm, r)
    return next(op, s)
}
@inline(__always) func exchangeAddM<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let b: T = reg(s, op.pointee.reg)
    guard let (a, r): (T, T) = atomicUpdate(op, s, address(op, s), { $0 &+ b }) else { return 0 }
    Add.flags(s, a, b, r)
    setReg(s, op.pointee.reg, a)
    return next(op, s)
}
@inline(__always) func compareExchangeR<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let a: T = reg(s, 0)
    let d: T = reg(s, op.pointee.rm)
    Cmp.flags(s, a, d, a &- d)
    if a == d {
        setReg(s, op.pointee.rm, reg(s, op.pointee.reg) as T)
    } else {
        setReg(s, 0, d)
    }
    return next(op, s)
}
@inline(__always) func compareExchangeM<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let a: T = reg(s, 0)
    let b: T = reg(s, op.pointee.reg)
    // The destination is written in any case: with its own value when the comparison fails. SDM vol. 2 CMPXCHG.
    guard let (d, _): (T, T) = atomicUpdate(op, s, address(op, s), { $0 == a ? b : $0 }) else { return 0 }
    Cmp.flags(s, a, d, a &- d)
    if a != d { setReg(s, 0, d) }
    return next(op, s)
}

// MARK: stack, 64-bit code

@inline(__always) func push64(_ op: Op, _ s: CPU, _ value: UInt64) -> Bool {
    let rsp = gpr(s, GPR.rsp) &- 8
    guard store(op, s, rsp, value) else { return failStack(s) }
    setGPR(s, GPR.rsp, rsp)
    return true
}
/// A stack access that failed for its address's form is a stack fault. SDM vol. 3 § 6.15, interrupt 12.
@inline(never) @discardableResult func failStack(_ s: CPU) -> Bool {
    if s.pointee.fault_vector == Vector.generalProtection { s.pointee.fault_vector = Vector.stackFault }
    return false
}
@inline(__always) func pushR64(_ op: Op, _ s: CPU) -> Next {
    guard push64(op, s, reg(s, op.pointee.rm)) else { return 0 }
    return next(op, s)
}
@inline(__always) func popR64(_ op: Op, _ s: CPU) -> Next {
    let rsp = gpr(s, GPR.rsp)
    guard let value: UInt64 = load(op, s, rsp) else {
        failStack(s)
        return 0
    }
    setGPR(s, GPR.rsp, rsp &+ 8)
    setReg(s, op.pointee.rm, value)
    return next(op, s)
}
@inline(__always) func pushI64(_ op: Op, _ s: CPU) -> Next {
    guard push64(op, s, op.pointee.imm) else { return 0 }
    return next(op, s)
}
@inline(__always) func call64(_ op: Op, _ s: CPU) -> Next {
    guard push64(op, s, followingRIP(op, s)) else { return 0 }
    noteCall(s)
    return branch(op, s)
}
@inline(__always) func ret64(_ op: Op, _ s: CPU) -> Next {
    let rsp = gpr(s, GPR.rsp)
    guard let target: UInt64 = load(op, s, rsp) else {
        failStack(s)
        return 0
    }
    guard isCanonical(target) else { return raise(op, s, Vector.generalProtection, 0) }
    setGPR(s, GPR.rsp, rsp &+ 8 &+ op.pointee.imm)
    noteReturn(s)
    return jump(s, target)
}
@inline(__always) func callR64(_ op: Op, _ s: CPU) -> Next {
    let target: UInt64 = reg(s, op.pointee.rm)
    guard isCanonical(target) else { return raise(op, s, Vector.generalProtection, 0) }
    guard push64(op, s, followingRIP(op, s)) else { return 0 }
    noteCall(s)
    return jump(s, target)
}
@inline(__always) func callM64(_ op: Op, _ s: CPU) -> Next {
    guard let target: UInt64 = load(op, s, address(op, s)) else { return 0 }
    guard isCanonical(target) else { return raise(op, s, Vector.generalProtection, 0) }
    guard push64(op, s, followingRIP(op, s)) else { return 0 }
    noteCall(s)
    return jump(s, target)
}
@inline(__always) func jumpR64(_ op: Op, _ s: CPU) -> Next {
    let target: UInt64 = reg(s, op.pointee.rm)
    guard isCanonical(target) else { return raise(op, s, Vector.generalProtection, 0) }
    return jump(s, target)
}
@inline(__always) func jumpM64(_ op: Op, _ s: CPU) -> Next {
    guard let target: UInt64 = load(op, s, address(op, s)) else { return 0 }
    guard isCanonical(target) else { return raise(op, s, Vector.generalProtection, 0) }
    return jump(s, target)
}
/// Taken: to the target. Not taken: on in the same block.
@inline(__always) func jcc(_ op: Op, _ s: CPU, _ code: UInt8) -> Next {
    condition(s, code) ? branch(op, s) : next(op, s)
}

@inline(__always) func isCanonical(_ linear: UInt64) -> Bool {
    let top = Int64(bitPattern: linear) &>> 47
    return top == 0 || top == -1
}

/// Exception vectors. SDM vol. 3 § 6.15.
enum Vector {
    static let divide: UInt8 = 0
    static let debug: UInt8 = 1
    static let breakpoint: UInt8 = 3
    static let overflow: UInt8 = 4
    static let invalidOpcode: UInt8 = 6
    static let deviceNotAvailable: UInt8 = 7
    static let doubleFault: UInt8 = 8
    static let invalidTSS: UInt8 = 10
    static let segmentNotPresent: UInt8 = 11
    static let stackFault: UInt8 = 12
    static let generalProtection: UInt8 = 13
    static let pageFault: UInt8 = 14
    static let floatingPoint: UInt8 = 16
    static let alignmentCheck: UInt8 = 17
    static let simd: UInt8 = 19
}
