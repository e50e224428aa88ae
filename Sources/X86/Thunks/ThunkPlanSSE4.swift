/// The three-byte opcodes without VEX: SSSE3, SSE4.1, SSE4.2, AES, PCLMULQDQ, SHA, MOVBE; POPCNT, TZCNT, LZCNT.
extension ThunkPlan {
    /// Counting instructions of the two-byte map, which are others without their F3 prefix.
    static func counting(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        guard i.map == .two, i.rep == 0xF3, !i.isVEX else { return nil }
        switch i.opcode {
        case 0xB8 where features.contains(.popcnt), 0xBC where features.contains(.bmi1), 0xBD where features.contains(.lzcnt): break
        default: return nil
        }
        var plan = general(Int(i.operandSize))
        plan.setsFlags = true
        plan.readsReg = i.operandSize == 2
        return plan
    }
    static func general(_ size: Int) -> ThunkPlan {
        var plan = ThunkPlan()
        (plan.reg, plan.rm, plan.memory, plan.isSizedByPrefix) = (.gpr, .gpr, size, true)
        return plan
    }

    static func three38(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        let prefix = Prefix(i)
        var plan = ThunkPlan()
        plan.aligned = true
        if i.opcode == 0xF0 || i.opcode == 0xF1 { return byteOrder(i, features) }
        if (0xC8...0xCD).contains(i.opcode) {
            guard prefix == .none, features.contains(.sha) else { return nil }
            plan.implicitXMM0 = i.opcode == 0xCB
            return plan
        }
        let ssse3 = i.opcode < 0x0C || (0x1C...0x1E).contains(i.opcode)
        if ssse3, prefix == .none, features.contains(.ssse3) {
            (plan.reg, plan.rm, plan.memory, plan.aligned) = (.mmx, .mmx, 8, false)
            return plan
        }
        guard prefix == .p66 else { return nil }
        let needed: X86Features
        switch i.opcode {
        case 0x00...0x0B: needed = .ssse3
        case 0x1C...0x1E:
            needed = .ssse3
            plan.readsReg = false
        case 0x10, 0x14, 0x15:
            needed = .sse41
            plan.implicitXMM0 = true
        case 0x17:
            needed = .sse41
            plan.writesReg = false
            plan.setsFlags = true
        case 0x20...0x25, 0x30...0x35:
            needed = .sse41
            plan.extend(i.opcode)
        case 0x2A:
            guard i.isMemory else { return nil }
            needed = .sse41
            plan.readsReg = false
        case 0x28, 0x29, 0x2B, 0x38...0x40: needed = .sse41
        case 0x41:
            needed = .sse41
            plan.readsReg = false
        case 0x37: needed = .sse42
        case 0xDB:
            needed = .aes
            plan.readsReg = false
        case 0xDC...0xDF: needed = .aes
        default: return nil
        }
        return features.contains(needed) ? plan : nil
    }
    /// PMOVSX and PMOVZX: how much they read.
    mutating func extend(_ opcode: UInt8) {
        readsReg = false
        aligned = false
        memory = [8, 4, 2, 8, 4, 8][Int(opcode & 7)]
    }
    /// CRC32 and MOVBE share opcodes.
    private static func byteOrder(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        if i.rep == 0xF2 {
            guard features.contains(.sse42) else { return nil }
            var plan = general(i.opcode == 0xF0 ? 1 : Int(i.operandSize))
            plan.byteRM = i.opcode == 0xF0
            return plan
        }
        guard i.rep == 0, i.isMemory, features.contains(.movbe) else { return nil }
        var plan = general(Int(i.operandSize))
        plan.readsReg = i.operandSize == 2
        if i.opcode == 0xF1 {
            plan.readsReg = true
            plan.store()
        }
        return plan
    }

    static func three3A(_ i: Instruction, _ features: X86Features) -> ThunkPlan? {
        let prefix = Prefix(i)
        var plan = ThunkPlan()
        plan.aligned = true
        plan.hasImmediate = true
        if i.opcode == 0xCC { return prefix == .none && features.contains(.sha) ? plan : nil }
        if i.opcode == 0x0F, prefix == .none, features.contains(.ssse3) {
            (plan.reg, plan.rm, plan.memory, plan.aligned) = (.mmx, .mmx, 8, false)
            return plan
        }
        guard prefix == .p66 else { return nil }
        let needed: X86Features
        switch i.opcode {
        case 0x0F: needed = .ssse3
        case 0x08, 0x09:
            needed = .sse41
            plan.readsReg = false
        case 0x0C...0x0E, 0x40...0x42: needed = .sse41
        case 0x0A, 0x0B, 0x14...0x17, 0x20...0x22:
            needed = .sse41
            plan.element(i)
        case 0x44: needed = .pclmul
        case 0x60...0x63:
            needed = .sse42
            plan.text(i.opcode)
        case 0xDF:
            needed = .aes
            plan.readsReg = false
        default: return nil
        }
        return features.contains(needed) ? plan : nil
    }
    /// Those that move or change one element of a vector.
    mutating func element(_ i: Instruction) {
        aligned = false
        switch i.opcode {
        case 0x0A, 0x21: memory = 4
        case 0x0B: memory = 8
        case 0x14, 0x20: memory = 1
        case 0x15: memory = 2
        case 0x17: memory = 4
        default: memory = i.rexW ? 8 : 4
        }
        if (0x14...0x17).contains(i.opcode) {
            rm = .gpr
            store()
        } else if i.opcode == 0x20 || i.opcode == 0x22 {
            rm = .gpr
        }
    }
    /// PCMPESTRM, PCMPESTRI, PCMPISTRM, PCMPISTRI: lengths in EAX and EDX, result in XMM0 or ECX.
    mutating func text(_ opcode: UInt8) {
        aligned = false
        writesReg = false
        setsFlags = true
        comparesText = true
        writesXMM0 = opcode & 1 == 0
    }
}
