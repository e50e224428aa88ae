/// Memory operands of a segment that lie near each other: the same base and index registers, not written in between but for
/// known sums, a few hundred bytes at most. The first of them checks the whole range against the TLB and keeps the distance
/// between guest and host addresses; the others add it. With an index the base is part of what is kept: an operand has room for
/// two registers.
enum AccessWindow {
    /// How one operand uses a window.
    struct Use {
        private let number: Int8
        /// The range to check, relative to the registers at this operand; only for the first.
        let opening: Opening?
        /// What has been added to the base since then. With an index only: others have the base itself in their operand.
        private let distance: Int32
        var window: Int { Int(number) }
        var moved: Int { Int(distance) }

        /// - Parameter moved: less than a million either way.
        init(window: Int, opening: Opening?, moved: Int) {
            number = Int8(truncatingIfNeeded: window)
            self.opening = opening
            distance = Int32(truncatingIfNeeded: moved)
        }
    }
    struct Opening {
        private let offset: Int32
        private let bytes: Int16
        let writes: Bool
        var low: Int { Int(offset) }
        var size: Int { Int(bytes) }

        /// - Parameter size: at most `largest`.
        init(low: Int, size: Int, writes: Bool) {
            offset = Int32(truncatingIfNeeded: low)
            bytes = Int16(truncatingIfNeeded: size)
            self.writes = writes
        }
    }
    static let largest = 512
    static let perSegment = 4
}

/// Finds the windows of a segment. One for many segments, so that its lists are allocated once.
struct AccessWindows {
    private struct Window {
        var base: UInt8
        var index: Int8
        var scale: UInt8
        /// The operands' address now, less what it was at the first operand; and the base register alone.
        var moved = 0
        var baseMoved = 0
        var low: Int
        var high: Int
        var writes: Bool
        var users = 1
    }
    private var windows: [Window] = []
    private var users: [(line: Int, isStack: Bool, window: Int, moved: Int)] = []
    /// By base register, the window that operands may still join; and which registers have one.
    private var open: InlineArray<16, Int> = InlineArray(repeating: 0)
    private var isOpen: UInt16 = 0
    /// The same with an index register.
    private var indexed: InlineArray<4, Int> = InlineArray(repeating: -1)
    private var nextIndexed = 0
    /// In 32-bit code registers wrap where the host's addresses do not: whatever is added to a base must stay within the window, and
    /// nothing may be added where there is an index.
    private var isNarrow = false

    /// Sets what the lines' operands use: a line's own memory operand and the stack's.
    mutating func plan(_ lines: inout [TranslationLine]) {
        windows.removeAll(keepingCapacity: true)
        users.removeAll(keepingCapacity: true)
        isNarrow = lines.first?.instruction.code == .bits32
        (isOpen, indexed, nextIndexed) = (0, InlineArray(repeating: -1), 0)
        for number in lines.indices {
            if let operand = Self.memoryOperand(lines[number].instruction, lines[number].plan) { add(operand, number, isStack: false) }
            if let operand = Self.stackOperand(lines[number].plan, Int(lines[number].instruction.naturalSize)) { add(operand, number, isStack: true) }
            if !Self.changesNothing(lines[number].instruction, lines[number].plan) { follow(lines[number].instruction, lines[number].plan) }
        }
        // Those that most operands share.
        for window in 0..<AccessWindow.perSegment {
            var best = -1
            for index in windows.indices where windows[index].users > (best < 0 ? 1 : windows[best].users) { best = index }
            if best < 0 { return }
            give(best, as: window, &lines)
        }
    }
    /// What an instruction does to the registers of windows that operands may still join.
    private mutating func follow(_ i: Instruction, _ plan: TranslationPlan) {
        var left = isOpen
        while left != 0 {
            let base = UInt8(left.trailingZeroBitCount)
            left &= left - 1
            if let step = Self.change(of: base, by: i, plan) {
                windows[open[Int(base)]].moved += step
            } else {
                isOpen &= ~(1 << UInt16(base))
            }
        }
        for place in 0..<4 where indexed[place] >= 0 {
            let number = indexed[place]
            if let base = Self.change(of: windows[number].base, by: i, plan), let index = Self.change(of: UInt8(windows[number].index), by: i, plan),
                !isNarrow || base == 0 && index == 0
            {
                windows[number].moved += base + index << Int(windows[number].scale)
                windows[number].baseMoved += base
            } else {
                indexed[place] = -1
            }
        }
    }
    private mutating func add(_ operand: Operand, _ line: Int, isStack: Bool) {
        guard operand.index < 0 else { return addIndexed(operand, line) }
        let base = Int(operand.base)
        if isOpen >> UInt16(base) & 1 == 0 || !extend(open[base], operand) {
            open[base] = make(operand)
            isOpen |= 1 << UInt16(base)
        }
        users.append((line, isStack, open[base], 0))
    }
    private mutating func addIndexed(_ operand: Operand, _ line: Int) {
        func isSame(_ number: Int) -> Bool {
            number >= 0 && windows[number].base == operand.base && windows[number].index == operand.index && windows[number].scale == operand.scale
        }
        for place in 0..<4 where isSame(indexed[place]) {
            if !extend(indexed[place], operand) { indexed[place] = make(operand) }
            return users.append((line, false, indexed[place], windows[indexed[place]].baseMoved))
        }
        indexed[nextIndexed] = make(operand)
        users.append((line, false, indexed[nextIndexed], 0))
        nextIndexed = (nextIndexed + 1) & 3
    }
    private mutating func make(_ operand: Operand) -> Int {
        windows.append(
            Window(
                base: operand.base, index: operand.index, scale: operand.scale, low: operand.offset, high: operand.offset + operand.size, writes: operand.writes))
        return windows.count - 1
    }
    private mutating func extend(_ index: Int, _ operand: Operand) -> Bool {
        let moved = windows[index].moved
        var low = min(windows[index].low, moved + operand.offset)
        var high = max(windows[index].high, moved + operand.offset + operand.size)
        if isNarrow, moved != 0 { (low, high) = (min(low, moved), max(high, moved + 1)) }
        guard high - low <= AccessWindow.largest, abs(windows[index].baseMoved) < 1 << 20 else { return false }
        (windows[index].low, windows[index].high) = (low, high)
        windows[index].writes = windows[index].writes || operand.writes
        windows[index].users += 1
        return true
    }
    private mutating func give(_ index: Int, as number: Int, _ lines: inout [TranslationLine]) {
        let window = windows[index]
        var opening: AccessWindow.Opening? = .init(low: window.low, size: window.high - window.low, writes: window.writes)
        for user in users where user.window == index {
            let use = AccessWindow.Use(window: number, opening: opening, moved: user.moved)
            if user.isStack { lines[user.line].stack = use } else { lines[user.line].memory = use }
            opening = nil
        }
        windows[index].users = 0
    }

    private struct Operand {
        var base: UInt8
        var index: Int8 = -1
        var scale: UInt8 = 0
        var offset: Int
        var size: Int
        var writes: Bool
    }
    private static func memoryOperand(_ i: Instruction, _ plan: TranslationPlan) -> Operand? {
        guard i.isMemory, plan.size > 0, plan.kind != .bitString, !i.isRIPRelative, i.hasNaturalAddress, i.segmentOverride < 4, abs(i.displacement) < 1 << 30,
            i.base >= 0, Host.register(UInt8(i.base)) != nil, i.index < 0 || Host.register(UInt8(i.index)) != nil
        else { return nil }
        return Operand(base: UInt8(i.base), index: i.index, scale: i.index < 0 ? 0 : i.scale, offset: Int(i.displacement), size: plan.size, writes: plan.writesRM)
    }
    private static func stackOperand(_ plan: TranslationPlan, _ size: Int) -> Operand? {
        switch plan.kind {
        case .pushRegister, .pushImmediate, .pushMemory, .pushFlags, .call, .callIndirect: Operand(base: 4, offset: -size, size: size, writes: true)
        case .popRegister, .ret: Operand(base: 4, offset: 0, size: size, writes: false)
        case .leave: Operand(base: 5, offset: 0, size: size, writes: false)
        default: nil
        }
    }

    /// The same for instructions on RAX that have no ModRM byte.
    private static func accumulatorChange(of register: UInt8, by i: Instruction) -> Int? {
        switch i.opcode {
        case 0x3C, 0x3D, 0xA8, 0xA9: 0  // CMP, TEST
        case 0x05 where i.operandSize == i.naturalSize: register == 0 ? Int(i.immediate) : 0
        case 0x2D where i.operandSize == i.naturalSize: register == 0 ? -Int(i.immediate) : 0
        default: nil
        }
    }
    /// What an instruction of the first map adds to its operand.
    private static func sum(_ i: Instruction) -> Int? {
        switch (i.opcode, i.group) {
        case (0x81, 0), (0x83, 0): Int(i.immediate)
        case (0x81, 5), (0x83, 5): -Int(i.immediate)
        case (0xFF, 0): 1
        case (0xFF, 1): -1
        default: nil
        }
    }
    /// Of a third of all instructions that is seen at once: comparisons, stores, jumps.
    private static func changesNothing(_ i: Instruction, _ plan: TranslationPlan) -> Bool {
        switch plan.kind {
        case .modRM: i.map == .one && !plan.writesReg && (i.isMemory || !plan.writesRM) && i.opcode & 0xFE != 0xF6
        case .conditional, .jump, .nop: true
        default: false
        }
    }
    /// What an instruction adds to a register; nil when it changes it otherwise.
    private static func change(of register: UInt8, by i: Instruction, _ plan: TranslationPlan) -> Int? {
        /// Legacy byte registers 4–7 are parts of registers 0–3.
        func isChanged(_ n: UInt8, byte: Bool) -> Bool { n == register || (byte && !i.hasREX && n & 3 == register) }
        let named = (i.opcode & 7) | i.opcodeRegisterExtension
        switch plan.kind {
        case .pushRegister, .pushImmediate, .pushMemory, .pushFlags: return register == 4 ? -Int(i.naturalSize) : 0
        case .popRegister:
            if named == register { return nil }
            return register == 4 ? Int(i.naturalSize) : 0
        case .leave: return register == 4 || register == 5 ? nil : 0
        case .plain:
            guard register == 0 || register == 2 else { return 0 }
            // Of these only FNSTSW has an operand outside.
            if plan.isX87 { return register == 0 && i.opcode == 0xDF && i.group == 4 ? nil : 0 }
            return accumulatorChange(of: register, by: i)
        case .exchangeAccumulator: return register == 0 || named == register ? nil : 0
        case .moveImmediate, .byteSwap: return isChanged(named, byte: i.opcode < 0xB8) ? nil : 0
        case .lea:
            guard i.reg == register else { return 0 }
            let adds = i.base == Int8(register) && i.index < 0 && !i.isRIPRelative && i.hasNaturalAddress && i.operandSize == i.naturalSize
            return adds && abs(i.displacement) < 1 << 30 ? Int(i.displacement) : nil
        case .nop, .pause, .zeroUpper, .emptyMMX, .clearInterrupt, .setInterrupt, .jump, .conditional, .call, .ret, .jumpIndirect, .callIndirect: return 0
        case .storeString: return register == 1 || register == 7 ? nil : 0
        case .moveString: return register == 1 || register == 6 || register == 7 ? nil : 0
        case .bitString, .setDirection, .fence, .swapGS: return 0
        case .modRM, .divide, .loadControl, .moveFromSegment: break
        }
        if i.map == .one, !plan.isExtended, !i.isMemory, i.rm == register, i.operandSize == i.naturalSize, let sum = sum(i) { return sum }
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
