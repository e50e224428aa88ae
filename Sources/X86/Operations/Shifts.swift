import CX86

protocol ShiftOperation {
    /// The shifted value; sets flags. `count` is already cut to 5 bits (6 for 64-bit operands) and not zero.
    static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T
}

@inline(__always) private func top<T: FixedWidthInteger & UnsignedInteger>(_ a: T) -> Bool { a &>> T(T.bitWidth - 1) != 0 }
@inline(__always) private func bit<T: FixedWidthInteger & UnsignedInteger>(_ a: T, _ index: Int) -> Bool {
    (a >> T(truncatingIfNeeded: index)) & 1 != 0
}

enum Shl: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        let r = a << T(truncatingIfNeeded: count)
        let carry = count <= T.bitWidth && bit(a, T.bitWidth - count)
        setFlags(s, result: r, carry: carry, overflow: top(r) != carry)
        return r
    }
}
enum Shr: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        let r = a >> T(truncatingIfNeeded: count)
        setFlags(s, result: r, carry: bit(a, count - 1), overflow: top(a))
        return r
    }
}
enum Sar: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        let wide = Int64(bitPattern: signExtended(a))
        let r = T(truncatingIfNeeded: wide >> Int64(count))
        setFlags(s, result: r, carry: (wide >> Int64(count - 1)) & 1 != 0, overflow: false)
        return r
    }
}
enum Rol: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        let n = count & (T.bitWidth - 1)
        let r = n == 0 ? a : (a << T(truncatingIfNeeded: n)) | (a >> T(truncatingIfNeeded: T.bitWidth - n))
        let carry = r & 1 != 0
        setCarryOverflow(s, carry: carry, overflow: top(r) != carry)
        return r
    }
}
enum Ror: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        let n = count & (T.bitWidth - 1)
        let r = n == 0 ? a : (a >> T(truncatingIfNeeded: n)) | (a << T(truncatingIfNeeded: T.bitWidth - n))
        setCarryOverflow(s, carry: top(r), overflow: top(r) != bit(r, T.bitWidth - 2))
        return r
    }
}
enum Rcl: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        var r = a
        var carry = carryFlag(s)
        for _ in 0..<(count % (T.bitWidth + 1)) {
            let out = top(r)
            r = (r << 1) | (carry ? 1 : 0)
            carry = out
        }
        setCarryOverflow(s, carry: carry, overflow: top(r) != carry)
        return r
    }
}
enum Rcr: ShiftOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, _ a: T, _ count: Int) -> T {
        var r = a
        var carry = carryFlag(s)
        for _ in 0..<(count % (T.bitWidth + 1)) {
            let out = r & 1 != 0
            r = (r >> 1) | (carry ? T(1) << T(T.bitWidth - 1) : 0)
            carry = out
        }
        setCarryOverflow(s, carry: carry, overflow: top(r) != bit(r, T.bitWidth - 2))
        return r
    }
}

@inline(__always) private func masked<T: FixedWidthInteger>(_ count: UInt64, _: T.Type) -> Int {
    Int(truncatingIfNeeded: count & (T.bitWidth == 64 ? 63 : 31))
}
@inline(__always) func shiftRI<O: ShiftOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let count = masked(op.pointee.imm, T.self)
    let a: T = reg(s, op.pointee.rm)
    setReg(s, op.pointee.rm, count == 0 ? a : O.compute(s, a, count))
    return next(op, s)
}
@inline(__always) func shiftRC<O: ShiftOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let count = masked(gpr(s, GPR.rcx), T.self)
    let a: T = reg(s, op.pointee.rm)
    setReg(s, op.pointee.rm, count == 0 ? a : O.compute(s, a, count))
    return next(op, s)
}
/// Memory, by immediate or (aux = 1) by CL. Flags are put back when the store faults.
@inline(__always) func shiftM<O: ShiftOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let count = masked(op.pointee.aux == 1 ? gpr(s, GPR.rcx) : op.pointee.imm, T.self)
    let linear = address(op, s)
    guard let a: T = loadForWrite(op, s, linear) else { return 0 }
    if count == 0 { return next(op, s) }
    let flags = (s.pointee.fres, s.pointee.faux)
    let r = O.compute(s, a, count)
    guard store(op, s, linear, r) else {
        (s.pointee.fres, s.pointee.faux) = flags
        return 0
    }
    return next(op, s)
}

/// SHLD (`left`) and SHRD. A count of over the operand's width (16-bit only) leaves undefined results; we rotate on.
@inline(__always) func doubleShift<T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: T.Type, left: Bool
) -> Next {
    let count = masked(op.pointee.aux & 1 == 1 ? gpr(s, GPR.rcx) : op.pointee.imm, T.self)
    let fromMemory = op.pointee.aux & 2 != 0
    let linear = fromMemory ? address(op, s) : 0
    let a: T
    if fromMemory {
        guard let loaded: T = loadForWrite(op, s, linear) else { return 0 }
        a = loaded
    } else {
        a = reg(s, op.pointee.rm)
    }
    if count == 0 {
        if !fromMemory { setReg(s, op.pointee.rm, a) }
        return next(op, s)
    }
    let b: T = reg(s, op.pointee.reg)
    let width = T.bitWidth
    var r: T
    var carry: Bool
    if left {
        if count <= width {
            r = (a << T(truncatingIfNeeded: count)) | (b >> T(truncatingIfNeeded: width - count))
            carry = bit(a, width - count)
        } else {
            r = (b << T(truncatingIfNeeded: count - width)) | (a >> T(truncatingIfNeeded: 2 * width - count))
            carry = bit(b, 2 * width - count)
        }
    } else if count <= width {
        r = (a >> T(truncatingIfNeeded: count)) | (b << T(truncatingIfNeeded: width - count))
        carry = bit(a, count - 1)
    } else {
        r = (b >> T(truncatingIfNeeded: count - width)) | (a << T(truncatingIfNeeded: 2 * width - count))
        carry = bit(b, count - width - 1)
    }
    if fromMemory {
        guard store(op, s, linear, r) else { return 0 }
    } else {
        setReg(s, op.pointee.rm, r)
    }
    setFlags(s, result: r, carry: carry, overflow: top(r) != top(a))
    return next(op, s)
}

// MARK: bits

protocol BitOperation {
    static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T, _ mask: T) -> T
    static var writes: Bool { get }
}
enum BitTest: BitOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T, _ mask: T) -> T { a }
    @inline(__always) static var writes: Bool { false }
}
enum BitSet: BitOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T, _ mask: T) -> T { a | mask }
    @inline(__always) static var writes: Bool { true }
}
enum BitReset: BitOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T, _ mask: T) -> T { a & ~mask }
    @inline(__always) static var writes: Bool { true }
}
enum BitComplement: BitOperation {
    @inline(__always) static func compute<T: FixedWidthInteger & UnsignedInteger>(_ a: T, _ mask: T) -> T { a ^ mask }
    @inline(__always) static var writes: Bool { true }
}
/// aux bit 0: index is the immediate; bit 1: memory operand; bit 2: locked.
@inline(__always) func bitOperation<O: BitOperation, T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: O.Type, _: T.Type
) -> Next {
    let aux = op.pointee.aux
    let raw: T = aux & 1 != 0 ? T(truncatingIfNeeded: op.pointee.imm) : reg(s, op.pointee.reg)
    let mask = T(1) << (raw & T(T.bitWidth - 1))
    let old: T
    if aux & 2 == 0 {
        old = reg(s, op.pointee.rm)
        if O.writes { setReg(s, op.pointee.rm, O.compute(old, mask)) }
    } else {
        // A register index reaches beyond the operand, in steps of its width. SDM vol. 2 § 3.1.1.9.
        var linear = address(op, s)
        if aux & 1 == 0 {
            let words = Int64(bitPattern: signExtended(raw)) >> Int64(T.bitWidth.trailingZeroBitCount)
            let shift = UInt64(op.pointee.ashift)
            let offset = effectiveOffset(op, s) &+ UInt64(bitPattern: words &* Int64(T.bitWidth / 8))
            linear = ((offset &<< shift) &>> shift) &+ segmentBase(s, op.pointee.seg)
        }
        if !O.writes {
            guard let loaded: T = load(op, s, linear) else { return 0 }
            old = loaded
        } else if aux & 4 != 0 {
            guard let (before, _): (T, T) = atomicUpdate(op, s, linear, { O.compute($0, mask) }) else { return 0 }
            old = before
        } else {
            guard let loaded: T = loadForWrite(op, s, linear) else { return 0 }
            guard store(op, s, linear, O.compute(loaded, mask)) else { return 0 }
            old = loaded
        }
    }
    setCarryOverflow(s, carry: old & mask != 0, overflow: overflowFlag(s))
    return next(op, s)
}
/// BSF and BSR: a zero source sets ZF and leaves the destination, as processors do.
@inline(__always) func bitScan<T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: T.Type, reverse: Bool
) -> Next {
    let a: T
    if op.pointee.aux & 2 != 0 {
        guard let loaded: T = load(op, s, address(op, s)) else { return 0 }
        a = loaded
    } else {
        a = reg(s, op.pointee.rm)
    }
    setFlagsLogic(s, result: a)
    if a != 0 {
        let index = reverse ? T.bitWidth - 1 - a.leadingZeroBitCount : a.trailingZeroBitCount
        setReg(s, op.pointee.reg, T(truncatingIfNeeded: index))
    }
    return next(op, s)
}

// MARK: multiplication and division

/// The rm operand, register or (aux = 2) memory.
@inline(__always) func operand<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU) -> T? {
    if op.pointee.aux & 2 == 0 { return reg(s, op.pointee.rm) }
    return load(op, s, address(op, s))
}

@inline(__always) func multiply<T: FixedWidthInteger & UnsignedInteger>(
    _ op: Op, _ s: CPU, _: T.Type, signed: Bool
) -> Next {
    guard let b: T = operand(op, s) else { return 0 }
    let a: T = reg(s, 0)
    var (high, low) = a.multipliedFullWidth(by: b)
    var lowT = T(truncatingIfNeeded: low)
    if signed {
        // Unsigned product less the operands that stand for negative numbers.
        if top(a) { high = high &- b }
        if top(b) { high = high &- a }
    }
    if T.bitWidth == 8 {
        setReg(s, 0, UInt16(truncatingIfNeeded: high) << 8 | UInt16(truncatingIfNeeded: lowT))
    } else {
        setReg(s, 0, lowT)
        setReg(s, 16, high)
    }
    let over = signed ? high != (top(lowT) ? T.max : 0) : high != 0
    setFlags(s, result: lowT, carry: over, overflow: over)
    lowT = 0
    low = 0
    return next(op, s)
}
/// IMUL with two or (aux bit 0) three operands.
@inline(__always) func multiplyTruncating<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard let b: T = operand(op, s) else { return 0 }
    let a: T = op.pointee.aux & 1 != 0 ? T(truncatingIfNeeded: op.pointee.imm) : reg(s, op.pointee.reg)
    let low: T
    let over: Bool
    if T.bitWidth == 64 {
        let product = Int64(truncatingIfNeeded: a).multipliedReportingOverflow(by: Int64(truncatingIfNeeded: b))
        low = T(truncatingIfNeeded: product.partialValue)
        over = product.overflow
    } else {
        let product = Int64(bitPattern: signExtended(a)) &* Int64(bitPattern: signExtended(b))
        low = T(truncatingIfNeeded: product)
        over = product != Int64(bitPattern: signExtended(low))
    }
    setReg(s, op.pointee.reg, low)
    setFlags(s, result: low, carry: over, overflow: over)
    return next(op, s)
}
@inline(__always) func divide<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard let d: T = operand(op, s) else { return 0 }
    let high: T
    let low: T
    if T.bitWidth == 8 {
        let ax: UInt16 = reg(s, 0)
        high = T(truncatingIfNeeded: ax >> 8)
        low = T(truncatingIfNeeded: ax)
    } else {
        high = reg(s, 16)
        low = reg(s, 0)
    }
    guard d != 0, high < d else { return raise(op, s, Vector.divide) }
    let (q, r) = d.dividingFullWidth((high, T.Magnitude(truncatingIfNeeded: low)))
    return storeQuotient(op, s, q, r)
}
@inline(__always) private func storeQuotient<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _ q: T, _ r: T) -> Next {
    if T.bitWidth == 8 {
        setReg(s, 0, UInt16(truncatingIfNeeded: r) << 8 | UInt16(truncatingIfNeeded: q))
    } else {
        setReg(s, 0, q)
        setReg(s, 16, r)
    }
    return next(op, s)
}
@inline(__always) func divideSigned<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    guard let d: T = operand(op, s) else { return 0 }
    var high: T
    var low: T
    if T.bitWidth == 8 {
        let ax: UInt16 = reg(s, 0)
        high = T(truncatingIfNeeded: ax >> 8)
        low = T(truncatingIfNeeded: ax)
    } else {
        high = reg(s, 16)
        low = reg(s, 0)
    }
    // Divide magnitudes, then give quotient and remainder their signs; the quotient must fit.
    let negativeDividend = top(high)
    let negativeDivisor = top(d)
    if negativeDividend {
        low = 0 &- low
        high = ~high &+ (low == 0 ? 1 : 0)
    }
    let magnitude = negativeDivisor ? 0 &- d : d
    guard magnitude != 0, high < magnitude else { return raise(op, s, Vector.divide) }
    var (q, r) = magnitude.dividingFullWidth((high, T.Magnitude(truncatingIfNeeded: low)))
    let negative = negativeDividend != negativeDivisor
    if negative ? q > T(1) << T(T.bitWidth - 1) : top(q) { return raise(op, s, Vector.divide) }
    if negative { q = 0 &- q }
    if negativeDividend { r = 0 &- r }
    return storeQuotient(op, s, q, r)
}
