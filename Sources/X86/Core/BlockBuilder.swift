import CX86

/// Turns the bytes at one address into a block of operations in the cache.
struct BlockBuilder {
    private let cache: BlockCache
    private let mode: CodeSize
    /// Executions after which a block is translated; 0 for never.
    private let features: X86Features
    private let threshold: UInt32
    private let untranslated: Int

    /// - Parameter untranslated: where translated code goes that wants a block without a translation.
    init(cache: BlockCache, mode: CodeSize, features: X86Features, threshold: UInt32, untranslated: Int) {
        self.features = features
        self.cache = cache
        self.mode = mode
        self.threshold = threshold
        self.untranslated = untranslated
    }
    private func counter(_ gpa: UInt64, crossing: Bool) -> x86_op {
        var op = BlockCache.blankOperation
        op.fn = threshold == 0 || crossing ? TranslatorHandlers.skip : TranslatorHandlers.count
        op.extra = threshold
        op.aux = threshold == 0 || crossing ? 2 : 0
        op.disp = Int64(bitPattern: gpa)
        op.imm = UInt64(untranslated)
        return op
    }

    /// Decodes until control leaves, `limit` instructions, or the end of `bytes` (a page). nil when not even one
    /// instruction fits, so that it goes on in the next page.
    ///
    /// - Parameters:
    ///   - one, two: address and value of the version cells of the pages the bytes come from.
    mutating func build(
        _ bytes: UnsafeBufferPointer<UInt8>, gpa: UInt64, one: (cell: UInt, version: UInt32), two: (cell: UInt, version: UInt32)? = nil, limit: Int
    ) -> Op? {
        let header = cache.open()
        var op = header + 1
        // Offsets count from the page's start, so that going from block to block in a page leaves `block_base` alone.
        let start = Int(gpa & 4095)
        if mode == .bits64 {
            op.pointee = counter(gpa, crossing: two != nil || limit == 1)
            op.pointee.off = UInt16(start)
            op += 1
        }
        var offset = start
        var count = 0
        var shadow = false  // the last instruction was STI: one more belongs to the block
        var ended = false
        while !ended, count < limit || shadow, offset - start < BlockCache.maximumBytes {
            let rest = UnsafeBufferPointer(rebasing: bytes[min(offset - start, bytes.count)...])
            let endsHere = shadow
            switch InstructionDecoder.decode(rest, code: mode) {
            case .truncated:
                if count == 0 { return nil }
                ended = true
                if shadow { (op - 1).pointee.extra = 1 }
                continue
            case .invalid(let length):
                op.pointee = BlockCache.blankOperation
                op.pointee.fn = SystemHandlers.undefined
                op.pointee.off = UInt16(offset)
                op.pointee.len = UInt8(length)
                ended = true
            case .instruction(let instruction):
                op.pointee = BlockCache.blankOperation
                op.pointee.off = UInt16(offset)
                op.pointee.len = UInt8(instruction.length)
                var selector = HandlerSelector(instruction, offset: offset, features: features)
                switch selector.select(&op.pointee) {
                case .next: break
                case .ends: ended = true
                case .undefined:
                    op.pointee.fn = SystemHandlers.undefined
                    ended = true
                }
                shadow = selector.isSTI
                offset += instruction.length
            }
            op += 1
            count += 1
            if endsHere { break }
        }
        op.pointee = BlockCache.blankOperation
        op.pointee.fn = SystemHandlers.endBlock
        op.pointee.off = UInt16(offset)
        op.pointee.size = mode == .bits16 ? 2 : 4
        op += 1
        header.pointee = BlockCache.blankOperation
        header.pointee.imm = UInt64(one.cell)
        header.pointee.disp = Int64(Int(bitPattern: two?.cell ?? UInt(bitPattern: cache.zeroCell)))
        header.pointee.extra = one.version &+ (two?.version ?? 0)
        header.pointee.reg = two == nil ? 0 : 1
        cache.commit(op - header)
        return header + 1
    }
}

/// Chooses the handler of one instruction and fills in its operands.
struct HandlerSelector {
    enum Flow { case next, ends, undefined }

    private let i: Instruction
    private let offset: Int
    private let features: X86Features
    /// log2 of the operand size.
    private let sizeIndex: Int
    private(set) var isSTI = false

    init(_ instruction: Instruction, offset: Int, features: X86Features) {
        i = instruction
        self.features = features
        self.offset = offset
        sizeIndex = instruction.operandSize == 8 ? 3 : (instruction.operandSize == 4 ? 2 : 1)
    }

    /// A register's byte offset in the file: high-byte registers only for byte operands without REX.
    private func register(_ number: UInt8, byte: Bool) -> UInt8 {
        if byte, !i.hasREX, number >= 4, number < 8 { return (number - 4) * 8 + 1 }
        return number * 8
    }

    private func operands(_ op: inout x86_op, byte: Bool = false, byteRM: Bool? = nil) {
        op.size = byte ? 1 : i.operandSize
        op.imm = UInt64(bitPattern: i.immediate)
        op.reg = register(i.reg, byte: byte)
        op.rm = register(i.rm, byte: byteRM ?? byte)
        addressing(&op)
    }
    private func addressing(_ op: inout x86_op) {
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
    private var branchTarget: UInt64 { UInt64(bitPattern: i.immediate &+ Int64(offset + i.length)) }
    private var is64: Bool { i.code == .bits64 }
    /// The operand size of stack and near-branch instructions: 64 bits in 64-bit mode.
    private var stackSize: UInt8 { is64 ? (i.has66 && !i.rexW ? 2 : 8) : i.operandSize }

    mutating func select(_ op: inout x86_op) -> Flow {
        if i.hasLock, !i.isLockable { return .undefined }
        if i.isVEX { return vex(&op) }
        switch i.map {
        case .one: return one(&op)
        case .two: return two(&op)
        case .three38, .three3A: return simd(&op)
        }
    }

    // MARK: one-byte opcodes

    private mutating func one(_ op: inout x86_op) -> Flow {
        let opcode = i.opcode
        let byte = opcode & 1 == 0
        let sz = byte ? 0 : sizeIndex
        switch opcode {
        case 0x00...0x3F where opcode & 7 < 6:
            return binary(&op, Int(opcode >> 3), form: Int(opcode & 7))
        case 0x06, 0x0E, 0x16, 0x1E, 0x07, 0x17, 0x1F:
            operands(&op)
            op.extra = UInt32(opcode >> 3)
            op.fn = opcode & 1 == 0 ? SystemHandlers.pushSegment : SystemHandlers.popSegment
            return opcode & 1 == 0 ? .next : .ends
        case 0x27, 0x2F, 0x37, 0x3F, 0xD4, 0xD5:
            op.extra = UInt32(opcode)
            op.imm = UInt64(bitPattern: i.immediate) & 0xFF
            op.fn = SystemHandlers.decimal
            return .next
        case 0x40...0x4F:
            operands(&op)
            op.rm = (opcode & 7) * 8
            op.fn = HandlerTables.unaryR[(opcode < 0x48 ? 0 : 4) + sizeIndex]
            return .next
        case 0x50...0x5F: return pushPopRegister(&op)
        case 0x60, 0x61:
            operands(&op)
            op.fn = opcode == 0x60 ? SystemHandlers.pushAll : SystemHandlers.popAll
            return .next
        case 0x63:
            guard is64 else { return .undefined }  // ARPL
            operands(&op)
            if i.operandSize == 8 {
                op.fn = i.isMemory ? HandlerTables.signExtend32RM[3] : HandlerTables.signExtend32RR[3]
            } else {
                // Without REX.W it is a plain move of the operand size.
                if i.isMemory {
                    op.fn = HandlerTables.movRM[sizeIndex]
                } else {
                    swap(&op.reg, &op.rm)
                    op.fn = HandlerTables.movRR[sizeIndex]
                }
            }
            return .next
        case 0x68, 0x6A:
            operands(&op)
            op.size = stackSize
            op.fn = is64 && op.size == 8 ? HandlerTables.pushI64 : SystemHandlers.pushImmediate
            return .next
        case 0x69, 0x6B:
            operands(&op)
            op.aux = 1 | (i.isMemory ? 2 : 0)
            op.fn = HandlerTables.multiplyTruncating[sizeIndex]
            return .next
        case 0x6C...0x6F: return stringPort(&op)
        case 0x70...0x7F: return jcc(&op)
        case 0x80...0x83: return binaryImmediate(&op)
        case 0x84, 0x85: return binary(&op, 8, form: Int(opcode & 1))
        case 0x86, 0x87:
            operands(&op, byte: byte)
            op.fn = (i.isMemory ? HandlerTables.exchangeM : HandlerTables.exchangeRR)[sz]
            return .next
        case 0x88, 0x89:
            operands(&op, byte: byte)
            op.fn = (i.isMemory ? HandlerTables.movMR : HandlerTables.movRR)[sz]
            return .next
        case 0x8A, 0x8B:
            operands(&op, byte: byte)
            if i.isMemory {
                op.fn = HandlerTables.movRM[sz]
            } else {
                swap(&op.reg, &op.rm)
                op.fn = HandlerTables.movRR[sz]
            }
            return .next
        case 0x8C, 0x8E:
            guard i.reg & 7 < 6, !(opcode == 0x8E && i.reg & 7 == 1) else { return .undefined }
            operands(&op)
            op.extra = UInt32(i.reg & 7)
            op.aux = i.isMemory ? 2 : 0
            op.fn = opcode == 0x8C ? SystemHandlers.moveFromSegment : SystemHandlers.moveToSegment
            return opcode == 0x8C ? .next : .ends
        case 0x8D:
            guard i.isMemory else { return .undefined }
            operands(&op)
            op.fn = HandlerTables.lea[sizeIndex]
            return .next
        case 0x8F:
            guard i.group == 0 else { return .undefined }
            operands(&op)
            op.size = stackSize
            op.fn = i.isMemory ? SystemHandlers.popMemory : SystemHandlers.popRegister
            return .next
        case 0x90...0x97: return exchangeAccumulator(&op)
        case 0x98, 0x99:
            operands(&op)
            op.fn = opcode == 0x98 ? SystemHandlers.convertAccumulator : SystemHandlers.convertToD
            return .next
        case 0x9A, 0xEA:
            operands(&op)
            op.extra = UInt32(i.immediate2)
            op.fn = opcode == 0x9A ? SystemHandlers.farCall : SystemHandlers.farJump
            return .ends
        case 0x9B:
            op.fn = ThunkHandlers.wait
            return .next
        case 0x9C, 0x9D:
            operands(&op)
            op.size = stackSize
            op.fn = opcode == 0x9C ? SystemHandlers.pushFlags : SystemHandlers.popFlags
            return opcode == 0x9C ? .next : .ends
        case 0x9E, 0x9F:
            op.fn = opcode == 0x9E ? SystemHandlers.storeAH : SystemHandlers.loadAH
            return .next
        case 0xA0...0xA3:
            operands(&op, byte: byte)
            op.reg = 0
            op.fn = (opcode < 0xA2 ? HandlerTables.movRM : HandlerTables.movMR)[sz]
            return .next
        case 0xA4...0xA7, 0xAA...0xAF: return string(&op, sz)
        case 0xA8, 0xA9:
            operands(&op, byte: byte)
            op.rm = 0
            op.fn = HandlerTables.binaryRI[8 * 4 + sz]
            return .next
        case 0xB0...0xB7:
            operands(&op, byte: true)
            op.rm = register((opcode & 7) | rexB, byte: true)
            op.fn = HandlerTables.movRI[0]
            return .next
        case 0xB8...0xBF:
            operands(&op)
            op.rm = ((opcode & 7) | rexB) * 8
            op.fn = HandlerTables.movRI[sizeIndex]
            return .next
        case 0xC0, 0xC1, 0xD0...0xD3: return shift(&op, sz)
        case 0xC2, 0xC3:
            operands(&op)
            op.imm = opcode == 0xC2 ? UInt64(bitPattern: i.immediate) & 0xFFFF : 0
            op.size = is64 ? 8 : i.operandSize
            op.fn = is64 ? HandlerTables.ret64 : SystemHandlers.ret
            return .ends
        case 0xC4, 0xC5:
            guard i.isMemory else { return .undefined }
            operands(&op)
            op.aux = 2
            op.extra = UInt32(opcode == 0xC4 ? SegmentRegister.es : SegmentRegister.ds)
            op.fn = SystemHandlers.loadFarPointer
            return .ends
        case 0xC6, 0xC7:
            guard i.group == 0 else { return .undefined }
            operands(&op, byte: byte)
            op.fn = (i.isMemory ? HandlerTables.movMI : HandlerTables.movRI)[sz]
            return .next
        case 0xC8:
            operands(&op)
            op.size = stackSize
            op.extra = UInt32(i.immediate2)
            op.fn = SystemHandlers.enter
            return .next
        case 0xC9:
            operands(&op)
            op.size = stackSize
            op.fn = SystemHandlers.leave
            return .next
        case 0xCA, 0xCB:
            operands(&op)
            op.imm = opcode == 0xCA ? UInt64(bitPattern: i.immediate) & 0xFFFF : 0
            op.fn = SystemHandlers.farReturn
            return .ends
        case 0xCC, 0xCD, 0xCE, 0xF1:
            op.imm = opcode == 0xCD ? UInt64(bitPattern: i.immediate) & 0xFF : (opcode == 0xCC ? 3 : (opcode == 0xCE ? 4 : 1))
            op.extra = opcode == 0xCE ? 1 : 0
            op.fn = SystemHandlers.softwareInterrupt
            return .ends
        case 0xCF:
            operands(&op)
            op.fn = SystemHandlers.interruptReturn
            return .ends
        case 0xD7:
            operands(&op)
            op.fn = SystemHandlers.translateByte
            return .next
        case 0xD8...0xDF: return x87(&op)
        case 0xE0...0xE3:
            operands(&op)
            op.imm = branchTarget
            op.extra = UInt32(opcode & 3)
            op.fn = SystemHandlers.loop
            op.size = is64 ? 8 : i.operandSize
            return .ends
        case 0xE4...0xE7, 0xEC...0xEF:
            operands(&op, byte: byte)
            let width = byte ? 0 : min(sizeIndex, 2)
            op.aux = opcode >= 0xEC ? 1 : 0
            op.fn = (opcode & 2 == 0 ? HandlerTables.portIn : HandlerTables.portOut)[width]
            return opcode & 2 == 0 ? .next : .ends
        case 0xE8, 0xE9, 0xEB:
            operands(&op)
            op.imm = branchTarget
            op.disp = 0
            op.size = is64 ? 8 : i.operandSize
            if is64 {
                op.fn = opcode == 0xE8 ? HandlerTables.call64 : HandlerTables.branch
            } else {
                op.fn = opcode == 0xE8 ? SystemHandlers.callRelative : SystemHandlers.jumpRelative
            }
            return .ends
        case 0xF4:
            op.fn = SystemHandlers.halt
            return .ends
        case 0xF5, 0xF8, 0xF9, 0xFC, 0xFD:
            op.extra = UInt32(opcode)
            op.fn = SystemHandlers.flagBit
            return .next
        case 0xFA:
            op.fn = SystemHandlers.clearInterrupt
            return .next
        case 0xFB:
            op.fn = SystemHandlers.setInterrupt
            isSTI = true
            return .next
        case 0xF6, 0xF7: return groupThree(&op, sz)
        case 0xFE, 0xFF: return groupFive(&op, sz)
        default: return .undefined
        }
    }

    /// REX.B for opcodes that carry a register in their low bits; the decoder keeps it in `rm` only with a ModRM byte.
    private var rexB: UInt8 { i.opcodeRegisterExtension }

    private func binary(_ op: inout x86_op, _ operation: Int, form: Int) -> Flow {
        let byte = form & 1 == 0
        let index = operation * 4 + (byte ? 0 : sizeIndex)
        operands(&op, byte: byte)
        switch form {
        case 0, 1:
            op.fn = i.isMemory ? (i.hasLock ? HandlerTables.binaryLocked : HandlerTables.binaryMR)[index] : HandlerTables.binaryRR[index]
        case 2, 3:
            if i.isMemory {
                op.fn = HandlerTables.binaryRM[index]
            } else {
                swap(&op.reg, &op.rm)
                op.fn = HandlerTables.binaryRR[index]
            }
        default:
            op.rm = 0
            op.fn = HandlerTables.binaryRI[index]
        }
        return .next
    }
    private func binaryImmediate(_ op: inout x86_op) -> Flow {
        let byte = i.opcode & 1 == 0
        let index = Int(i.group) * 4 + (byte ? 0 : sizeIndex)
        operands(&op, byte: byte)
        if i.isMemory, i.hasLock {
            op.aux = 1
            op.fn = HandlerTables.binaryLocked[index]
        } else {
            op.fn = (i.isMemory ? HandlerTables.binaryMI : HandlerTables.binaryRI)[index]
        }
        return .next
    }
    private func pushPopRegister(_ op: inout x86_op) -> Flow {
        operands(&op)
        op.rm = ((i.opcode & 7) | rexB) * 8
        op.size = stackSize
        if is64, op.size == 8 {
            op.fn = i.opcode < 0x58 ? HandlerTables.pushR64 : HandlerTables.popR64
        } else {
            op.fn = i.opcode < 0x58 ? SystemHandlers.push : SystemHandlers.popRegister
        }
        return .next
    }
    private func stringPort(_ op: inout x86_op) -> Flow {
        operands(&op)
        op.aux = i.rep != 0 ? 1 : 0
        op.seg = UInt8(i.segmentOverride >= 0 ? Int(i.segmentOverride) : SegmentRegister.ds) * 8
        let width = i.opcode & 1 == 0 ? 0 : min(sizeIndex, 2)
        op.fn = (i.opcode < 0x6E ? HandlerTables.portInString : HandlerTables.portOutString)[width]
        return .ends
    }
    private func string(_ op: inout x86_op, _ sz: Int) -> Flow {
        operands(&op)
        op.seg = UInt8(i.segmentOverride >= 0 ? Int(i.segmentOverride) : SegmentRegister.ds) * 8
        op.aux = i.rep == 0xF3 ? StringForm.rep : (i.rep == 0xF2 ? StringForm.repne : 0)
        switch i.opcode & 0xFE {
        case 0xA4: op.fn = HandlerTables.moveString[sz]
        case 0xA6: op.fn = HandlerTables.compareString[sz]
        case 0xAA: op.fn = HandlerTables.storeString[sz]
        case 0xAC: op.fn = HandlerTables.loadString[sz]
        default: op.fn = HandlerTables.scanString[sz]
        }
        return .next
    }
    private func jcc(_ op: inout x86_op) -> Flow {
        op.imm = branchTarget
        op.disp = 0
        op.aux = !is64 && i.operandSize == 2 ? 2 : 0
        op.fn = HandlerTables.jcc[Int(i.opcode & 15)]
        return .next
    }
    private func exchangeAccumulator(_ op: inout x86_op) -> Flow {
        operands(&op)
        let number = (i.opcode & 7) | rexB
        if number == 0 {
            op.fn = i.rep == 0xF3 ? SystemHandlers.pause : SystemHandlers.nop
            return .next
        }
        op.reg = 0
        op.rm = number * 8
        op.fn = HandlerTables.exchangeRR[sizeIndex]
        return .next
    }
    private func shift(_ op: inout x86_op, _ sz: Int) -> Flow {
        operands(&op, byte: i.opcode & 1 == 0)
        if i.opcode == 0xD0 || i.opcode == 0xD1 { op.imm = 1 }
        let byCL = i.opcode >= 0xD2
        let index = Int(i.group) * 4 + sz
        if i.isMemory {
            op.aux = byCL ? 1 : 0
            op.fn = HandlerTables.shiftM[index]
        } else {
            op.fn = (byCL ? HandlerTables.shiftRC : HandlerTables.shiftRI)[index]
        }
        return .next
    }
    private func groupThree(_ op: inout x86_op, _ sz: Int) -> Flow {
        operands(&op, byte: i.opcode & 1 == 0)
        op.aux = i.isMemory ? 2 : 0
        switch i.group {
        case 0, 1: op.fn = (i.isMemory ? HandlerTables.binaryMI : HandlerTables.binaryRI)[8 * 4 + sz]
        case 2, 3:
            let index = (i.group == 2 ? 12 : 8) + sz
            op.fn = (i.isMemory ? (i.hasLock ? HandlerTables.unaryLocked : HandlerTables.unaryM) : HandlerTables.unaryR)[index]
        case 4: op.fn = HandlerTables.multiplyUnsigned[sz]
        case 5: op.fn = HandlerTables.multiplySigned[sz]
        case 6: op.fn = HandlerTables.divide[sz]
        default: op.fn = HandlerTables.divideSigned[sz]
        }
        return .next
    }
    private func groupFive(_ op: inout x86_op, _ sz: Int) -> Flow {
        operands(&op, byte: i.opcode == 0xFE)
        op.aux = i.isMemory ? 2 : 0
        switch i.group {
        case 0, 1:
            let index = Int(i.group) * 4 + sz
            op.fn = (i.isMemory ? (i.hasLock ? HandlerTables.unaryLocked : HandlerTables.unaryM) : HandlerTables.unaryR)[index]
            return .next
        case 2 where i.opcode == 0xFF, 4 where i.opcode == 0xFF:
            if is64 {
                op.size = 8
                if i.group == 2 {
                    op.fn = i.isMemory ? HandlerTables.callM64 : HandlerTables.callR64
                } else {
                    op.fn = i.isMemory ? HandlerTables.jumpM64 : HandlerTables.jumpR64
                }
            } else {
                op.fn = i.group == 2 ? SystemHandlers.callIndirect : SystemHandlers.jumpIndirect
            }
            return .ends
        case 3 where i.opcode == 0xFF && i.isMemory, 5 where i.opcode == 0xFF && i.isMemory:
            op.fn = i.group == 3 ? SystemHandlers.farCall : SystemHandlers.farJump
            return .ends
        case 6 where i.opcode == 0xFF:
            op.size = stackSize
            op.fn = is64 && op.size == 8 && !i.isMemory ? HandlerTables.pushR64 : SystemHandlers.push
            return .next
        default: return .undefined
        }
    }

    // MARK: two-byte opcodes

    private mutating func two(_ op: inout x86_op) -> Flow {
        let byte = i.opcode & 1 == 0
        switch i.opcode {
        case 0x00: return groupSix(&op)
        case 0x01: return groupSeven(&op)
        case 0x02, 0x03:
            operands(&op)
            op.aux = i.isMemory ? 2 : 0
            op.extra = UInt32(i.opcode)
            op.fn = SystemHandlers.inspectSelector
            return .next
        case 0x05, 0x34, 0x35, 0x07:
            operands(&op)
            op.fn = i.opcode == 0x05 ? SystemHandlers.syscall : (i.opcode == 0x07 ? SystemHandlers.sysret : (i.opcode == 0x34 ? SystemHandlers.sysenter : SystemHandlers.sysexit))
            return .ends
        case 0x06:
            op.fn = SystemHandlers.clearTaskSwitched
            return .ends
        case 0x08, 0x09:
            op.fn = SystemHandlers.privilegedNop
            return .next
        case 0x0D, 0x18...0x1F:
            op.fn = SystemHandlers.nop
            return .next
        case 0x20...0x23:
            operands(&op)
            op.extra = UInt32(i.reg)
            let handlers: [Handler] = [SystemHandlers.readControl, SystemHandlers.readDebug, SystemHandlers.writeControl, SystemHandlers.writeDebug]
            op.fn = handlers[Int(i.opcode & 3)]
            if i.opcode == 0x20, i.hasLock { return .undefined }
            return i.opcode == 0x22 ? .ends : .next
        case 0x30, 0x32, 0x31:
            op.fn = i.opcode == 0x30 ? SystemHandlers.writeMSR : (i.opcode == 0x32 ? SystemHandlers.readMSR : SystemHandlers.readTSC)
            return i.opcode == 0x30 ? .ends : .next
        case 0x40...0x4F:
            operands(&op)
            op.aux = i.opcode & 15
            op.fn = (i.isMemory ? HandlerTables.cmovM : HandlerTables.cmovR)[sizeIndex]
            return .next
        case 0x77:
            guard i.rep == 0, !i.has66 else { return .undefined }
            return emms(&op)
        case 0x80...0x8F: return jcc(&op)
        case 0x90...0x9F:
            operands(&op, byte: true)
            op.aux = i.opcode & 15
            op.fn = i.isMemory ? SystemHandlers.setByteM : SystemHandlers.setByteR
            return .next
        case 0xA0, 0xA8, 0xA1, 0xA9:
            operands(&op)
            op.size = stackSize
            op.extra = UInt32(i.opcode < 0xA8 ? SegmentRegister.fs : SegmentRegister.gs)
            op.fn = byte ? SystemHandlers.pushSegment : SystemHandlers.popSegment
            return byte ? .next : .ends
        case 0xA2:
            op.fn = SystemHandlers.cpuid
            return .next
        case 0xA3, 0xAB, 0xB3, 0xBB, 0xBA: return bits(&op)
        case 0xA4, 0xA5, 0xAC, 0xAD:
            operands(&op)
            op.aux = (i.opcode & 1) | (i.isMemory ? 2 : 0)
            op.fn = (i.opcode < 0xA8 ? HandlerTables.doubleShiftLeft : HandlerTables.doubleShiftRight)[sizeIndex]
            return .next
        case 0xAE: return groupFifteen(&op)
        case 0xAF:
            operands(&op)
            op.aux = i.isMemory ? 2 : 0
            op.fn = HandlerTables.multiplyTruncating[sizeIndex]
            return .next
        case 0xB0, 0xB1:
            operands(&op, byte: byte)
            op.fn = (i.isMemory ? HandlerTables.compareExchangeM : HandlerTables.compareExchangeR)[byte ? 0 : sizeIndex]
            return .next
        case 0xB2, 0xB4, 0xB5:
            guard i.isMemory else { return .undefined }
            operands(&op)
            op.aux = 2
            op.extra = UInt32(i.opcode == 0xB2 ? SegmentRegister.ss : (i.opcode == 0xB4 ? SegmentRegister.fs : SegmentRegister.gs))
            op.fn = SystemHandlers.loadFarPointer
            return .ends
        case 0xB6, 0xB7, 0xBE, 0xBF: return extend(&op)
        case 0xBC where i.rep == 0xF3 && features.contains(.bmi1), 0xBD where i.rep == 0xF3 && features.contains(.lzcnt): return simd(&op)
        case 0xBC, 0xBD:
            operands(&op)
            op.aux = i.isMemory ? 2 : 0
            op.fn = (i.opcode == 0xBC ? HandlerTables.bitScanForward : HandlerTables.bitScanReverse)[sizeIndex]
            return .next
        case 0xC0, 0xC1:
            operands(&op, byte: byte)
            op.fn = (i.isMemory ? HandlerTables.exchangeAddM : HandlerTables.exchangeAddR)[byte ? 0 : sizeIndex]
            return .next
        case 0xC7:
            guard i.isMemory, i.group == 1 else { return .undefined }
            operands(&op)
            op.fn = i.rexW ? SystemHandlers.compareExchange16 : SystemHandlers.compareExchange8
            return .next
        case 0xC8...0xCF:
            operands(&op)
            op.rm = ((i.opcode & 7) | rexB) * 8
            op.fn = SystemHandlers.byteSwap
            return .next
        case 0xF7 where i.rep == 0:
            guard i.mod == 3 else { return .undefined }
            operands(&op)
            op.size = i.has66 ? 16 : 8
            op.seg = UInt8(i.segmentOverride >= 0 ? Int(i.segmentOverride) : SegmentRegister.ds) * 8
            op.fn = ThunkHandlers.maskedMove
            return .next
        default: return simd(&op)
        }
    }

    private func simd(_ op: inout x86_op) -> Flow {
        guard let plan = ThunkPlan.plan(i, features) else { return .undefined }
        operands(&op)
        op.size = UInt8(plan.memory)
        op.aux =
            (i.isMemory && plan.writesRM ? ThunkAux.writesMemory : 0) | (plan.aligned ? ThunkAux.aligned : 0)
            | (plan.setsFlags ? ThunkAux.setsFlags : 0)
        op.imm = ThunkCache.shared.thunk(i, plan)
        guard op.imm != 0 else { return .undefined }
        if !plan.usesVector, plan.reg != .mmx, plan.rm != .mmx {
            op.fn = i.isMemory ? ThunkHandlers.generalMemory : ThunkHandlers.generalRegister
        } else if i.isVEX {
            op.fn = i.isMemory ? ThunkHandlers.vexMemory : ThunkHandlers.vexRegister
        } else {
            op.fn = i.isMemory ? ThunkHandlers.memory : ThunkHandlers.register
        }
        return .next
    }
    /// VEX instructions: most by thunks, some by hand.
    private func vex(_ op: inout x86_op) -> Flow {
        let prefix = ThunkPlan.Prefix(i)
        let avx = features.contains(.avx)
        op.extra = UInt32(i.vvvv) | (i.vexL ? 0x100 : 0)
        switch (i.map, i.opcode) {
        case (.two, 0x77):
            guard avx, prefix == .none, i.vvvv == 0 else { return .undefined }
            op.extra = i.vexL ? 1 : 0
            op.fn = ThunkHandlers.zeroVectors
        case (.two, 0xAE):
            guard avx, prefix == .none, i.vvvv == 0, !i.vexL, i.isMemory, i.group == 2 || i.group == 3 else { return .undefined }
            operands(&op)
            op.fn = i.group == 2 ? ThunkHandlers.loadMXCSR : ThunkHandlers.storeMXCSR
        case (.two, 0xF7):
            guard avx, prefix == .p66, i.vvvv == 0, !i.vexL, i.mod == 3 else { return .undefined }
            operands(&op)
            op.size = 16
            op.seg = UInt8(i.segmentOverride >= 0 ? Int(i.segmentOverride) : SegmentRegister.ds) * 8
            op.fn = ThunkHandlers.maskedMove
        case (.three38, 0x2C...0x2F), (.three38, 0x8C), (.three38, 0x8E):
            let floating = i.opcode < 0x80
            guard prefix == .p66, i.isMemory, floating ? avx && !i.rexW : features.contains(.avx2) else { return .undefined }
            operands(&op)
            op.size = floating ? (i.opcode & 1 == 0 ? 4 : 8) : (i.rexW ? 8 : 4)
            op.aux = i.opcode == 0x8E || i.opcode == 0x2E || i.opcode == 0x2F ? 1 : 0
            op.fn = ThunkHandlers.maskedElements
        case (.three38, 0x90...0x93):
            guard prefix == .p66, i.isMemory, i.rm & 7 == 4, i.addressSize != 2, features.contains(.avx2) else { return .undefined }
            let index = i.index < 0 ? 4 : UInt8(i.index)
            guard i.reg != index, i.reg != i.vvvv, i.vvvv != index else { return .undefined }
            operands(&op)
            op.index = index * 8
            op.size = i.rexW ? 8 : 4
            op.extra |= i.opcode & 1 == 1 ? 0x200 : 0
            op.fn = ThunkHandlers.gather
        default: return simd(&op)
        }
        return .next
    }
    private func emms(_ op: inout x86_op) -> Flow {
        op.imm = ThunkCache.shared.emms()
        guard op.imm != 0 else { return .undefined }
        op.fn = ThunkHandlers.register
        return .next
    }
    private func extend(_ op: inout x86_op) -> Flow {
        let fromByte = i.opcode & 1 == 0
        operands(&op, byte: false, byteRM: fromByte)
        let signed = i.opcode >= 0xBE
        let memory = i.isMemory
        switch (fromByte, signed) {
        case (true, false): op.fn = (memory ? HandlerTables.zeroExtend8RM : HandlerTables.zeroExtend8RR)[sizeIndex]
        case (true, true): op.fn = (memory ? HandlerTables.signExtend8RM : HandlerTables.signExtend8RR)[sizeIndex]
        case (false, false): op.fn = (memory ? HandlerTables.zeroExtend16RM : HandlerTables.zeroExtend16RR)[sizeIndex]
        case (false, true): op.fn = (memory ? HandlerTables.signExtend16RM : HandlerTables.signExtend16RR)[sizeIndex]
        }
        return .next
    }
    private func bits(_ op: inout x86_op) -> Flow {
        operands(&op)
        let immediate = i.opcode == 0xBA
        if immediate, i.group < 4 { return .undefined }
        let operation = immediate ? Int(i.group & 3) : Int((i.opcode >> 3) & 3)
        op.aux = (immediate ? 1 : 0) | (i.isMemory ? 2 : 0) | (i.hasLock ? 4 : 0)
        if immediate { op.imm &= UInt64(i.operandSize) * 8 - 1 }
        op.fn = HandlerTables.bit[operation * 4 + sizeIndex]
        return .next
    }
    private func groupSix(_ op: inout x86_op) -> Flow {
        operands(&op)
        op.aux = i.isMemory ? 2 : 0
        op.extra = UInt32(i.group)
        switch i.group {
        case 0, 1: op.fn = SystemHandlers.storeSelector
        case 2, 3: op.fn = SystemHandlers.loadSelector
        case 4, 5:
            op.extra = UInt32(i.group - 4)
            op.fn = SystemHandlers.inspectSelector
        default: return .undefined
        }
        return .next
    }
    private func groupSeven(_ op: inout x86_op) -> Flow {
        operands(&op)
        op.aux = i.isMemory ? 2 : 0
        op.extra = UInt32(i.group)
        switch i.group {
        case 0 where i.isMemory, 1 where i.isMemory: op.fn = SystemHandlers.storeTable
        case 2 where i.isMemory, 3 where i.isMemory: op.fn = SystemHandlers.loadTable
        case 2 where i.rm & 7 < 2 && i.rep == 0 && !i.has66 && features.contains(.avx):
            op.fn = i.rm & 7 == 0 ? ThunkHandlers.xgetbv : ThunkHandlers.xsetbv
        case 4:
            op.extra = 0x10
            op.fn = SystemHandlers.storeSelector
        case 6:
            op.extra = 0x16
            op.fn = SystemHandlers.loadSelector
            return .ends
        case 7 where i.isMemory:
            op.fn = SystemHandlers.invalidatePage
            return .ends
        case 7 where i.rm & 7 == 0:
            op.fn = SystemHandlers.swapGS
        default: return .undefined
        }
        return .next
    }
    private func groupFifteen(_ op: inout x86_op) -> Flow {
        operands(&op)
        guard i.isMemory else {
            guard i.rep == 0, i.group >= 5 else { return .undefined }
            op.fn = SystemHandlers.fence
            return .next
        }
        switch i.group {
        case 0 where i.rep == 0 && !i.has66: op.fn = ThunkHandlers.fxsave
        case 1 where i.rep == 0 && !i.has66: op.fn = ThunkHandlers.fxrstor
        case 2 where i.rep == 0: op.fn = ThunkHandlers.loadMXCSR
        case 3 where i.rep == 0: op.fn = ThunkHandlers.storeMXCSR
        case 4 where i.rep == 0 && !i.has66 && features.contains(.avx): op.fn = ThunkHandlers.xsave
        case 5 where i.rep == 0 && !i.has66 && features.contains(.avx): op.fn = ThunkHandlers.xrstor
        case 7 where i.rep == 0 && !i.has66: op.fn = SystemHandlers.nop  // CLFLUSH
        default: return .undefined
        }
        return .next
    }

    // MARK: x87

    private func x87(_ op: inout x86_op) -> Flow {
        operands(&op)
        op.aux = ThunkAux.x87
        if i.isMemory {
            guard let size = Self.x87MemorySize(i.opcode, i.group) else { return .undefined }
            op.size = UInt8(size)
            switch (i.opcode, i.group) {
            case (0xD9, 5): op.fn = ThunkHandlers.loadControl
            case (0xD9, 7):
                op.aux |= ThunkAux.nonWaiting
                op.fn = ThunkHandlers.storeControl
            case (0xD9, 4), (0xDD, 4), (0xD9, 6), (0xDD, 6):
                op.extra = i.group == 6 ? 1 : 0
                if i.group == 6 { op.aux |= ThunkAux.nonWaiting }
                op.imm = ThunkCache.shared.thunk(x87: i, loadsFlags: false, setsFlags: false)
                guard op.imm != 0 else { return .undefined }
                op.fn = ThunkHandlers.environment
            default:
                let stores = Self.x87Stores(i.opcode, i.group)
                op.aux |= stores ? ThunkAux.writesMemory : 0
                if i.opcode == 0xDD, i.group == 7 { op.aux |= ThunkAux.nonWaiting }
                op.imm = ThunkCache.shared.thunk(x87: i, loadsFlags: false, setsFlags: false)
                guard op.imm != 0 else { return .undefined }
                op.fn = ThunkHandlers.memory
            }
            return .next
        }
        let number = Int(i.opcode - 0xD8) << 8 | Int(0xC0 | i.group << 3 | i.rm & 7)
        guard Self.isX87Register(i.opcode, i.group, i.rm & 7) else { return .undefined }
        switch number {
        case 0x3E2, 0x3E3:  // FNCLEX FNINIT
            op.aux |= ThunkAux.nonWaiting
            if number == 0x3E3 {
                op.fn = ThunkHandlers.initialize
                return .next
            }
        case 0x7E0:  // FNSTSW AX
            op.aux |= ThunkAux.nonWaiting
            op.fn = ThunkHandlers.storeStatusAX
            return .next
        default: break
        }
        let conditional = (i.opcode == 0xDA || i.opcode == 0xDB) && i.group < 4
        let compares = (i.opcode == 0xDB || i.opcode == 0xDF) && (i.group == 5 || i.group == 6)
        op.aux |= (conditional ? ThunkAux.loadsFlags : 0) | (compares ? ThunkAux.setsFlags : 0)
        op.imm = ThunkCache.shared.thunk(x87: i, loadsFlags: conditional, setsFlags: compares)
        guard op.imm != 0 else { return .undefined }
        op.fn = ThunkHandlers.register
        return .next
    }
    static func x87MemorySize(_ opcode: UInt8, _ group: UInt8) -> Int? {
        switch opcode {
        case 0xD8, 0xDA: return 4
        case 0xD9: return [4, nil, 4, 4, 28, 2, 28, 2][Int(group)]
        case 0xDB: return [4, 4, 4, 4, nil, 10, nil, 10][Int(group)]
        case 0xDC: return 8
        case 0xDD: return [8, 8, 8, 8, 108, nil, 108, 2][Int(group)]
        case 0xDE: return 2
        default: return [2, 2, 2, 2, 10, 8, 10, 8][Int(group)]
        }
    }
    static func x87Stores(_ opcode: UInt8, _ group: UInt8) -> Bool {
        switch opcode {
        case 0xD9: return group == 2 || group == 3
        case 0xDB: return (1...3).contains(group) || group == 7
        case 0xDD: return (1...3).contains(group) || group == 7
        case 0xDF: return (1...3).contains(group) || group >= 6
        default: return false
        }
    }
    static func isX87Register(_ opcode: UInt8, _ group: UInt8, _ rm: UInt8) -> Bool {
        switch opcode {
        case 0xD9:
            switch group {
            case 2: return rm == 0
            case 4: return rm == 0 || rm == 1 || rm == 4 || rm == 5
            case 5: return rm != 7
            default: return true
            }
        case 0xDA: return group < 4 || (group == 5 && rm == 1)
        case 0xDB: return group < 4 || group == 5 || group == 6 || (group == 4 && (rm == 2 || rm == 3))
        case 0xDD: return group < 6
        case 0xDE: return group != 3 || rm == 1
        case 0xDF: return group < 4 || (group == 4 && rm == 0) || group == 5 || group == 6
        default: return true  // with the undocumented doubles of FCOM, FXCH and FSTP that processors have
        }
    }
}
