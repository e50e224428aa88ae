/// How an instruction that computes the same at any privilege is run on the host processor itself: which registers it
/// names, what it does with memory. Vector instructions, and what came with them for general registers.
struct ThunkPlan {
    enum Operand { case xmm, mmx, gpr, none }
    var reg = Operand.xmm
    var rm = Operand.xmm
    var readsReg = true
    var writesReg = true
    var writesRM = false
    /// Bytes of a memory operand; 0 when there cannot be one.
    var memory = 16
    /// A memory operand must be 16-byte aligned.
    var aligned = false
    var setsFlags = false
    var hasImmediate = false
    /// Prefix 66 says how wide the operands are, which in 16-bit code is the other way round, and not what is done.
    var isSizedByPrefix = false
    /// The r/m operand is a byte register.
    var byteRM = false

    // VEX
    var isVEX = false
    var vvvv = Operand.none
    var readsV = true
    var writesV = false
    /// A register in the immediate's upper half.
    var fourth = Operand.none

    // Registers that an instruction names by being itself.
    var implicitXMM0 = false
    var writesXMM0 = false
    var readsRDX = false
    var comparesText = false
    var usesVector: Bool { reg == .xmm || rm == .xmm || vvvv == .xmm }

    /// nil when it is not one of these instructions, or not allowed.
    static func plan(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        if i.isVEX { return vex(i, features) }
        switch i.map {
        case .two: return counting(i, features) ?? sse(i)
        case .three38: return three38(i, features)
        case .three3A: return three3A(i, features)
        case .one: return nil
        }
    }

    /// SSE to SSE3 and MMX; for VEX forms the part they share.
    static func sse(_ i: Instruction) -> ThunkPlan? {
        let prefix = Prefix(i)
        var plan = ThunkPlan()
        plan.memory = prefix.floatSize
        switch i.opcode {
        case 0x10:  // MOVUPS MOVUPD MOVSS MOVSD
            plan.readsReg = i.mod == 3
        case 0x11:
            plan.store()
        case 0x12, 0x16:
            // MOVLPS MOVHLPS MOVLPD MOVSLDUP MOVDDUP; MOVHPS MOVLHPS MOVHPD MOVSHDUP
            if prefix == .f2, i.opcode == 0x16 { return nil }
            if prefix == .p66, i.mod == 3 { return nil }
            plan.memory = prefix == .f3 ? 16 : 8
            plan.aligned = prefix == .f3
        case 0x13, 0x17:
            guard prefix == .none || prefix == .p66, i.mod != 3 else { return nil }
            plan.store()
            plan.memory = 8
        case 0x14, 0x15, 0x54...0x57:
            guard prefix == .none || prefix == .p66 else { return nil }
            plan.aligned = true
        case 0x28:
            guard prefix == .none || prefix == .p66 else { return nil }
            plan.aligned = true
            plan.readsReg = false
        case 0x29, 0x2B:
            guard prefix == .none || prefix == .p66, i.opcode == 0x29 || i.mod != 3 else { return nil }
            plan.store()
            plan.aligned = true
        case 0x2A:
            if prefix == .none || prefix == .p66 {
                plan.rm = .mmx
                plan.memory = 8
            } else {
                plan.rm = .gpr
                plan.memory = i.rexW ? 8 : 4
            }
        case 0x2C, 0x2D:
            plan.readsReg = false
            plan.reg = prefix == .none || prefix == .p66 ? .mmx : .gpr
            plan.memory = prefix == .none ? 8 : prefix.floatSize
            plan.aligned = prefix == .p66
        case 0x2E, 0x2F:
            guard prefix == .none || prefix == .p66 else { return nil }
            plan.writesReg = false
            plan.setsFlags = true
            plan.memory = prefix == .none ? 4 : 8
        case 0x50:
            guard prefix == .none || prefix == .p66, i.mod == 3 else { return nil }
            plan.reg = .gpr
            plan.readsReg = false
        case 0x51, 0x58, 0x59, 0x5C...0x5F:
            plan.aligned = prefix == .none || prefix == .p66
        case 0x52, 0x53:
            guard prefix == .none || prefix == .f3 else { return nil }
            plan.aligned = prefix == .none
        case 0x5A:
            if prefix == .none { plan.memory = 8 }
            plan.aligned = prefix == .p66
        case 0x5B:
            guard prefix != .f2 else { return nil }
            plan.memory = 16
            plan.aligned = true
        case 0xC2, 0xC6:
            if i.opcode == 0xC6 { guard prefix == .none || prefix == .p66 else { return nil } }
            plan.aligned = prefix == .none || prefix == .p66
            plan.hasImmediate = true
        case 0x7C, 0x7D, 0xD0:
            guard prefix == .p66 || prefix == .f2 else { return nil }
            plan.memory = 16
            plan.aligned = true
        case 0xF0:
            guard prefix == .f2, i.mod != 3 else { return nil }
            plan.memory = 16
            plan.readsReg = false
        case 0xC3:
            guard prefix == .none, i.mod != 3 else { return nil }
            plan.store()
            plan.reg = .gpr
            plan.memory = i.rexW ? 8 : 4
        default:
            return integer(i, prefix)
        }
        return plan
    }

    /// MMX and SSE2 integer instructions, which share opcodes.
    private static func integer(_ i: Instruction, _ prefix: Prefix) -> ThunkPlan? {
        var plan = ThunkPlan()
        let wide = prefix == .p66
        plan.reg = wide ? .xmm : .mmx
        plan.rm = plan.reg
        plan.memory = wide ? 16 : 8
        plan.aligned = wide
        switch i.opcode {
        case 0x6F:
            if prefix == .f3 {
                plan = ThunkPlan()
            } else if prefix == .f2 {
                return nil
            }
            plan.readsReg = false
        case 0x7F:
            if prefix == .f3 {
                plan = ThunkPlan()
            } else if prefix == .f2 {
                return nil
            }
            plan.store()
        case 0x70:
            if prefix == .f3 || prefix == .f2 {
                plan = ThunkPlan()
                plan.aligned = true
            }
            plan.readsReg = false
            plan.hasImmediate = true
        case 0x7E:
            if prefix == .f3 {
                plan = ThunkPlan()
                plan.memory = 8
                plan.readsReg = false
            } else {
                guard prefix != .f2 else { return nil }
                plan.store()
                plan.rm = .gpr
                plan.memory = i.rexW ? 8 : 4
                plan.aligned = false
            }
        case 0x6E:
            guard prefix == .none || wide else { return nil }
            plan.readsReg = false
            plan.rm = .gpr
            plan.memory = i.rexW ? 8 : 4
            plan.aligned = false
        case 0x71...0x73:
            guard prefix == .none || wide, i.mod == 3 else { return nil }
            let allowed: [UInt8] =
                i.opcode == 0x71 || i.opcode == 0x72 ? [2, 4, 6] : (wide ? [2, 3, 6, 7] : [2, 6])
            guard allowed.contains(i.group) else { return nil }
            plan.reg = .none
            plan.writesReg = false
            plan.readsReg = false
            plan.writesRM = true
            plan.hasImmediate = true
        case 0xC4:
            guard prefix == .none || wide else { return nil }
            plan.rm = .gpr
            plan.memory = 2
            plan.aligned = false
            plan.hasImmediate = true
        case 0xC5, 0xD7:
            guard prefix == .none || wide, i.mod == 3 else { return nil }
            plan.reg = .gpr
            plan.readsReg = false
            plan.hasImmediate = i.opcode == 0xC5
        case 0xD6:
            switch prefix {
            case .p66:
                plan.store()
                plan.memory = 8
                plan.aligned = false
            case .f3:
                guard i.mod == 3 else { return nil }
                plan.reg = .xmm
                plan.rm = .mmx
            case .f2:
                guard i.mod == 3 else { return nil }
                plan.reg = .mmx
                plan.rm = .xmm
            case .none: return nil
            }
        case 0xE6:
            guard prefix != .none else { return nil }
            plan = ThunkPlan()
            plan.memory = prefix == .f3 ? 8 : 16
            plan.aligned = prefix != .f3
            plan.readsReg = false
        case 0xE7:
            guard prefix == .none || wide, i.mod != 3 else { return nil }
            plan.store()
        case 0x60...0x62:
            guard prefix == .none || wide else { return nil }
            if !wide { plan.memory = 4 }
        case 0x6C, 0x6D:
            guard wide else { return nil }
        case 0x63...0x6B, 0x74...0x76, 0xD1...0xD5, 0xD8...0xDF, 0xE0...0xE5, 0xE8...0xEF, 0xF1...0xF6, 0xF8...0xFE:
            guard prefix == .none || wide else { return nil }
        default:
            return nil
        }
        return plan
    }

    mutating func store() {
        writesReg = false
        writesRM = true
    }

    enum Prefix {
        case none, p66, f3, f2

        init(_ i: Instruction) { self = i.rep == 0xF3 ? .f3 : i.rep == 0xF2 ? .f2 : i.has66 ? .p66 : .none }
        var floatSize: Int {
            switch self {
            case .none, .p66: return 16
            case .f3: return 4
            case .f2: return 8
            }
        }
    }
}
