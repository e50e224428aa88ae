import CX86

// Handlers for the x87 opcodes, D8 to DF.
extension HandlerSelector {
    func x87(_ op: inout x86_op) -> Flow {
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
            case (0xDD, 7):
                op.aux |= ThunkAux.nonWaiting
                op.fn = ThunkHandlers.storeStatus
            case (0xD9, 4), (0xDD, 4), (0xD9, 6), (0xDD, 6):
                op.extra = i.group == 6 ? 1 : 0
                if i.group == 6 { op.aux |= ThunkAux.nonWaiting }
                op.imm = ThunkCache.shared.thunk(x87: i, loadsFlags: false, setsFlags: false)
                guard op.imm != 0 else { return .undefined }
                op.fn = ThunkHandlers.environment
            default:
                let stores = Self.x87Stores(i.opcode, i.group)
                op.aux |= stores ? ThunkAux.writesMemory : 0
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
    /// FNSTCW and FNSTSW.
    static func x87StoresWord(_ opcode: UInt8, _ group: UInt8) -> Bool { group == 7 && (opcode == 0xD9 || opcode == 0xDD) }
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
