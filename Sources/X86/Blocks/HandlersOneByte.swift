import CX86

// Handlers for the one-byte opcodes. SDM vol. 2 appendix A, table A-2.
extension HandlerSelector {
    mutating func one(_ op: inout x86_op) -> Flow {
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
            op.extra = opcode == 0xCE ? 1 : opcode == 0xF1 ? 2 : 0
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
    var rexB: UInt8 { i.opcodeRegisterExtension }

    func binary(_ op: inout x86_op, _ operation: Int, form: Int) -> Flow {
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
    func binaryImmediate(_ op: inout x86_op) -> Flow {
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
    func pushPopRegister(_ op: inout x86_op) -> Flow {
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
    func stringPort(_ op: inout x86_op) -> Flow {
        operands(&op)
        op.aux = i.rep != 0 ? 1 : 0
        op.seg = UInt8(i.segmentOverride >= 0 ? Int(i.segmentOverride) : SegmentRegister.ds) * 8
        let width = i.opcode & 1 == 0 ? 0 : min(sizeIndex, 2)
        op.fn = (i.opcode < 0x6E ? HandlerTables.portInString : HandlerTables.portOutString)[width]
        return .ends
    }
    func string(_ op: inout x86_op, _ sz: Int) -> Flow {
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
    func jcc(_ op: inout x86_op) -> Flow {
        op.imm = branchTarget
        op.disp = 0
        op.aux = !is64 && i.operandSize == 2 ? 2 : 0
        op.fn = HandlerTables.jcc[Int(i.opcode & 15)]
        return .next
    }
    func exchangeAccumulator(_ op: inout x86_op) -> Flow {
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
    func shift(_ op: inout x86_op, _ sz: Int) -> Flow {
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
    func groupThree(_ op: inout x86_op, _ sz: Int) -> Flow {
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
    func groupFive(_ op: inout x86_op, _ sz: Int) -> Flow {
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
}
