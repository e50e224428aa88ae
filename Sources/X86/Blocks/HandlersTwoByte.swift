import CX86

// Handlers for the two-byte opcodes, 0F …. SDM vol. 2 appendix A, table A-3.
extension HandlerSelector {
    mutating func two(_ op: inout x86_op) -> Flow {
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
            op.aux = i.has66 ? 0 : ThunkAux.waits
            op.seg = UInt8(i.segmentOverride >= 0 ? Int(i.segmentOverride) : SegmentRegister.ds) * 8
            op.fn = ThunkHandlers.maskedMove
            return .next
        default: return simd(&op)
        }
    }

    func simd(_ op: inout x86_op) -> Flow {
        guard let plan = ThunkPlan.plan(i, features) else { return .undefined }
        operands(&op)
        op.size = UInt8(plan.memory)
        op.aux =
            (i.isMemory && plan.writesRM ? ThunkAux.writesMemory : 0) | (plan.aligned ? ThunkAux.aligned : 0)
            | (plan.setsFlags ? ThunkAux.setsFlags : 0) | (plan.reg == .mmx || plan.rm == .mmx && !i.isMemory ? ThunkAux.waits : 0)
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
    func vex(_ op: inout x86_op) -> Flow {
        let prefix = ThunkPlan.Prefix(i)
        let avx = features.contains(.avx)
        op.extra = UInt32(i.vvvv) | (i.vexL ? 0x100 : 0)
        switch (i.map, i.opcode) {
        case (.two, 0x77):
            guard avx, prefix == .none, i.namesNoThird else { return .undefined }
            op.extra = i.vexL ? 1 : 0
            op.fn = ThunkHandlers.zeroVectors
        case (.two, 0xAE):
            guard avx, prefix == .none, i.namesNoThird, !i.vexL, i.isMemory, i.group == 2 || i.group == 3 else { return .undefined }
            operands(&op)
            op.fn = i.group == 2 ? ThunkHandlers.loadMXCSR : ThunkHandlers.storeMXCSR
        case (.two, 0xF7):
            guard avx, prefix == .p66, i.namesNoThird, !i.vexL, i.mod == 3 else { return .undefined }
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
    func emms(_ op: inout x86_op) -> Flow {
        op.imm = ThunkCache.shared.emms()
        guard op.imm != 0 else { return .undefined }
        op.fn = ThunkHandlers.register
        return .next
    }
    func extend(_ op: inout x86_op) -> Flow {
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
    func bits(_ op: inout x86_op) -> Flow {
        operands(&op)
        let immediate = i.opcode == 0xBA
        if immediate, i.group < 4 { return .undefined }
        let operation = immediate ? Int(i.group & 3) : Int((i.opcode >> 3) & 3)
        op.aux = (immediate ? 1 : 0) | (i.isMemory ? 2 : 0) | (i.hasLock ? 4 : 0)
        if immediate { op.imm &= UInt64(i.operandSize) * 8 - 1 }
        op.fn = HandlerTables.bit[operation * 4 + sizeIndex]
        return .next
    }
    func groupSix(_ op: inout x86_op) -> Flow {
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
    func groupSeven(_ op: inout x86_op) -> Flow {
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
        case 0 where i.rm & 7 == 1 && i.rep == 0 && !i.has66, 3 where i.rm & 7 == 1 && i.rep == 0 && !i.has66:
            op.fn = SystemHandlers.hypercall
            return .ends
        default: return .undefined
        }
        return .next
    }
    func invalidateContext(_ op: inout x86_op) -> Flow {
        guard i.isMemory, i.has66, i.rep == 0, features.contains(.pcid) else { return .undefined }
        operands(&op)
        op.fn = SystemHandlers.invalidateContext
        return .ends
    }
    func groupFifteen(_ op: inout x86_op) -> Flow {
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
}
