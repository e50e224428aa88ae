/// The width of code in a segment: what CS.L and CS.D say.
package enum CodeSize: UInt8, Sendable {
    case bits16 = 0
    case bits32 = 1
    case bits64 = 2
}

/// One decoded x86 instruction: fields only, no meaning. Intel SDM vol. 2, chapter 2.
package struct Instruction: Sendable {
    package enum Map: UInt8, Sendable { case one, two, three38, three3A }

    package var displacement: Int64 = 0
    /// The first immediate, sign-extended from its width.
    package var immediate: Int64 = 0
    /// Fields are small, as instructions are copied often.
    private var lengthInBytes: UInt8 = 0
    package var length: Int {
        get { Int(lengthInBytes) }
        set { lengthInBytes = UInt8(truncatingIfNeeded: newValue) }
    }
    package var map = Map.one
    package var opcode: UInt8 = 0
    package var hasModRM = false
    package var mod: UInt8 = 0
    /// ModRM.reg with REX.R.
    package var reg: UInt8 = 0
    /// ModRM.rm with REX.B; a register number when `mod` is 3.
    package var rm: UInt8 = 0
    /// Address registers, -1 when absent.
    package var base: Int8 = -1
    package var index: Int8 = -1
    package var scale: UInt8 = 0
    package var isRIPRelative = false
    /// The second: ENTER's nesting level or a far pointer's selector.
    package var immediate2: UInt16 = 0
    /// 2, 4 or 8 bytes: the operand size of an instruction that is not a byte form.
    package var operandSize: UInt8 = 4
    /// 2, 4 or 8 bytes.
    package var addressSize: UInt8 = 8
    package var hasREX = false
    package var rexW = false
    package var has66 = false
    /// A VEX prefix stood for the prefixes, the map and W; `has66` and `rep` say what it said.
    package var isVEX = false
    package var vvvv: UInt8 = 0
    /// VEX.vvvv is 1111, as it must be where there is no third register. (32-bit code may name one with a bit that means nothing.)
    package var namesNoThird = true
    package var vexL = false
    /// 0, 0xF2 or 0xF3: the last one given.
    package var rep: UInt8 = 0
    package var hasLock = false
    /// ES CS SS DS FS GS = 0…5, or -1.
    package var segmentOverride: Int8 = -1
    package var code = CodeSize.bits64
    /// REX.B for opcodes that name a register in their low three bits: 8 or 0.
    package var opcodeRegisterExtension: UInt8 = 0

    package var isMemory: Bool { hasModRM && mod != 3 }
    /// What addresses and the stack have where no prefix says otherwise.
    var naturalSize: UInt8 { code == .bits64 ? 8 : (code == .bits32 ? 4 : 2) }
    var hasNaturalAddress: Bool { addressSize == naturalSize }
    /// ModRM.reg without REX.R: the opcode extension of a group.
    package var group: UInt8 { reg & 7 }
}

package enum DecodeResult: Sendable {
    case instruction(Instruction)
    /// An undefined opcode or over 15 bytes.
    case invalid(length: Int)
    /// The bytes end inside the instruction.
    case truncated
}

extension Instruction {
    /// Whether VEX.W is about a general register: 32-bit code has none that are wider.
    var wideMeansGeneral: Bool {
        switch (map, opcode) {
        case (.two, 0x2A), (.two, 0x2C), (.two, 0x2D), (.two, 0x6E), (.two, 0x7E), (.three38, 0xF2...0xF7): true
        case (.three3A, 0x16), (.three3A, 0x22), (.three3A, 0x60), (.three3A, 0x61), (.three3A, 0xF0): true
        default: false
        }
    }
    /// The same instruction as 64-bit code would say it, for what only 32-bit code has: INC and DEC of one byte, MOV between the accumulator
    /// and an address.
    var inCommonForm: Instruction {
        guard code == .bits32, map == .one else { return self }
        var i = self
        switch opcode {
        case 0x40...0x4F:
            (i.opcode, i.hasModRM, i.mod, i.reg, i.rm) = (0xFF, true, 3, opcode < 0x48 ? 0 : 1, opcode & 7)
        case 0xA0...0xA3:
            (i.opcode, i.hasModRM, i.mod, i.reg) = (opcode < 0xA2 ? opcode - 0xA0 + 0x8A : opcode - 0xA2 + 0x88, true, 0, 0)
        default: break
        }
        // An address is what it is, not what is added to a register.
        if i.isMemory, i.base < 0, i.index < 0, addressSize == 4 { i.displacement = Int64(UInt32(truncatingIfNeeded: displacement)) }
        return i
    }
    /// LOCK is legal only with these, and with a memory destination. SDM vol. 2 LOCK.
    var isLockable: Bool {
        guard isMemory else { return false }
        switch (map, opcode) {
        case (.one, 0x00...0x35): return opcode & 7 < 2
        case (.one, 0x80...0x83): return group != 7
        case (.one, 0x86), (.one, 0x87): return true
        case (.one, 0xF6), (.one, 0xF7): return group == 2 || group == 3
        case (.one, 0xFE), (.one, 0xFF): return group < 2
        case (.two, 0xAB), (.two, 0xB3), (.two, 0xBB): return true
        case (.two, 0xBA): return group >= 5
        case (.two, 0xB0), (.two, 0xB1), (.two, 0xC0), (.two, 0xC1): return true
        case (.two, 0xC7): return group == 1
        default: return false
        }
    }
}
