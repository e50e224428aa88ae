/// Instructions with a VEX prefix: AVX, AVX2, FMA, F16C, BMI1, BMI2. Intel SDM vol. 2 § 2.3 and the instructions' own pages.
///
/// What is not exactly allowed must have no plan: the host would refuse the copy.
extension ThunkPlan {
    static func vex(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        var plan: ThunkPlan?
        switch i.map {
        case .two: plan = vexTwo(i, features)
        case .three38: plan = vex38(i, features)
        case .three3A: plan = vex3A(i, features)
        case .one: return nil
        }
        guard var plan else { return nil }
        if plan.vvvv == .none, !i.namesNoThird { return nil }
        plan.isVEX = true
        return plan
    }

    // MARK: the two-byte map: SSE and SSE2 with a third operand

    /// Integer instructions, whose 256-bit forms came with AVX2.
    private static func isInteger(_ opcode: UInt8) -> Bool {
        switch opcode {
        case 0x60...0x6D, 0x70...0x76, 0xD1...0xD5, 0xD7...0xE5, 0xE8...0xEF, 0xF1...0xF6, 0xF8...0xFE: return true
        default: return false
        }
    }
    private static func hasThirdOperand(_ i: Instruction, _ prefix: Prefix) -> Bool {
        let scalar = prefix == .f3 || prefix == .f2
        switch i.opcode {
        case 0x10, 0x11: return scalar && i.mod == 3
        case 0x12, 0x16: return !scalar
        case 0x14, 0x15, 0x54...0x59, 0x5C...0x5F, 0xC2, 0xC4, 0xC6, 0x7C, 0x7D, 0xD0: return true
        case 0x2A, 0x51...0x53, 0x5A: return scalar
        case 0x60...0x6D, 0x74...0x76, 0xD1...0xD5, 0xD8...0xE5, 0xE8...0xEF, 0xF1...0xF6, 0xF8...0xFE: return true
        default: return false
        }
    }
    private static func vexTwo(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        let prefix = Prefix(i)
        guard features.contains(.avx), i.opcode != 0xC3, var plan = sse(i), plan.reg != .mmx, plan.rm != .mmx else { return nil }
        let scalar = prefix == .f3 || prefix == .f2
        switch i.opcode {
        case 0x12 where scalar, 0x16 where scalar: break
        case 0x12, 0x13, 0x16, 0x17, 0x6E, 0x7E, 0xD6, 0xC4, 0xC5: if i.vexL { return nil }
        default: break
        }
        if i.vexL, isInteger(i.opcode), !features.contains(.avx2) { return nil }
        let alignedForms: Bool
        switch i.opcode {
        case 0x28, 0x29, 0x2B, 0xE7: alignedForms = true
        case 0x6F, 0x7F: alignedForms = prefix == .p66
        default: alignedForms = false
        }
        plan.aligned = alignedForms
        plan.memory = vexMemory(i, prefix, plan.memory)
        if hasThirdOperand(i, prefix) { plan.vvvv = .xmm }
        if (0x71...0x73).contains(i.opcode) {
            plan.vvvv = .xmm
            (plan.writesV, plan.readsV, plan.writesRM) = (true, false, false)
        }
        return plan
    }
    private static func vexMemory(_ i: Instruction, _ prefix: Prefix, _ legacy: Int) -> Int {
        switch (i.opcode, prefix) {
        case (0x12, .f2): return i.vexL ? 32 : 8
        case (0xD1...0xD3, _), (0xE1, _), (0xE2, _), (0xF1...0xF3, _): return 16
        case (0x5A, .none), (0xE6, .f3): return i.vexL ? 16 : 8
        default: return i.vexL && legacy == 16 ? 32 : legacy
        }
    }

    // MARK: 0F 38

    private static func vex38(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        if i.opcode >= 0xF0 { return bits(i, features) }
        let width = i.vexL ? 32 : 16
        guard Prefix(i) == .p66, features.contains(.avx) else { return nil }
        var plan = ThunkPlan()
        plan.memory = width
        /// AVX for 128 bits, AVX2 for 256.
        let integer = !i.vexL || features.contains(.avx2)
        switch i.opcode {
        case 0x00...0x0B, 0x28, 0x29, 0x2B, 0x37...0x40:
            plan.vvvv = .xmm
            return integer ? plan : nil
        case 0x1C...0x1E: return integer ? plan : nil
        case 0x41: return i.vexL ? nil : plan
        case 0x17, 0x0E, 0x0F:
            if i.opcode != 0x17, i.rexW { return nil }
            plan.writesReg = false
            plan.setsFlags = true
            return plan
        case 0x20...0x25, 0x30...0x35:
            plan.extend(i.opcode)
            if i.vexL { plan.memory *= 2 }
            return integer ? plan : nil
        case 0x2A:
            plan.aligned = true
            return i.isMemory && integer ? plan : nil
        case 0xDB: return features.contains(.aes) && !i.vexL ? plan : nil
        case 0xDC...0xDF:
            plan.vvvv = .xmm
            return features.contains(.aes) && !i.vexL ? plan : nil
        case 0x0C, 0x0D:
            plan.vvvv = .xmm
            return i.rexW ? nil : plan
        case 0x13:
            plan.memory = width / 2
            return features.contains(.f16c) && !i.rexW ? plan : nil
        case 0x16, 0x36:
            plan.vvvv = .xmm
            return features.contains(.avx2) && i.vexL && !i.rexW ? plan : nil
        case 0x18, 0x19, 0x1A, 0x58, 0x59, 0x5A, 0x78, 0x79: return broadcast(i, features)
        case 0x45, 0x47:
            plan.vvvv = .xmm
            return features.contains(.avx2) ? plan : nil
        case 0x46:
            plan.vvvv = .xmm
            return features.contains(.avx2) && !i.rexW ? plan : nil
        case 0x96...0x9F, 0xA6...0xAF, 0xB6...0xBF:
            plan.vvvv = .xmm
            if i.opcode & 15 > 8, i.opcode & 1 == 1 { plan.memory = i.rexW ? 8 : 4 }
            return features.contains(.fma) ? plan : nil
        default: return nil
        }
    }
    private static func broadcast(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        var plan = ThunkPlan()
        plan.readsReg = false
        plan.memory = [0x18: 4, 0x19: 8, 0x1A: 16, 0x58: 4, 0x59: 8, 0x5A: 16, 0x78: 1, 0x79: 2][i.opcode] ?? 0
        if i.rexW { return nil }
        switch i.opcode {
        case 0x18: return i.isMemory || features.contains(.avx2) ? plan : nil
        case 0x19: return i.vexL && (i.isMemory || features.contains(.avx2)) ? plan : nil
        case 0x1A: return i.vexL && i.isMemory ? plan : nil
        case 0x5A: return i.vexL && i.isMemory && features.contains(.avx2) ? plan : nil
        default: return features.contains(.avx2) ? plan : nil
        }
    }
    /// BMI1 and BMI2: general registers.
    private static func bits(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        guard !i.vexL else { return nil }
        var plan = general(i.rexW ? 8 : 4)
        plan.readsReg = false
        plan.vvvv = .gpr
        switch (i.opcode, Prefix(i)) {
        case (0xF2, .none), (0xF7, .none):
            plan.setsFlags = true
            return features.contains(.bmi1) ? plan : nil
        case (0xF3, .none):
            plan.setsFlags = true
            plan.reg = .none
            (plan.writesReg, plan.readsV, plan.writesV) = (false, false, true)
            return features.contains(.bmi1) && (1...3).contains(i.group) ? plan : nil
        case (0xF5, .none):
            plan.setsFlags = true
            return features.contains(.bmi2) ? plan : nil
        case (0xF5, .f3), (0xF5, .f2), (0xF7, .p66), (0xF7, .f3), (0xF7, .f2): return features.contains(.bmi2) ? plan : nil
        case (0xF6, .f2):
            (plan.readsV, plan.writesV, plan.readsRDX) = (false, true, true)
            return features.contains(.bmi2) ? plan : nil
        default: return nil
        }
    }

    // MARK: 0F 3A

    private static func vex3A(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        var plan = ThunkPlan()
        plan.hasImmediate = true
        if i.opcode == 0xF0 {  // RORX
            guard Prefix(i) == .f2, !i.vexL, features.contains(.bmi2) else { return nil }
            plan = general(i.rexW ? 8 : 4)
            plan.hasImmediate = true
            plan.readsReg = false
            return plan
        }
        guard Prefix(i) == .p66, features.contains(.avx) else { return nil }
        plan.memory = i.vexL ? 32 : 16
        let avx2 = features.contains(.avx2)
        let integer = !i.vexL || avx2
        switch i.opcode {
        case 0x00, 0x01: return avx2 && i.vexL && i.rexW ? plan : nil
        case 0x02:
            plan.vvvv = .xmm
            return avx2 && !i.rexW ? plan : nil
        case 0x04, 0x05: return i.rexW ? nil : plan
        case 0x06, 0x46:
            plan.vvvv = .xmm
            return i.vexL && !i.rexW && (i.opcode == 0x06 || avx2) ? plan : nil
        case 0x08, 0x09: return plan
        case 0x0A, 0x0B:
            plan.element(i)
            plan.vvvv = .xmm
            return plan
        case 0x0C, 0x0D, 0x40:
            plan.vvvv = .xmm
            return plan
        case 0x0E, 0x0F, 0x42:
            plan.vvvv = .xmm
            return integer ? plan : nil
        case 0x14...0x17:
            plan.element(i)
            return i.vexL ? nil : plan
        case 0x20...0x22:
            plan.element(i)
            plan.vvvv = .xmm
            return i.vexL ? nil : plan
        case 0x18, 0x38:
            plan.vvvv = .xmm
            plan.memory = 16
            return i.vexL && !i.rexW && (i.opcode == 0x18 || avx2) ? plan : nil
        case 0x19, 0x39:
            plan.memory = 16
            plan.store()
            return i.vexL && !i.rexW && (i.opcode == 0x19 || avx2) ? plan : nil
        case 0x1D:
            plan.memory /= 2
            plan.store()
            return features.contains(.f16c) && !i.rexW ? plan : nil
        case 0x41, 0x44:
            plan.vvvv = .xmm
            return !i.vexL && (i.opcode == 0x41 || features.contains(.pclmul)) ? plan : nil
        case 0x4A...0x4C:
            plan.vvvv = .xmm
            plan.fourth = .xmm
            return !i.rexW && (i.opcode != 0x4C || integer) ? plan : nil
        case 0x60...0x63:
            plan.text(i.opcode)
            return i.vexL ? nil : plan
        case 0xDF: return features.contains(.aes) && !i.vexL ? plan : nil
        default: return nil
        }
    }
}

extension Instruction {
    /// FMA, Intel SDM vol. 2, VFMADD132PD and those behind it.
    var isFusedMultiplyAdd: Bool {
        switch (map, opcode) {
        case (.three38, 0x96...0x9F), (.three38, 0xA6...0xAF), (.three38, 0xB6...0xBF): isVEX
        default: false
        }
    }
    /// W where it means something. Elsewhere processors differ in whether they let it be set: the copy has it clear.
    var significantW: Bool {
        switch (map, opcode) {
        case (.two, 0x6E), (.two, 0x7E), (.two, 0x2A), (.two, 0x2C), (.two, 0x2D): return rexW
        case (.three38, 0x45...0x47), (.three38, 0x96...0x9F), (.three38, 0xA6...0xAF), (.three38, 0xB6...0xBF), (.three38, 0xF2...0xF7): return rexW
        case (.three3A, 0x00), (.three3A, 0x01), (.three3A, 0x16), (.three3A, 0x22), (.three3A, 0x60), (.three3A, 0x61), (.three3A, 0xF0): return rexW
        default: return false
        }
    }
}
