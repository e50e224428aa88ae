import CX86

/// Chooses the handler of one instruction and fills in its operands.
struct HandlerSelector {
    enum Flow { case next, ends, undefined }

    let i: Instruction
    let offset: Int
    let features: X86Features
    /// log2 of the operand size.
    let sizeIndex: Int
    var isSTI = false

    init(_ instruction: Instruction, offset: Int, features: X86Features) {
        i = instruction
        self.features = features
        self.offset = offset
        sizeIndex = instruction.operandSize == 8 ? 3 : (instruction.operandSize == 4 ? 2 : 1)
    }

    /// A register's byte offset in the file: high-byte registers only for byte operands without REX.
    func register(_ number: UInt8, byte: Bool) -> UInt8 {
        if byte, !i.hasREX, number >= 4, number < 8 { return (number - 4) * 8 + 1 }
        return number * 8
    }

    func operands(_ op: inout x86_op, byte: Bool = false, byteRM: Bool? = nil) {
        op.size = byte ? 1 : i.operandSize
        op.imm = UInt64(bitPattern: i.immediate)
        op.reg = register(i.reg, byte: byte)
        op.rm = register(i.rm, byte: byteRM ?? byte)
        addressing(&op)
    }
    func addressing(_ op: inout x86_op) {
        op.ashift = 64 - i.addressSize * 8
        op.base = i.base < 0 ? RegisterOffset.zero : UInt8(i.base) * 8
        op.index = i.index < 0 ? RegisterOffset.zero : UInt8(i.index) * 8
        op.scale = i.scale
        op.disp = i.displacement
        if i.isRIPRelative {
            op.base = RegisterOffset.blockBase
            op.disp &+= Int64(offset + i.length)
        }
        let stack = i.base == 4 || i.base == 5
        let segment = i.segmentOverride >= 0 ? UInt8(i.segmentOverride) : UInt8(stack ? SegmentRegister.ss : SegmentRegister.ds)
        op.seg = segment * 8
    }
    var branchTarget: UInt64 { UInt64(bitPattern: i.immediate &+ Int64(offset + i.length)) }
    var is64: Bool { i.code == .bits64 }
    /// The operand size of stack and near-branch instructions: 64 bits in 64-bit mode.
    var stackSize: UInt8 { is64 ? (i.has66 && !i.rexW ? 2 : 8) : i.operandSize }

    mutating func select(_ op: inout x86_op) -> Flow {
        if i.hasLock, !i.isLockable { return .undefined }
        if i.isVEX { return vex(&op) }
        switch i.map {
        case .one: return one(&op)
        case .two: return two(&op)
        case .three38 where i.opcode == 0x82: return invalidateContext(&op)
        case .three38, .three3A: return simd(&op)
        }
    }
}
