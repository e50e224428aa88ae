import CX86

// One instruction each.
extension BlockTranslator {
    /// One line, and what is known of r11 afterwards.
    mutating func emitHolding(_ line: Line) {
        let before = held.flatMap { $0.at == code.here ? $0.window : nil }
        usedWindow = nil
        let flagsBefore = flags
        let scratchBefore = scratch.flatMap { $0.at == code.here ? $0.home : nil }
        emit(line)
        if let scratchBefore, leavesScratch(line) { scratch = (scratchBefore, code.here) }
        let moved = flags == .memory && flagsBefore == .host
        if let window = usedWindow {
            held = keepsAddress(line) ? (window, code.here) : nil
        } else if let before, !moved, leavesAddress(line) {
            held = (before, code.here)
        } else {
            held = nil
        }
    }
    /// Whether r11 is after the line what its operand put there.
    private func keepsAddress(_ line: Line) -> Bool {
        switch line.plan.kind {
        case .pushRegister, .pushImmediate: return true
        case .popRegister:
            let n = (line.instruction.opcode & 7) | line.instruction.opcodeRegisterExtension
            return n != 4 && Host.register(n) != nil
        case .modRM: return !line.plan.aligned
        default: return false
        }
    }
    /// Whether a line without memory operand leaves r11 alone.
    private func leavesAddress(_ line: Line) -> Bool {
        let i = line.instruction
        switch line.plan.kind {
        case .moveImmediate, .nop: return true
        case .modRM: return !i.isMemory && (line.plan.rm != .general || Host.register(i.rm) != nil)
        case .lea: return Host.register(i.reg) != nil && !i.isRIPRelative && i.operandSize > 2 && i.base >= 0 && Host.register(UInt8(i.base)) != nil
        default: return false
        }
    }

    mutating func emit(_ line: Line) {
        if stackMove != 0, !mayMoveStackLater(line) { writeStackPointer() }
        if line.plan.usesVector || line.plan.isX87 || line.plan.kind == .zeroUpper { checkVectors(line) }
        switch line.plan.kind {
        case .modRM: modRM(line)
        case .pushRegister: pushRegister(line)
        case .popRegister: popRegister(line)
        case .pushImmediate:
            code.op(0xC7, reg: 0, pushOperand(line), wide: !isNarrow)
            code.int32(Int32(truncatingIfNeeded: line.instruction.immediate))
            moveStack(-Int32(word))
        case .pushMemory: pushMemory(line)
        case .leave:
            let operand = stackOperand(line, base: 5, displacement: 0, write: false)
            code.lea(Host.guestRSP, .memory(base: 5, displacement: Int32(word)), wide: !isNarrow)
            loadWord(5, operand)
        case .exchangeAccumulator: exchangeAccumulator(line.instruction)
        case .moveImmediate: moveImmediate(line.instruction)
        case .byteSwap: byteSwap(line.instruction)
        case .divide: divide(line)
        case .loadControl: loadControl(line)
        case .pushFlags: pushFlags(line)
        case .clearInterrupt: clearInterrupt(line)
        case .setInterrupt: setInterrupt(line)
        case .plain: plain(line)
        case .moveFromSegment: moveFromSegment(line)
        case .swapGS: swapGS(line)
        case .storeString: storeString(line)
        case .moveString: moveString(line)
        case .bitString: bitString(line)
        case .setDirection: setDirection(line)
        case .fence: code.bytes(0x0F, 0xAE, 0xC0 | line.instruction.group << 3)
        case .lea: lea(line)
        case .zeroUpper: zeroUpper(line)
        case .emptyMMX: code.bytes(0x0F, 0x77)
        case .nop: break
        case .pause: pause(line)
        case .jump: line.isFollowed ? follow(line) : edge(line, to: target(line))
        case .conditional: conditional(line)
        case .call: call(line)
        case .ret: ret(line)
        case .jumpIndirect: jumpIndirect(line)
        case .callIndirect: callIndirect(line)
        }
        if line.plan.definesFlags || line.plan.mergesFlags { flags = .host }
    }

    /// Now and then the interpreter's.
    private mutating func pause(_ line: Line) {
        aboutToClobber(line)
        code.op(0x83, reg: 5, Host.cell(Int(X86_PAUSES_OFFSET)), wide: false)  // sub …, 1
        code.byte(1)
        slowPath(Jumps(code.jump(if: 8)), line)
        code.bytes(0xF3, 0x90)
    }
    mutating func modRM(_ line: Line) {
        if onHome(line) { return }
        let (i, plan) = (line.instruction, line.plan)
        let isByte = plan.byteReg || plan.byteRM
        let legacyByte = isByte && !i.hasREX
        var regField = i.reg & 7
        var regHome: UInt8?
        var rmOperand = Self.checked
        var rmHome: UInt8?
        func host(_ n: UInt8, byte: Bool) -> UInt8? { byte && legacyByte ? n : Host.register(n) }

        if i.isMemory { rmOperand = memoryOperand(line) }
        if plan.reg == .general {
            if let register = host(i.reg, byte: plan.byteReg) {
                regField = register
            } else {
                regField = Host.scratch
                regHome = i.reg
                let partial = plan.writesReg && (plan.byteReg || (i.operandSize == 2 && plan.rm != .vector))
                if plan.readsReg || partial { loadHome(i.reg, into: Host.scratch) }
            }
        } else if plan.reg == .vector {
            regField = i.reg
        }
        if !i.isMemory {
            if plan.rm == .vector {
                rmOperand = .register(i.rm)
            } else if plan.rm == .none {
                rmOperand = .register(i.rm & 7)
            } else if let register = host(i.rm, byte: plan.byteRM) {
                rmOperand = .register(register)
            } else {
                rmOperand = .register(Host.address)
                rmHome = i.rm
                if plan.readsRM || (plan.writesRM && plan.size < 4) { loadHome(i.rm, into: Host.address) }
            }
        }
        var third: UInt8 = 0
        var thirdHome: UInt8?
        if plan.vvvv == .general {
            third = Host.register(i.vvvv) ?? Host.scratch
            if Host.register(i.vvvv) == nil {
                thirdHome = i.vvvv
                if plan.readsV { code.load(Host.scratch, Host.home(i.vvvv)) }
            }
        } else if plan.vvvv == .vector {
            third = i.vvvv
        }
        if plan.usesVector || plan.readsXMM0 || plan.writesXMM0 {
            useVectors(line, reads: true)
            useVectors(line, reads: false)
        }
        needFlags(line)
        if plan.isVEX {
            let prefix: UInt8 = i.has66 ? 1 : (i.rep == 0xF3 ? 2 : (i.rep == 0xF2 ? 3 : 0))
            code.vex(i.opcode, reg: regField, vvvv: third, rmOperand, map: UInt8(i.map.number), prefix: prefix, wide: i.significantW, long: i.vexL)
        } else {
            code.op(
                i.opcode, reg: regField, rmOperand, wide: i.rexW, map: UInt8(i.map.number), operand16: i.has66,
                rep: plan.isExtended ? i.rep : 0, lock: i.hasLock, forceREX: isByte && i.hasREX)
        }
        if plan.immediateSize > 0 { code.immediate(i.immediate, size: plan.immediateSize) }
        if let regHome, plan.writesReg { storeScratch(regHome) }
        // XADD of a register with itself leaves the sum.
        if let rmHome, plan.writesRM { code.store(Host.address, Host.home(rmHome)) }
        if let thirdHome, plan.writesV { storeScratch(thirdHome) }
    }
    /// Everything read before anything written: they may be the same register.
    mutating func useVectors(_ line: Line, reads: Bool) {
        let (i, plan) = (line.instruction, line.plan)
        func use(_ n: UInt8, _ isRead: Bool, _ isWritten: Bool) {
            if reads ? isRead : isWritten { useVector(n, reads: reads, writes: !reads, line) }
        }
        if plan.rm == .vector, !i.isMemory { use(i.rm, plan.readsRM, plan.writesRM) }
        if plan.vvvv == .vector { use(i.vvvv, plan.readsV, plan.writesV) }
        if plan.fourth == .vector { use(UInt8(truncatingIfNeeded: i.immediate >> 4) & 15, true, false) }
        use(0, plan.readsXMM0, plan.writesXMM0)
        if plan.reg == .vector { use(i.reg, plan.readsReg, plan.writesReg) }
    }

    mutating func pushRegister(_ line: Line) {
        let i = line.instruction
        let operand = pushOperand(line)
        let n = i.opcode == 0xFF ? i.rm : (i.opcode & 7) | i.opcodeRegisterExtension
        if let host = Host.register(n) {
            storeWord(host, operand)
        } else {
            code.load(Host.scratch, Host.home(n))
            code.store(Host.scratch, operand)
        }
        moveStack(-Int32(word))
    }
    mutating func popRegister(_ line: Line) {
        let n = (line.instruction.opcode & 7) | line.instruction.opcodeRegisterExtension
        let operand = stackOperand(line, base: Host.guestRSP, displacement: 0, write: false)
        guard n != 4 else { return loadWord(Host.guestRSP, operand) }
        loadWord(Host.register(n) ?? Host.address, operand)
        moveStack(Int32(word))
        if Host.register(n) == nil { code.store(Host.address, Host.home(n)) }
    }
    mutating func pushMemory(_ line: Line) {
        loadWord(Host.address, memoryOperand(line))
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        let operand = pushOperand(line)
        code.load(Host.scratch, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        storeWord(Host.scratch, operand)
        moveStack(-Int32(word))
    }
    /// Puts the address behind a call on the stack; the stack pointer stays.
    mutating func storeReturnAddress(_ line: Line) {
        let operand = pushOperand(line)
        code.load(Host.scratch, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.lea(Host.scratch, .memory(base: Host.scratch, displacement: Int32(following(line))))
        storeWord(Host.scratch, operand)
    }
    mutating func exchangeAccumulator(_ i: Instruction) {
        let n = (i.opcode & 7) | i.opcodeRegisterExtension
        let host = Host.register(n)
        if host == nil { code.load(Host.scratch, Host.home(n)) }
        code.op(0x87, reg: Host.rax, .register(host ?? Host.scratch), wide: i.operandSize == 8, operand16: i.operandSize == 2)
        if host == nil { code.store(Host.scratch, Host.home(n)) }
    }
    mutating func moveImmediate(_ i: Instruction) {
        let n = (i.opcode & 7) | i.opcodeRegisterExtension
        let byte = i.opcode < 0xB8
        if byte, !i.hasREX { return code.bytes(0xB0 | n, UInt8(truncatingIfNeeded: i.immediate)) }
        let host = Host.register(n) ?? Host.scratch
        let isHome = Host.register(n) == nil
        let value = i.operandSize == 8 ? i.immediate : Int64(UInt32(truncatingIfNeeded: i.immediate))
        if isHome, !byte, i.operandSize >= 4, Int64(Int32(truncatingIfNeeded: value)) == value {
            code.op(0xC7, reg: 0, Host.home(n))
            return code.int32(Int32(truncatingIfNeeded: value))
        }
        if byte || i.operandSize == 2 {
            if isHome { code.load(Host.scratch, Host.home(n)) }
            code.op(byte ? 0xC6 : 0xC7, reg: 0, .register(host), wide: false, operand16: !byte, forceREX: byte)
            code.immediate(i.immediate, size: byte ? 1 : 2)
        } else {
            code.moveImmediate(host, UInt64(bitPattern: value))
        }
        if isHome { storeScratch(n) }
    }
    mutating func byteSwap(_ i: Instruction) {
        let n = (i.opcode & 7) | i.opcodeRegisterExtension
        let host = Host.register(n) ?? Host.scratch
        if Host.register(n) == nil { code.load(Host.scratch, Host.home(n)) }
        let rex: UInt8 = (i.operandSize == 8 ? 8 : 0) | (host > 7 ? 1 : 0)
        if rex != 0 { code.byte(0x40 | rex) }
        code.bytes(0x0F, 0xC8 | host & 7)
        if Host.register(n) == nil { code.store(Host.scratch, Host.home(n)) }
    }
    mutating func plain(_ line: Line) {
        let i = line.instruction
        needFlags(line)
        if line.plan.isX87 { return code.bytes(i.opcode, 0xC0 | i.group << 3 | i.rm & 7) }
        if i.has66, !line.plan.byteReg { code.byte(0x66) }
        if i.rexW { code.byte(0x48) }
        code.byte(i.opcode)
        if line.plan.immediateSize > 0 { code.immediate(i.immediate, size: line.plan.immediateSize) }
    }
    /// The interpreter does what may fault: a quotient that does not fit, or, for IDIV, more than a dividend that is one word, sign
    /// extended, by neither 0 nor -1. Flags stay as they are, as the interpreter leaves them.
    mutating func divide(_ line: Line) {
        let i = line.instruction
        let wide = i.operandSize == 8
        if i.isMemory {
            code.op(0x8B, reg: Host.address, memoryOperand(line), wide: wide)
        } else if let host = Host.register(i.rm) {
            code.move(Host.address, host, wide: wide)
        } else {
            code.op(0x8B, reg: Host.address, Host.home(i.rm), wide: wide)
        }
        aboutToClobberHolding(line)
        var jumps = Jumps()
        if i.group == 6 {
            code.op(0x39, reg: Host.address, .register(2), wide: wide)  // cmp rdx, r11
            jumps.append(code.jump(if: 3))
        } else {
            code.move(Host.scratch, Host.rax, wide: wide)
            code.op(0xC1, reg: 7, .register(Host.scratch), wide: wide)  // sar r9, …
            code.byte(wide ? 63 : 31)
            code.op(0x39, reg: 2, .register(Host.scratch), wide: wide)  // cmp r9, rdx
            jumps.append(code.jump(if: 5))
            code.lea(Host.scratch, .memory(base: Host.address, displacement: 1), wide: wide)
            code.op(0x83, reg: 7, .register(Host.scratch), wide: wide)  // cmp r9, 1
            code.byte(1)
            jumps.append(code.jump(if: 6))
        }
        slowPath(jumps, line)
        code.op(0xF7, reg: i.group, .register(Host.address), wide: wide)
    }
    /// As `aboutToClobber`, with r11 kept.
    private mutating func aboutToClobberHolding(_ line: Line) {
        guard flags == .host, line.liveAfter else { return aboutToClobber(line) }
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        aboutToClobber(line)
        code.load(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
    }
    private mutating func loadControl(_ line: Line) {
        code.op(0xB7, reg: Host.scratch, memoryOperand(line), wide: false, map: 1)  // movzx r9d, …
        aboutToClobber(line)
        code.bytes(0x41, 0xF7, 0xD1, 0x41, 0xF6, 0xC1, 0x3F)  // not r9d; test r9b, 63
        slowPath(Jumps(code.jump(if: 5)), line)
        code.bytes(0x41, 0xF7, 0xD1, 0x41, 0x81, 0xE1)  // not r9d; and r9d, …
        code.int32(X87Control.defined)
        code.bytes(0x41, 0x83, 0xC9, UInt8(X87Control.alwaysSet))  // or r9d, …
        code.store(Host.scratch, Host.cell(Int(X86_X87_CONTROL_OFFSET)))
        code.op(0xD9, reg: 5, Host.cell(Int(X86_X87_CONTROL_OFFSET)), wide: false)  // fldcw
    }
    mutating func pushFlags(_ line: Line) {
        needFlags(line)
        let image = Host.cell(Int(X86_T1_TARGET_OFFSET))
        code.byte(0x9C)  // pushfq
        code.op(0x8F, reg: 0, image, wide: false)  // pop
        aboutToClobber(line)
        // The arithmetic flags are the host's, the others the guest's, but RF and VM.
        let arithmetic: Int32 = 0x8D5
        code.load(Host.scratch, Host.cell(Int(X86_RFLAGS_OFFSET)))
        code.op(0x81, reg: 4, .register(Host.scratch), wide: false)
        code.int32(~(arithmetic | Int32(EFlags.rf | EFlags.vm)))
        code.op(0x81, reg: 4, image)
        code.int32(arithmetic)
        code.op(0x09, reg: Host.scratch, image)
        code.op(0x83, reg: 1, image, wide: false)  // or, 2: the bit that is always set
        code.byte(2)
        let operand = pushOperand(line)
        code.load(Host.scratch, image)
        storeWord(Host.scratch, operand)
        moveStack(-Int32(word))
    }
    /// The interpreter sees to privileges that are neither the kernel's nor the user's, and to the user's.
    mutating func clearInterrupt(_ line: Line) {
        aboutToClobber(line)
        code.op(0x80, reg: 7, Host.cell(Int(X86_CPL_OFFSET)), wide: false)
        code.byte(0)
        slowPath(Jumps(code.jump(if: 5)), line)
        code.op(0x81, reg: 4, Host.cell(Int(X86_RFLAGS_OFFSET)), wide: false)
        code.int32(~Int32(EFlags.interruptEnable))
    }
    /// As CLI; the interpreter also sees to an interrupt that waits. One that comes from here on is seen as any other: the
    /// instruction behind this one is in the block, the shadow does not outlast it.
    mutating func setInterrupt(_ line: Line) {
        aboutToClobber(line)
        code.op(0x80, reg: 7, Host.cell(Int(X86_CPL_OFFSET)), wide: false)
        code.byte(0)
        let unprivileged = code.jump(if: 5)
        code.op(0x83, reg: 7, Host.cell(Int(X86_INTERRUPT_LATCH_OFFSET)), wide: false)
        code.byte(0)
        var jumps = Jumps(unprivileged)
        jumps.append(code.jump(if: 5))
        slowPath(jumps, line)
        code.op(0x81, reg: 1, Host.cell(Int(X86_RFLAGS_OFFSET)), wide: false)
        code.int32(Int32(EFlags.interruptEnable))
    }
    mutating func moveFromSegment(_ line: Line) {
        let i = line.instruction
        let selector = Host.cell(Int(X86_SEGMENTS_OFFSET) + Int(i.reg & 7) * MemoryLayout<x86_segment>.stride + Int(X86_SELECTOR_OFFSET))
        // 32 and 64 bits are cleared above it, 16 leave what is there.
        if let host = Host.register(i.rm) {
            if i.operandSize == 2 { return code.op(0x8B, reg: host, selector, wide: false, operand16: true) }
            return code.op(0xB7, reg: host, selector, wide: false, map: 1)  // movzx
        }
        code.op(0xB7, reg: Host.scratch, selector, wide: false, map: 1)
        if i.operandSize == 2 { return code.op(0x89, reg: Host.scratch, Host.home(i.rm), wide: false, operand16: true) }
        storeScratch(i.rm)
    }
    mutating func swapGS(_ line: Line) {
        aboutToClobber(line)
        code.op(0x80, reg: 7, Host.cell(Int(X86_CPL_OFFSET)), wide: false)
        code.byte(0)
        slowPath(Jumps(code.jump(if: 5)), line)
        let segment = SegmentRegister.gs
        let base = Host.cell(Int(X86_SEGMENTS_OFFSET) + segment * MemoryLayout<x86_segment>.stride)
        code.load(Host.scratch, base)
        code.load(Host.address, Host.cell(Int(X86_KERNEL_GS_BASE_OFFSET)))
        code.store(Host.scratch, Host.cell(Int(X86_KERNEL_GS_BASE_OFFSET)))
        code.store(Host.address, base)
        code.store(Host.address, Host.cell(Int(X86_SEGBASE_OFFSET) + segment * 8))
    }
    mutating func lea(_ line: Line) {
        let i = line.instruction
        let host = Host.register(i.reg)
        if let host, !i.isRIPRelative, i.operandSize > 2, i.base >= 0 || i.index >= 0 {
            return code.lea(host, addressOperand(i).0, wide: i.operandSize == 8 && i.addressSize == 8)
        }
        address(i, offset: line.offset, segments: false)
        if i.operandSize == 2 {
            let target = host ?? Host.scratch
            if host == nil { code.load(Host.scratch, Host.home(i.reg)) }
            code.op(0x89, reg: Host.address, .register(target), wide: false, operand16: true)
            if host == nil { code.store(Host.scratch, Host.home(i.reg)) }
            return
        }
        if i.operandSize == 4 { code.move(Host.address, Host.address, wide: false) }
        if let host { code.move(host, Host.address) } else { code.store(Host.address, Host.home(i.reg)) }
    }
}
