/// Memory operands of a segment that lie near each other: the same base register, not written in between but for known
/// sums, a few hundred bytes at most. The first of them checks the whole range against the TLB and keeps the distance
/// between guest and host addresses; the others add it.
struct AccessWindow {
    /// How one operand uses a window.
    struct Use {
        let window: Int
        /// The range to check, relative to the base register at this operand; only for the first.
        let opening: Opening?
    }
    struct Opening {
        let low: Int
        let size: Int
        let writes: Bool
    }
    static let largest = 512
    static let perSegment = 2

    private var base: UInt8
    /// The base register now, less what it was at the first operand.
    private var moved = 0
    private var low: Int
    private var high: Int
    private var writes: Bool
    private var users: [(line: Int, isStack: Bool)]

    /// What the lines' operands use, by line: its own memory operand and the stack's.
    static func plan(_ lines: [(instruction: Instruction, plan: TranslationPlan)]) -> [(memory: Use?, stack: Use?)] {
        var open: [AccessWindow] = []
        var closed: [AccessWindow] = []
        for (number, line) in lines.enumerated() {
            for operand in operands(line.instruction, line.plan) {
                if let index = open.firstIndex(where: { $0.base == operand.base }) {
                    if open[index].extend(number, operand) { continue }
                    closed.append(open.remove(at: index))
                }
                open.append(
                    AccessWindow(
                        base: operand.base, low: operand.offset, high: operand.offset + operand.size, writes: operand.writes,
                        users: [(number, operand.isStack)]))
            }
            for index in open.indices.reversed() {
                if let step = change(of: open[index].base, by: line.instruction, line.plan) {
                    open[index].moved += step
                } else {
                    closed.append(open.remove(at: index))
                }
            }
        }
        var uses = [(memory: Use?, stack: Use?)](repeating: (nil, nil), count: lines.count)
        let best = (closed + open).filter { $0.users.count > 1 }.sorted { $0.users.count > $1.users.count }.prefix(perSegment)
        for (window, chosen) in best.enumerated() {
            for (order, user) in chosen.users.enumerated() {
                let opening = order == 0 ? Opening(low: chosen.low, size: chosen.high - chosen.low, writes: chosen.writes) : nil
                let use = Use(window: window, opening: opening)
                if user.isStack { uses[user.line].stack = use } else { uses[user.line].memory = use }
            }
        }
        return uses
    }

    private mutating func extend(_ line: Int, _ operand: Operand) -> Bool {
        let newLow = min(low, moved + operand.offset)
        let newHigh = max(high, moved + operand.offset + operand.size)
        guard newHigh - newLow <= Self.largest else { return false }
        (low, high) = (newLow, newHigh)
        writes = writes || operand.writes
        users.append((line, operand.isStack))
        return true
    }

    private struct Operand {
        var base: UInt8
        var offset: Int
        var size: Int
        var writes: Bool
        var isStack: Bool
    }
    private static func operands(_ i: Instruction, _ plan: TranslationPlan) -> [Operand] {
        var result: [Operand] = []
        if i.isMemory, plan.size > 0, !i.isRIPRelative, i.index < 0, i.base >= 0, i.addressSize == 8, i.segmentOverride < 4, Host.register(UInt8(i.base)) != nil,
            abs(i.displacement) < 1 << 30
        {
            result.append(Operand(base: UInt8(i.base), offset: Int(i.displacement), size: plan.size, writes: plan.writesRM, isStack: false))
        }
        switch plan.kind {
        case .pushRegister, .pushImmediate, .pushMemory, .pushFlags, .call, .callIndirect: result.append(Operand(base: 4, offset: -8, size: 8, writes: true, isStack: true))
        case .popRegister, .ret: result.append(Operand(base: 4, offset: 0, size: 8, writes: false, isStack: true))
        case .leave: result.append(Operand(base: 5, offset: 0, size: 8, writes: false, isStack: true))
        default: break
        }
        return result
    }

    /// What an instruction adds to a register; nil when it changes it otherwise.
    private static func change(of register: UInt8, by i: Instruction, _ plan: TranslationPlan) -> Int? {
        /// Legacy byte registers 4–7 are parts of registers 0–3.
        func isChanged(_ n: UInt8, byte: Bool) -> Bool { n == register || (byte && !i.hasREX && n & 3 == register) }
        let named = (i.opcode & 7) | i.opcodeRegisterExtension
        switch plan.kind {
        case .pushRegister, .pushImmediate, .pushMemory, .pushFlags: return register == 4 ? -8 : 0
        case .popRegister:
            if named == register { return nil }
            return register == 4 ? 8 : 0
        case .leave: return register == 4 || register == 5 ? nil : 0
        case .plain: return !plan.isX87 && (register == 0 || register == 2) ? nil : 0
        case .exchangeAccumulator: return register == 0 || named == register ? nil : 0
        case .moveImmediate, .byteSwap: return isChanged(named, byte: i.opcode < 0xB8) ? nil : 0
        case .lea:
            guard i.reg == register else { return 0 }
            let adds = i.base == Int8(register) && i.index < 0 && !i.isRIPRelative && i.addressSize == 8 && i.operandSize == 8
            return adds && abs(i.displacement) < 1 << 30 ? Int(i.displacement) : nil
        case .nop, .zeroUpper, .clearInterrupt, .setInterrupt, .jump, .conditional, .call, .ret, .jumpIndirect, .callIndirect: return 0
        case .modRM, .divide: break
        }
        if i.map == .one, !plan.isExtended, i.opcode == 0x81 || i.opcode == 0x83, !i.isMemory, i.rm == register, i.operandSize == 8, i.group == 0 || i.group == 5 {
            return i.group == 0 ? Int(i.immediate) : -Int(i.immediate)
        }
        if plan.reg == .general, plan.writesReg, isChanged(i.reg, byte: plan.byteReg) { return nil }
        if plan.rm == .general, plan.writesRM, !i.isMemory, isChanged(i.rm, byte: plan.byteRM) { return nil }
        if plan.vvvv == .general, plan.writesV, i.vvvv == register { return nil }
        if plan.writesRCX, register == 1 { return nil }
        let multiplies = i.map == .one && i.opcode & 0xFE == 0xF6 && i.group >= 4
        if multiplies, register == 0 || register == 2 { return nil }
        if i.map == .two, i.opcode == 0xC7, !i.isVEX, register == 0 || register == 2 { return nil }
        let compares = i.map == .two && i.opcode & 0xFE == 0xB0 && !i.isVEX
        return compares && register == 0 ? nil : 0
    }
}
