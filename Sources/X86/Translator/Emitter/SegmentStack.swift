// The stack pointer in a row of pushes and pops: written once, behind them.
extension BlockTranslator {
    mutating func moveStack(_ bytes: Int32) {
        stackMove += bytes
        if !isSimpleStackAccess(lines[current]) { writeStackPointer() }
    }
    /// Before whatever reads the stack pointer, or may leave the segment.
    mutating func writeStackPointer() {
        guard stackMove != 0 else { return }
        addToStack(stackMove)
        stackMove = 0
    }
    /// Whether a line does the same with a stack pointer that is yet to be moved by `stackMove`.
    func mayMoveStackLater(_ line: Line) -> Bool {
        let (i, plan) = (line.instruction, line.plan)
        switch plan.kind {
        case .pushRegister, .popRegister, .pushImmediate: return line.stack?.opening == nil && isSimpleStackAccess(line)
        case .nop: return true
        case .moveImmediate: return (i.opcode & 7) | i.opcodeRegisterExtension != 4
        case .modRM:
            return !i.isMemory && !plan.isVEX && !plan.isX87 && plan.reg != .vector && plan.rm == .general && i.rm != 4 && (plan.reg == .none || i.reg != 4)
        default: return false
        }
    }
    /// A push or pop that its window answers for: it cannot fault.
    private func isSimpleStackAccess(_ line: Line) -> Bool {
        let i = line.instruction
        guard usesWindows, line.stack != nil else { return false }
        switch line.plan.kind {
        case .pushImmediate: return true
        case .pushRegister, .popRegister: return (i.opcode == 0xFF ? i.rm : (i.opcode & 7) | i.opcodeRegisterExtension) != 4
        default: return false
        }
    }
}
