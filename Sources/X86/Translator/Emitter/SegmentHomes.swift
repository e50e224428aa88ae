// Instructions between registers, one of which is R8–R11: on that one's place in memory where it is as good as a register.
extension BlockTranslator {
    /// False when the instruction takes scratch registers.
    mutating func onHome(_ line: Line) -> Bool {
        guard !line.instruction.isMemory else { return false }
        let (i, plan) = (line.instruction, line.plan)
        guard !plan.isVEX, !plan.isExtended, plan.rm == .general, plan.reg != .vector, Self.mayUseMemory(i) else { return false }
        let isByte = plan.byteReg || plan.byteRM
        func host(_ n: UInt8, byte: Bool) -> UInt8? { byte && !i.hasREX ? n : Host.register(n) }
        let rm = host(i.rm, byte: plan.byteRM)
        let reg = plan.reg == .general ? host(i.reg, byte: plan.byteReg) : i.reg & 7
        if rm == nil, reg == nil { return i.reg == i.rm && zero(i) }
        // Results of 32 bits clear the upper half; and what is read whole after a part was written waits until that is in the cache.
        let isWhole = i.operandSize == 8 && !isByte
        if rm == nil, let reg {
            guard !plan.writesRM || isWhole else { return false }
            onHome(line, i.opcode, reg: reg, home: i.rm, isByte)
            return true
        }
        // The other direction of the same operation.
        guard reg == nil, let rm, let opcode = Self.turned(i), !plan.writesReg || isWhole else { return false }
        onHome(line, opcode, reg: rm, home: i.reg, isByte)
        return true
    }
    private mutating func onHome(_ line: Line, _ opcode: UInt8, reg: UInt8, home: UInt8, _ isByte: Bool) {
        let i = line.instruction
        needFlags(line)
        code.op(opcode, reg: reg, Host.home(home), wide: i.rexW, map: UInt8(i.map.number), operand16: i.has66, forceREX: isByte && i.hasREX)
        if line.plan.immediateSize > 0 { code.immediate(i.immediate, size: line.plan.immediateSize) }
    }
    /// XOR and SUB of a register with itself.
    private mutating func zero(_ i: Instruction) -> Bool {
        guard i.map.number == 0, i.opcode & 0xFD == 0x31 || i.opcode & 0xFD == 0x29, i.operandSize >= 4 else { return false }
        code.op(i.opcode, reg: Host.scratch, .register(Host.scratch), wide: false)
        storeScratch(i.reg)
        return true
    }

    // MARK: what r9 holds

    /// A register that lives in memory, from r9.
    mutating func storeScratch(_ n: UInt8) {
        code.store(Host.scratch, Host.home(n))
        scratch = (n, code.here)
    }
    func isInScratch(_ n: UInt8) -> Bool { scratch.map { $0.home == n && $0.at == code.here } ?? false }
    mutating func loadHome(_ n: UInt8, into register: UInt8) {
        guard isInScratch(n) else { return code.load(register, Host.home(n)) }
        if register != Host.scratch { code.move(register, Host.scratch) }
    }
    /// Whether r9 is after the line what it was before, and what it holds still that register's value.
    func leavesScratch(_ line: Line) -> Bool {
        let (i, plan) = (line.instruction, line.plan)
        let named = (i.opcode & 7) | i.opcodeRegisterExtension
        func isHost(_ n: UInt8) -> Bool { Host.register(n) != nil }
        switch plan.kind {
        case .nop: return true
        case .moveImmediate: return isHost(named)
        case .conditional: return current + 1 < lines.count
        case .pushRegister, .popRegister: return usesWindows && line.stack != nil && line.stack?.opening == nil && i.opcode != 0xFF && isHost(named)
        case .modRM:
            if i.isMemory, !usesWindows || line.memory == nil || line.memory?.opening != nil || plan.aligned { return false }
            return !plan.isVEX && plan.reg != .vector && (plan.reg == .none || isHost(i.reg)) && (i.isMemory || plan.rm == .general && isHost(i.rm))
        default: return false
        }
    }

    private static func isArithmetic(_ i: Instruction) -> Bool { i.map.number == 0 && i.opcode < 0x40 && i.opcode & 7 < 4 }
    /// Of operations with a register and another, that with their places exchanged.
    private static func turned(_ i: Instruction) -> UInt8? {
        guard i.map.number == 0 else { return nil }
        switch i.opcode {
        case 0x88...0x8B: return i.opcode ^ 2
        case 0x84, 0x85: return i.opcode  // TEST
        default: return isArithmetic(i) ? i.opcode ^ 2 : nil
        }
    }
    /// Whether an operand in memory does all that one in a register does, and no more: XCHG would lock, BT reach further.
    private static func mayUseMemory(_ i: Instruction) -> Bool {
        switch (i.map.number, i.opcode) {
        case (0, 0x63), (0, 0x69), (0, 0x6B), (0, 0x80), (0, 0x81), (0, 0x83...0x85), (0, 0x88...0x8B): true
        case (0, 0xC0), (0, 0xC1), (0, 0xC6), (0, 0xC7), (0, 0xD0...0xD3), (0, 0xF6), (0, 0xF7): true
        case (0, 0xFE), (0, 0xFF): i.group < 2
        case (1, 0x40...0x4F), (1, 0x90...0x9F), (1, 0xAF), (1, 0xB6), (1, 0xB7), (1, 0xBE), (1, 0xBF): true
        default: isArithmetic(i)
        }
    }
}
