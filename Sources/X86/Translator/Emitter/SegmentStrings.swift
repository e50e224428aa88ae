import CX86

// Instructions whose addresses registers decide further: strings and strings of bits.
extension BlockTranslator {
    /// STOS, REP STOS: the host's own, when all of it lies in one page.
    mutating func storeString(_ line: Line) {
        let form = StringInstruction(line.instruction)
        aboutToClobber(line)
        var jumps = Jumps()
        checkDirectionAndCount(form, &jumps)
        let table = checkString(form, at: Host.rdi, write: true, &jumps)
        slowPath(jumps, line)
        code.load(Host.scratch, delta(table))
        code.lea(Host.address, form.end(of: Host.rdi), wide: !isNarrow)
        code.op(0x03, reg: Host.rdi, .register(Host.scratch))
        form.write(&code)
        code.move(Host.rdi, Host.address)
    }
    /// MOVS, REP MOVS: the same with two pages. Where they are one, the host's addresses overlap as the guest's do.
    mutating func moveString(_ line: Line) {
        let form = StringInstruction(line.instruction)
        aboutToClobber(line)
        var jumps = Jumps()
        checkDirectionAndCount(form, &jumps)
        hostAddress(Host.rsi, checkString(form, at: Host.rsi, write: false, &jumps))
        slowPath(jumps, line)
        jumps = Jumps()
        let source = Host.cell(Int(X86_T1_TARGET_OFFSET))
        code.store(Host.address, source)
        let table = checkString(form, at: Host.rdi, write: true, &jumps)
        slowPath(jumps, line)
        hostAddress(Host.rdi, table)
        // What they will be waits in their places in the state, which nobody looks at meanwhile.
        for register in [Host.rsi, Host.rdi] {
            code.lea(Host.scratch, form.end(of: register), wide: !isNarrow)
            code.store(Host.scratch, Host.home(register))
        }
        code.move(Host.rdi, Host.address)
        code.load(Host.rsi, source)
        form.write(&code)
        for register in [Host.rsi, Host.rdi] { code.load(register, Host.home(register)) }
    }
    /// The way forward only, and no more than a page.
    private mutating func checkDirectionAndCount(_ form: StringInstruction, _ jumps: inout Jumps) {
        code.op(0xF7, reg: 0, Host.cell(Int(X86_RFLAGS_OFFSET)), wide: false)  // test dword …, DF
        code.int32(Int32(EFlags.df))
        jumps.append(code.jump(if: 5))
        guard form.isRepeated else { return }
        code.op(0x81, reg: 7, .register(Host.rcx))  // cmp rcx, …
        code.int32(Int32(4096 / form.size))
        jumps.append(code.jump(if: 7))
    }
    /// Whether the bytes at a register are in one page that the TLB has. Returns the table; r9 is the place in it, r11 is lost.
    private mutating func checkString(_ form: StringInstruction, at register: UInt8, write: Bool, _ jumps: inout Jumps) -> Int32 {
        code.move(Host.address, register)
        let (fails, table) = compareWithTable(size: form.size, write: write)
        jumps.append(fails)
        if form.isRepeated {
            code.lea(Host.address, form.end(of: Host.address))
            code.bytes(0x49, 0x81, 0xFB)  // cmp r11, 4096
            code.int32(4096)
            jumps.append(code.jump(if: 7))
        }
        return table
    }
    /// The host's address in r11 of what a register points to, whose place in the TLB r9 is.
    private mutating func hostAddress(_ register: UInt8, _ table: Int32) {
        code.move(Host.address, register)
        code.op(0x03, reg: Host.address, delta(table))
    }

    /// BT and its kin with a register, on memory: the host's own adds the bit's distance to the operand's address once more.
    mutating func bitString(_ line: Line) {
        let (i, plan) = (line.instruction, line.plan)
        aboutToClobber(line)
        address(i, offset: line.offset)
        bitDistance(i)
        code.lea(Host.address, .memory(base: Host.address, index: Host.scratch, scale: i.operandSize == 8 ? 3 : 2), wide: !isNarrow)
        slowPath(Jumps(checkTable(size: plan.size, write: plan.writesRM)), line)
        bitDistance(i)
        code.op(0xF7, reg: 3, .register(Host.scratch))  // neg r9
        code.lea(Host.address, .memory(base: Host.address, index: Host.scratch, scale: i.operandSize == 8 ? 3 : 2))
        needFlags(line)
        let host = Host.register(i.reg) ?? Host.scratch
        if Host.register(i.reg) == nil { code.load(Host.scratch, Host.home(i.reg)) }
        code.op(i.opcode, reg: host, Self.checked, wide: i.rexW, map: 1, lock: i.hasLock)
    }
    /// How many operands away the bit is, in r9.
    private mutating func bitDistance(_ i: Instruction) {
        let number: HostOperand = Host.register(i.reg).map { .register($0) } ?? Host.home(i.reg)
        code.op(i.operandSize == 8 ? 0x8B : 0x63, reg: Host.scratch, number)  // mov, or movsxd
        code.op(0xC1, reg: 7, .register(Host.scratch))  // sar r9, …
        code.byte(i.operandSize == 8 ? 6 : 5)
    }
    mutating func setDirection(_ line: Line) {
        aboutToClobber(line)
        let isSet = line.instruction.opcode == 0xFD
        code.op(0x81, reg: isSet ? 1 : 4, Host.cell(Int(X86_RFLAGS_OFFSET)), wide: false)  // or, and
        code.int32(isSet ? Int32(EFlags.df) : ~Int32(EFlags.df))
    }
}

/// STOS and MOVS as the host runs them.
private struct StringInstruction {
    let opcode: UInt8
    let size: Int
    let isRepeated: Bool

    init(_ i: Instruction) {
        opcode = i.opcode
        size = i.opcode & 1 == 0 ? 1 : Int(i.operandSize)
        isRepeated = i.rep != 0
    }
    /// Behind the last byte of what begins at a register.
    func end(of register: UInt8) -> HostOperand {
        isRepeated
            ? .memory(base: register, index: Host.rcx, scale: UInt8(size.trailingZeroBitCount)) : .memory(base: register, displacement: Int32(size))
    }
    func write(_ code: inout Assembler) {
        if isRepeated { code.byte(0xF3) }
        if opcode & 1 == 1, size == 2 { code.byte(0x66) }
        if size == 8 { code.byte(0x48) }
        code.byte(opcode)
    }
}
