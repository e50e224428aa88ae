import CX86

// Lazy arithmetic flags. `fres` is the last result, sign-extended to 64 bits; `faux` holds what it cannot tell:
//
//   bit 63  CF          bit 3      AF
//   bit 62  CF xor OF   bit 0      inverts SF
//   bits 15-8           xored with the low byte of fres before PF is taken
//
// so that ZF, SF and PF cost nothing until somebody asks, and any combination (POPF, SAHF) can be expressed.

/// EFLAGS. SDM vol. 1 § 3.4.3.
enum EFlags {
    static let cf: UInt64 = 1 << 0
    static let pf: UInt64 = 1 << 2
    static let af: UInt64 = 1 << 4
    static let zf: UInt64 = 1 << 6
    static let sf: UInt64 = 1 << 7
    static let tf: UInt64 = 1 << 8
    static let interruptEnable: UInt64 = 1 << 9
    static let df: UInt64 = 1 << 10
    static let of: UInt64 = 1 << 11
    static let iopl: UInt64 = 3 << 12
    static let nt: UInt64 = 1 << 14
    static let rf: UInt64 = 1 << 16
    static let vm: UInt64 = 1 << 17
    static let ac: UInt64 = 1 << 18
    static let vif: UInt64 = 1 << 19
    static let vip: UInt64 = 1 << 20
    static let id: UInt64 = 1 << 21
    static let arithmetic: UInt64 = cf | pf | af | zf | sf | of
}

private let carryBit: UInt64 = 1 << 63
private let carryOverflowMask: UInt64 = 3 << 62

@inline(__always) func signExtended<T: FixedWidthInteger>(_ value: T) -> UInt64 {
    let unused = UInt64(64 - T.bitWidth)
    return UInt64(bitPattern: Int64(bitPattern: UInt64(truncatingIfNeeded: value) &<< unused) &>> Int64(unused))
}

/// Records `carries`, the vector of carries (or borrows) out of each bit.
@inline(__always) func setFlags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, result: T, carries: T) {
    s.pointee.fres = signExtended(result)
    let wide = UInt64(truncatingIfNeeded: carries)
    s.pointee.faux = ((wide &<< UInt64(64 - T.bitWidth)) & carryOverflowMask) | (wide & 8)
}
@inline(__always) func setFlagsLogic<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, result: T) {
    s.pointee.fres = signExtended(result)
    s.pointee.faux = 0
}
@inline(__always) func setFlags<T: FixedWidthInteger & UnsignedInteger>(_ s: CPU, result: T, carry: Bool, overflow: Bool) {
    s.pointee.fres = signExtended(result)
    s.pointee.faux = (carry ? carryBit : 0) | (carry != overflow ? 1 << 62 : 0)
}
@inline(__always) func setCarryOverflow(_ s: CPU, carry: Bool, overflow: Bool) {
    s.pointee.faux =
        (s.pointee.faux & ~carryOverflowMask) | (carry ? carryBit : 0) | (carry != overflow ? 1 << 62 : 0)
}

@inline(__always) func carryFlag(_ s: CPU) -> Bool { Int64(bitPattern: s.pointee.faux) < 0 }
@inline(__always) func zeroFlag(_ s: CPU) -> Bool { s.pointee.fres == 0 }
@inline(__always) func signFlag(_ s: CPU) -> Bool { ((s.pointee.fres &>> 63) ^ s.pointee.faux) & 1 != 0 }
@inline(__always) func overflowFlag(_ s: CPU) -> Bool {
    Int64(bitPattern: s.pointee.faux ^ (s.pointee.faux &<< 1)) < 0
}
@inline(__always) func parityFlag(_ s: CPU) -> Bool {
    ((s.pointee.fres ^ (s.pointee.faux &>> 8)) & 0xFF).nonzeroBitCount & 1 == 0
}
@inline(__always) func auxiliaryFlag(_ s: CPU) -> Bool { s.pointee.faux & 8 != 0 }

@inline(__always) func setCarry(_ s: CPU, _ carry: Bool) {
    setCarryOverflow(s, carry: carry, overflow: overflowFlag(s))
}

/// Whether condition `code` (the low four bits of Jcc) holds. SDM vol. 1 appendix B.
@inline(__always) func condition(_ s: CPU, _ code: UInt8) -> Bool {
    let holds: Bool
    switch code >> 1 {
    case 0: holds = overflowFlag(s)
    case 1: holds = carryFlag(s)
    case 2: holds = zeroFlag(s)
    case 3: holds = carryFlag(s) || zeroFlag(s)
    case 4: holds = signFlag(s)
    case 5: holds = parityFlag(s)
    case 6: holds = signFlag(s) != overflowFlag(s)
    default: holds = zeroFlag(s) || signFlag(s) != overflowFlag(s)
    }
    return holds != (code & 1 != 0)
}

/// EFLAGS with the lazy flags put in.
func flagsImage(_ s: CPU) -> UInt64 {
    var value = s.pointee.rflags | 2
    if carryFlag(s) { value |= EFlags.cf }
    if parityFlag(s) { value |= EFlags.pf }
    if auxiliaryFlag(s) { value |= EFlags.af }
    if zeroFlag(s) { value |= EFlags.zf }
    if signFlag(s) { value |= EFlags.sf }
    if overflowFlag(s) { value |= EFlags.of }
    return value
}

/// Takes the arithmetic flags from `image` and leaves the others.
func setArithmeticFlags(_ s: CPU, _ image: UInt64) { (s.pointee.fres, s.pointee.faux) = lazyFlags(image) }

/// `fres` and `faux` for given arithmetic flags.
func lazyFlags(_ image: UInt64) -> (fres: UInt64, faux: UInt64) {
    let zero = image & EFlags.zf != 0
    let sign = image & EFlags.sf != 0
    let parity = image & EFlags.pf != 0
    let carry = image & EFlags.cf != 0
    let overflow = image & EFlags.of != 0
    let fres: UInt64 = zero ? 0 : (sign ? 1 << 63 : 1 << 8)
    let faux: UInt64 =
        (carry ? 1 << 63 : 0) | (carry != overflow ? 1 << 62 : 0) | (image & EFlags.af != 0 ? 8 : 0)
        | (parity ? 0 : 1 << 8) | (zero && sign ? 1 : 0)
    return (fres, faux)
}
