/// How one guest instruction becomes host instructions: the same opcode on other registers, with these operands.
/// nil from `make`: the interpreter does it.
struct TranslationPlan {
    enum Kind {
        /// The opcode as it is, on its ModRM operands.
        case modRM
        case pushRegister, popRegister, pushImmediate, pushMemory, leave
        case exchangeAccumulator, moveImmediate, byteSwap
        /// DIV and IDIV by what cannot fault, which is found out first.
        case divide
        case pushFlags, clearInterrupt, setInterrupt
        /// MOV from a segment register to a general one, SWAPGS: Linux's switches between tasks, and from and to user programs.
        case moveFromSegment, swapGS
        /// FLDCW: the interpreter sees to one that unmasks exceptions.
        case loadControl
        /// No operands but fixed registers, which are the same on the host.
        case plain
        case storeString, moveString, bitString
        /// CLD and STD.
        case setDirection
        case fence
        case lea
        case zeroUpper, emptyMMX
        case nop, pause
        case jump, conditional, call, ret, jumpIndirect, callIndirect
    }
    enum File { case none, general, vector }

    var kind = Kind.modRM
    var reg = File.general
    var rm = File.general
    var readsReg = true
    var writesReg = false
    var readsRM = true
    var writesRM = false
    /// Byte registers; `byteRM` alone for MOVZX and the like.
    var byteReg = false
    var byteRM = false
    /// Bytes of the memory operand.
    var size: Int {
        get { Int(operandBytes) }
        set { operandBytes = UInt16(truncatingIfNeeded: newValue) }
    }
    private var operandBytes: UInt16 = 0
    var aligned = false
    /// VEX: the third register, whether it is read and written, and a fourth in the immediate.
    var isVEX = false
    var vvvv = File.none
    var readsV = false
    var writesV = false
    var fourth = File.none
    /// XMM0 as an operand that the code does not show.
    var readsXMM0 = false
    var writesXMM0 = false
    /// RCX is written, though the code does not show it.
    var writesRCX = false
    /// Prefixes and map belong to the opcode.
    var isExtended = false
    /// Bytes of the immediate that goes with it.
    var immediateSize: Int {
        get { Int(immediateBytes) }
        set { immediateBytes = UInt8(truncatingIfNeeded: newValue) }
    }
    private var immediateBytes: UInt8 = 0

    var readsFlags = false
    var definesFlags = false
    /// Changes some flags and leaves others, or may.
    var mergesFlags = false

    var endsBlock: Bool {
        switch kind {
        case .jump, .conditional, .call, .ret, .jumpIndirect, .callIndirect: return true
        default: return false
        }
    }
    /// Pushes or pops through RSP, but LEAVE.
    var usesStack: Bool {
        switch kind {
        case .pushRegister, .popRegister, .pushImmediate, .pushMemory, .pushFlags, .call, .callIndirect, .ret: return true
        default: return false
        }
    }
    var isX87 = false
    var usesVector: Bool { reg == .vector || rm == .vector || vvvv == .vector }

    static func make(_ i: Instruction, _ features: X86Features) -> TranslationPlan? {
        guard i.code != .bits16, i.addressSize != 2 else { return nil }
        var plan = TranslationPlan()
        let supported: Bool
        switch i.map {
        case _ where i.isVEX: supported = plan.extended(i, features)
        case .one: supported = plan.one(i)
        case .two: supported = plan.two(i, features)
        case .three38, .three3A: supported = plan.extended(i, features)
        }
        guard supported else { return nil }
        if i.hasLock {
            guard plan.kind == .modRM || plan.kind == .bitString, plan.writesRM, plan.rm == .general, i.isLockable else { return nil }
        }
        // High-byte registers cannot be named together with the registers we move things to.
        if !i.hasREX {
            let high = 4...7
            if plan.byteRM, !plan.byteReg, plan.kind == .modRM, !i.isMemory, high.contains(Int(i.rm)), i.reg == 4 { return nil }
            if plan.byteReg, plan.reg == .general, high.contains(Int(i.reg)), plan.kind == .modRM, i.isMemory { return nil }
        }
        return plan
    }

    private mutating func sized(_ i: Instruction, byte: Bool) {
        byteReg = byte
        byteRM = byte
        size = byte ? 1 : Int(i.operandSize)
    }
    /// ADD OR ADC SBB AND SUB XOR CMP.
    private mutating func arithmetic(_ operation: UInt8) {
        definesFlags = true
        readsFlags = operation == 2 || operation == 3
    }

    private mutating func one(_ i: Instruction) -> Bool {
        let opcode = i.opcode
        let byte = opcode & 1 == 0
        switch opcode {
        case 0x00...0x3F where opcode & 7 < 4:
            sized(i, byte: byte)
            arithmetic(opcode >> 3)
            let compares = opcode >> 3 == 7
            if opcode & 2 == 0 { writesRM = !compares } else { writesReg = !compares }
        case 0x00...0x3F where opcode & 7 < 6:
            kind = .plain
            arithmetic(opcode >> 3)
            immediateSize = byte ? 1 : min(Int(i.operandSize), 4)
            byteReg = byte
        case 0x50...0x57 where !i.has66: kind = .pushRegister
        case 0x58...0x5F where !i.has66: kind = .popRegister
        case 0x63 where i.operandSize == 8:
            size = 4
            (readsReg, writesReg) = (false, true)
        case 0x68 where !i.has66, 0x6A where !i.has66: kind = .pushImmediate
        case 0x69, 0x6B:
            sized(i, byte: false)
            (readsReg, writesReg) = (false, true)
            immediateSize = opcode == 0x6B ? 1 : min(Int(i.operandSize), 4)
            definesFlags = true
        case 0x70...0x7F:
            kind = .conditional
            readsFlags = true
        case 0x80, 0x81, 0x83:
            sized(i, byte: opcode == 0x80)
            reg = .none
            arithmetic(i.group)
            writesRM = i.group != 7
            immediateSize = opcode == 0x81 ? min(Int(i.operandSize), 4) : 1
        case 0x84, 0x85:
            sized(i, byte: byte)
            definesFlags = true
        case 0x86, 0x87:
            sized(i, byte: byte)
            (writesReg, writesRM) = (true, true)
        case 0x88, 0x89:
            sized(i, byte: byte)
            (readsRM, writesRM) = (false, true)
        case 0x8A, 0x8B:
            sized(i, byte: byte)
            (readsReg, writesReg) = (false, true)
        case 0x8C:
            guard !i.isMemory, i.reg & 7 < 6 else { return false }
            kind = .moveFromSegment
            sized(i, byte: false)
            reg = .none
            (readsRM, writesRM) = (i.operandSize == 2, true)
        case 0x8D:
            guard i.isMemory else { return false }
            kind = .lea
        case 0x90 where i.opcodeRegisterExtension == 0: kind = i.rep == 0xF3 ? .pause : .nop
        case 0x90...0x97:
            kind = .exchangeAccumulator
        case 0x98, 0x99: kind = .plain
        case 0x9C where !i.has66:
            kind = .pushFlags
            readsFlags = true
        case 0xA4, 0xA5, 0xAA, 0xAB:
            kind = opcode < 0xAA ? .moveString : .storeString
            return i.hasNaturalAddress && i.segmentOverride < 4
        case 0xA8, 0xA9:
            kind = .plain
            definesFlags = true
            byteReg = byte
            immediateSize = byte ? 1 : min(Int(i.operandSize), 4)
        case 0xB0...0xBF: kind = .moveImmediate
        case 0xC0, 0xC1, 0xD0...0xD3: return shift(i)
        case 0xC2, 0xC3: kind = .ret
        case 0xC6, 0xC7:
            guard i.group == 0 else { return false }
            sized(i, byte: byte)
            reg = .none
            (readsRM, writesRM) = (false, true)
            immediateSize = byte ? 1 : min(Int(i.operandSize), 4)
        case 0xC9 where !i.has66: kind = .leave
        case 0xD8...0xDF: return x87(i)
        case 0xE8: kind = .call
        case 0xE9, 0xEB: kind = .jump
        case 0xF5, 0xF8, 0xF9:
            kind = .plain
            mergesFlags = true
            readsFlags = opcode == 0xF5
        case 0xF6, 0xF7: return groupThree(i)
        case 0xFA: kind = .clearInterrupt
        case 0xFB: kind = .setInterrupt
        case 0xFC, 0xFD: kind = .setDirection
        case 0xFE, 0xFF: return groupFive(i)
        default: return false
        }
        if i.has66 || i.rexW, kind == .jump || kind == .call || kind == .conditional || kind == .ret { return !i.has66 }
        return true
    }
    private mutating func shift(_ i: Instruction) -> Bool {
        sized(i, byte: i.opcode & 1 == 0)
        reg = .none
        writesRM = true
        immediateSize = i.opcode < 0xD0 ? 1 : 0
        let byCL = i.opcode == 0xD2 || i.opcode == 0xD3
        let count = i.opcode < 0xD0 ? i.immediate & (i.operandSize == 8 && i.opcode & 1 == 1 ? 63 : 31) : 1
        if byCL || i.group < 4 { mergesFlags = true } else if count != 0 { definesFlags = true }
        readsFlags = i.group == 2 || i.group == 3
        return true
    }
    private mutating func groupThree(_ i: Instruction) -> Bool {
        sized(i, byte: i.opcode == 0xF6)
        reg = .none
        switch i.group {
        case 0, 1:
            definesFlags = true
            immediateSize = i.opcode == 0xF6 ? 1 : min(Int(i.operandSize), 4)
            return i.group == 0
        case 2: writesRM = true
        case 3:
            writesRM = true
            definesFlags = true
        case 4, 5: definesFlags = true
        default:
            guard i.opcode == 0xF7, i.operandSize >= 4, !i.hasLock else { return false }
            kind = .divide
        }
        return true
    }
    private mutating func groupFive(_ i: Instruction) -> Bool {
        reg = .none
        switch i.group {
        case 0, 1:
            sized(i, byte: i.opcode == 0xFE)
            writesRM = true
            mergesFlags = true
        case 2 where i.opcode == 0xFF && !i.has66:
            kind = .callIndirect
            size = Int(i.naturalSize)
        case 4 where i.opcode == 0xFF && !i.has66:
            kind = .jumpIndirect
            size = Int(i.naturalSize)
        case 6 where i.opcode == 0xFF && !i.has66:
            kind = i.isMemory ? .pushMemory : .pushRegister
            size = Int(i.naturalSize)
        default: return false
        }
        return true
    }

    /// x87 instructions work on the host's own registers, which are the guest's while a core runs, the control word too as long as
    /// all exceptions are masked, as segments make sure; those that show or set instruction addresses stay with the interpreter.
    private mutating func x87(_ i: Instruction) -> Bool {
        isX87 = true
        reg = .none
        rm = .none
        if i.isMemory {
            guard let bytes = HandlerSelector.x87MemorySize(i.opcode, i.group), bytes <= 10 else { return false }
            size = bytes
            writesRM = HandlerSelector.x87Stores(i.opcode, i.group) || HandlerSelector.x87StoresWord(i.opcode, i.group)
            if i.opcode == 0xD9, i.group == 5 { kind = .loadControl }
            return true
        }
        guard HandlerSelector.isX87Register(i.opcode, i.group, i.rm & 7), !(i.opcode == 0xDB && i.group == 4) else { return false }
        kind = .plain
        readsFlags = (i.opcode == 0xDA || i.opcode == 0xDB) && i.group < 4
        definesFlags = (i.opcode == 0xDB || i.opcode == 0xDF) && (i.group == 5 || i.group == 6)
        return true
    }

    private mutating func two(_ i: Instruction, _ features: X86Features) -> Bool {
        let opcode = i.opcode
        let byte = opcode & 1 == 0
        switch opcode {
        case 0x01:
            guard i.code == .bits64, !i.isMemory, i.group == 7, i.rm & 7 == 0 else { return false }
            kind = .swapGS
        case 0x0D, 0x18...0x1F: kind = .nop
        case 0x40...0x4F:
            sized(i, byte: false)
            writesReg = true
            readsFlags = true
        case 0x80...0x8F:
            guard !i.has66 else { return false }
            kind = .conditional
            readsFlags = true
        case 0x90...0x9F:
            sized(i, byte: true)
            reg = .none
            (readsRM, writesRM) = (false, true)
            readsFlags = true
        case 0xA3, 0xAB, 0xB3, 0xBB:
            sized(i, byte: false)
            writesRM = opcode != 0xA3
            mergesFlags = true
            guard i.isMemory else { break }
            kind = .bitString
            return i.operandSize >= 4 && i.hasNaturalAddress
        case 0x77 where i.rep == 0 && !i.has66:
            kind = .emptyMMX
            isX87 = true
        case 0xAE where !i.isMemory && i.group >= 5 && i.rep == 0 && !i.has66: kind = .fence
        case 0xBA:
            guard i.group >= 4 else { return false }
            sized(i, byte: false)
            reg = .none
            writesRM = i.group != 4
            immediateSize = 1
            mergesFlags = true
        case 0xA4, 0xA5, 0xAC, 0xAD:
            sized(i, byte: false)
            writesRM = true
            immediateSize = byte ? 1 : 0
            mergesFlags = true
            guard i.operandSize != 2 else { return false }
        case 0xAF:
            sized(i, byte: false)
            writesReg = true
            definesFlags = true
        case 0xB0, 0xB1:
            sized(i, byte: byte)
            writesRM = true
            definesFlags = true
        case 0xC0, 0xC1:
            sized(i, byte: byte)
            (writesReg, writesRM) = (true, true)
            definesFlags = true
        case 0xB6, 0xB7, 0xBE, 0xBF:
            byteRM = byte
            size = byte ? 1 : 2
            (readsReg, writesReg) = (false, true)
        case 0xB8, 0xBC, 0xBD:
            if ThunkPlan.counting(i, features) != nil { return extended(i, features) }
            guard opcode != 0xB8 else { return false }
            sized(i, byte: false)
            writesReg = true  // kept when the source is zero
            mergesFlags = true
        case 0xC7:
            // CMPXCHG8B and CMPXCHG16B; the kernel's allocator lives on the latter.
            guard i.isMemory, i.group == 1, !i.has66, i.rep == 0 else { return false }
            size = i.rexW ? 16 : 8
            aligned = i.rexW
            reg = .none
            writesRM = true
            mergesFlags = true
        case 0xC8...0xCF:
            guard i.operandSize != 2 else { return false }
            kind = .byteSwap
        default: return extended(i, features)
        }
        return true
    }

    /// What thunks run: MMX and vector registers, and general ones that newer instructions use.
    private mutating func extended(_ i: Instruction, _ features: X86Features) -> Bool {
        if i.isVEX, i.map == .two, i.opcode == 0x77 {
            kind = .zeroUpper
            isVEX = true
            // 32-bit code leaves the registers alone that it does not have.
            return features.contains(.avx) && ThunkPlan.Prefix(i) == .none && i.namesNoThird && !i.vexL && i.code == .bits64
        }
        guard let thunk = ThunkPlan.plan(i, features) else { return false }
        // MMX registers are the x87's, which are the host's; their numbers are all there is to say.
        isX87 = thunk.reg == .mmx || thunk.rm == .mmx
        func file(_ operand: ThunkPlan.Operand) -> File { operand == .xmm ? .vector : (operand == .gpr ? .general : .none) }
        (reg, rm, vvvv, fourth) = (file(thunk.reg), file(thunk.rm), file(thunk.vvvv), file(thunk.fourth))
        (readsReg, writesReg) = (thunk.readsReg, thunk.writesReg)
        (readsRM, writesRM) = (!thunk.writesRM || thunk.reg == .none, thunk.writesRM)
        (readsV, writesV) = (thunk.readsV && vvvv != .none, thunk.writesV)
        (readsXMM0, writesXMM0) = (thunk.implicitXMM0, thunk.writesXMM0)
        writesRCX = thunk.comparesText && !thunk.writesXMM0
        byteRM = thunk.byteRM
        size = thunk.memory
        aligned = thunk.aligned
        immediateSize = thunk.hasImmediate ? 1 : 0
        definesFlags = thunk.setsFlags
        isVEX = i.isVEX
        isExtended = true
        // With VEX the target is written whole, and read only where something is added to a product. To load it all the same would wait
        // for both halves of what VZEROUPPER has left.
        if isVEX, reg == .vector, writesReg, !writesRM, !i.isFusedMultiplyAdd { readsReg = false }
        // A register-to-register move of a scalar keeps the target's upper part.
        if writesRM, !i.isMemory, rm == .vector, !isVEX { readsRM = true }
        // There are two registers for those that live in memory, and a memory operand needs one of them.
        let homes = (reg == .general && Host.register(i.reg) == nil ? 1 : 0) + (vvvv == .general && Host.register(i.vvvv) == nil ? 1 : 0)
        return homes < 2
    }
}

extension TranslationPlan {
    /// The register that an instruction adds something to, as a bit: INC, DEC, ADD, SUB, and LEA of itself.
    func advances(_ i: Instruction) -> UInt16 {
        if kind == .lea { return i.base == Int8(i.reg) && i.index < 0 ? 1 << UInt16(i.reg) : 0 }
        guard kind == .modRM, i.map == .one, !i.isMemory, i.operandSize >= 4 else { return 0 }
        switch i.opcode {
        case 0x01, 0x29: return 1 << UInt16(i.rm)
        case 0x03, 0x2B: return 1 << UInt16(i.reg)
        case 0x81, 0x83: return i.group == 0 || i.group == 5 ? 1 << UInt16(i.rm) : 0
        case 0xFF: return i.group < 2 ? 1 << UInt16(i.rm) : 0
        default: return 0
        }
    }
}

/// How far the translator goes: over some conditional jumps, as compilers put the likely way straight on: forward, or to another
/// page. (What is unlikely lies before everything else in programs; jumps back within a page are mostly loops.)
struct TranslationExtent {
    private var conditionals = 0
    private let largest: Int

    /// - Parameter goesFar: what runs most is worth more code.
    init(goesFar: Bool = false) { largest = goesFar ? 8 : 4 }

    /// - Parameter offset: the instruction's in its page.
    mutating func goesOn(behind i: Instruction, _ plan: TranslationPlan, at offset: Int) -> Bool {
        guard plan.endsBlock else { return true }
        let target = offset + i.length + Int(i.immediate)
        guard plan.kind == .conditional, i.immediate > 0 || target < 0, conditionals < largest else { return false }
        conditionals += 1
        return true
    }
}
