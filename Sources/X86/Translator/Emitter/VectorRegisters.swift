import CX86

/// Which vector registers a segment has in the host's, and which of those must go back to the state.
struct VectorRegisters: Equatable {
    /// What an instruction does with the registers it names: SSE leaves the upper halves alone, VEX clears or uses them.
    enum Width { case legacy, vex128, vex256 }

    /// In the host's register: the lower half at least, or all of it.
    private(set) var loaded: UInt16 = 0
    private(set) var whole: UInt16 = 0
    /// Written: the lower half, or all of it.
    private(set) var dirty: UInt16 = 0
    private(set) var wholeDirty: UInt16 = 0
    /// An upper half may have become something else than zero.
    private(set) var usesUpper = false

    mutating func use(_ n: UInt8, reads: Bool, writes: Bool, _ width: Width, _ code: inout Assembler) {
        let bit = UInt16(1) << UInt16(n)
        if reads {
            if width == .vex256, whole & bit == 0 {
                if dirty & bit != 0 {
                    code.storeVector(n)
                    dirty &= ~bit
                }
                code.loadWholeVector(n)
                whole |= bit
            } else if loaded & bit == 0 {
                code.loadVector(n)
            }
            loaded |= bit
        }
        guard writes else { return }
        loaded |= bit
        switch width {
        case .legacy: dirty |= bit
        case .vex128, .vex256:
            whole |= bit
            wholeDirty |= bit
            if width == .vex256 { usesUpper = true }
        }
    }
    /// Whether `store` has nothing to do.
    var areStored: Bool { dirty | wholeDirty | whole == 0 && !usesUpper }
    /// Everything written, to the state. Changes no flags.
    func store(_ code: inout Assembler) {
        for n in 0..<16 as Range<UInt8> {
            if wholeDirty >> UInt16(n) & 1 != 0 { code.storeWholeVector(n) } else if dirty >> UInt16(n) & 1 != 0 { code.storeVector(n) }
        }
        if usesUpper { code.noteUpperHalves() }
        // Upper halves in use make the host's SSE code slow.
        if whole != 0 { code.zeroUpperHalves() }
    }
    /// What `store` wrote is in its place now.
    mutating func clean() {
        (dirty, wholeDirty) = (0, 0)
        usesUpper = false
        if whole != 0 { (loaded, whole) = (0, 0) }
    }
}

extension Assembler {
    mutating func loadVector(_ n: UInt8) { op(0x10, reg: n, Host.vectorHome(n), wide: false, map: 1) }
    mutating func storeVector(_ n: UInt8) { op(0x11, reg: n, Host.vectorHome(n), wide: false, map: 1) }
    mutating func loadWholeVector(_ n: UInt8) { vex(0x10, reg: n, vvvv: 0, Host.vectorHome(n), map: 1, prefix: 0, wide: false, long: true) }
    mutating func storeWholeVector(_ n: UInt8) { vex(0x11, reg: n, vvvv: 0, Host.vectorHome(n), map: 1, prefix: 0, wide: false, long: true) }
    mutating func zeroUpperHalves() { bytes(0xC5, 0xF8, 0x77) }
    mutating func noteUpperHalves() {
        op(0xC6, reg: 0, Host.cell(Int(X86_UPPER_IN_USE_OFFSET)), wide: false)
        byte(1)
    }
}
