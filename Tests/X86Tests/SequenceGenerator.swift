import X86

/// Random sequences of user-mode instructions whose outcome the manuals define: operands of all kinds, good and bad
/// addresses, page crossings, forward jumps, calls, counted loops, string instructions.
struct SequenceGenerator {
    /// One instruction with what must stand before it.
    private struct Item {
        var bytes: [UInt8]
        /// A relative displacement in the last four bytes, to the start of this item.
        var target: Int?
        /// The address itself instead.
        var isAbsolute = false
        /// A jump that may be led around a call.
        var isForward = false
        /// What an operand relative to the instruction's end means, and where its displacement stands.
        var relative: (at: Int, address: UInt64)?
    }
    private var random: Generator
    private let data: UInt64
    /// Where sequences stand.
    private let code: UInt64
    private let size: CodeSize
    /// Flags that the manuals leave undefined at this point.
    private(set) var undefinedFlags: UInt64 = 0 {
        didSet { everUndefined |= undefinedFlags }
    }
    /// Flags that were undefined anywhere in the sequence.
    private(set) var everUndefined: UInt64 = 0
    /// FLDENV or FRSTOR is among them: which of many bytes a processor looks at first is its own affair.
    private(set) var loadsEnvironment = false
    /// DPPS or DPPD is among them: exceptions of products and of sums, in an order of the processor's own.
    private(set) var sumsProducts = false
    private var incoming: [Int: UInt64] = [:]
    /// Items within a call and its return.
    private var insides: Set<Int> = []
    private(set) var forms: Set<UInt16> = []

    static let allFlags: UInt64 = 0x8D5
    /// Pages of the data area: 3 and 6 are not there, 4 is read-only, 7 holds loop counters, out of reach of the others.
    static let missingPages: Set<Int> = [3, 6]
    static let readOnlyPage = 4
    static let pageCount = 8

    init(seed: UInt64, data: UInt64, code: UInt64, size: CodeSize = .bits64) {
        random = Generator(state: seed)
        (self.data, self.code, self.size) = (data, code, size)
    }
    mutating func next() -> UInt64 { random.next() }
    mutating func chance(_ n: UInt64) -> Bool { random.next() % n == 0 }
    mutating func below(_ n: UInt64) -> UInt64 { random.next() % n }
    private mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: random.next()) }

    mutating func value() -> UInt64 { below(8) == 0 ? place() : random.corner() }
    private static let endOfAddresses: UInt64 = 0xFFFF_FF00
    /// For a register. Not the last addresses of 32-bit code: which exception an operand has that goes on behind them is the processor's own
    /// affair, though what is added to registers leads there all the same.
    mutating func register() -> UInt64 {
        if size == .bits64 { return value() }
        let value = value() & 0xFFFF_FFFF
        return value > Self.endOfAddresses ? value & 0xFFFF : value
    }
    /// An address in the data area: mostly inside a good page, sometimes at a boundary or in a bad page.
    mutating func place() -> UInt64 {
        switch below(8) {
        case 0: return data + below(7) * 0x1000 + 0xFD8 + below(0x30)
        case 1: return data + below(7) * 0x1000 + below(0xF00)
        default: return data + [0, 1, 2, 5][Int(below(4))] * 0x1000 + below(0xF00)
        }
    }

    /// - Parameter count: about how many instructions.
    mutating func sequence(count: Int) -> [UInt8] {
        undefinedFlags = 0
        everUndefined = 0
        loadsEnvironment = false
        sumsProducts = false
        incoming = [:]
        insides = []
        var items: [Item] = []
        var loopHead: Int?
        var loops: UInt64 = 0
        while items.count < count {
            if loopHead == nil, chance(12) {
                // A counter of its own, at first 1: a jump may skip this.
                loops += 1
                items.append(Item(bytes: [0xC7, 0x04, 0x25] + little(counter(loops), 4) + little(1 + below(6), 4)))
                items.append(Item(bytes: define()))
                loopHead = items.count - 1
                continue
            }
            if let head = loopHead, items.count > head + 2, chance(4) {
                // One item, so that no jump skips the count.
                let back: [UInt8] = chance(3) ? [0x0F, 0x84, 5, 0, 0, 0, 0xE9, 0, 0, 0, 0] : [0x0F, 0x85, 0, 0, 0, 0]
                items.append(Item(bytes: [0xFF, 0x0C, 0x25] + little(counter(loops), 4) + back, target: head))
                undefinedFlags &= 1
                loopHead = nil
                continue
            }
            switch below(24) {
            case 0, 1: items.append(conditionalJump(items.count))
            case 2: addCall(&items)
            case 3: items.append(stringInstruction())
            case 4: if chance(3) { addStackRow(&items) } else { items.append(Item(bytes: pushOrPop())) }
            default: if let item = general() { items.append(item) }
            }
            undefinedFlags |= incoming[items.count] ?? 0
        }
        for (at, flags) in incoming where at >= items.count { undefinedFlags |= flags }
        return link(items)
    }

    static let counterRange = 0x7800..<0x7880
    private func counter(_ loop: UInt64) -> UInt64 { data + UInt64(Self.counterRange.lowerBound) + (loop % 32) * 4 }
    private func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }

    private func link(_ items: [Item]) -> [UInt8] {
        var starts: [Int] = []
        var at = 0
        for item in items {
            starts.append(at)
            at += item.bytes.count
        }
        starts.append(at)
        var code: [UInt8] = []
        for item in items {
            var bytes = item.bytes
            if var target = item.target {
                while item.isForward, insides.contains(target) { target += 1 }
                let end = code.count + bytes.count
                let displacement = item.isAbsolute ? Int(self.code) + starts[min(target, items.count)] : starts[min(target, items.count)] - end
                bytes.replaceSubrange(bytes.count - 4..<bytes.count, with: little(UInt64(bitPattern: Int64(displacement)), 4))
            }
            if let (at, address) = item.relative {
                bytes.replaceSubrange(at..<at + 4, with: little(address &- self.code &- UInt64(code.count + bytes.count), 4))
            }
            code += bytes
        }
        return code
    }

    /// ADD RAX, 0: defines every flag and changes nothing else.
    private mutating func define() -> [UInt8] {
        undefinedFlags = 0
        return size == .bits64 ? [0x48, 0x83, 0xC0, 0x00] : [0x83, 0xC0, 0x00]
    }
    private mutating func jump(to target: Int) { incoming[target, default: 0] |= undefinedFlags }

    private mutating func conditionalJump(_ index: Int) -> Item {
        let before = undefinedFlags == 0 ? [] : define()
        let target = index + 2 + Int(below(4))
        jump(to: target)
        if chance(5) { return Item(bytes: before + [0xE9, 0, 0, 0, 0], target: target, isForward: true) }
        return Item(bytes: before + [0x0F, 0x80 | byte() & 15, 0, 0, 0, 0], target: target, isForward: true)
    }
    /// call 1; jmp 2; 1: …; ret; 2:, sometimes through a register.
    private mutating func addCall(_ items: inout [Item]) {
        let index = items.count
        let register = [UInt8](arrayLiteral: 0, 1, 2, 3, 6, 7)[Int(below(6))]
        let indirect = chance(2)
        if indirect {
            let isNarrow = size == .bits32
            items.append(Item(bytes: isNarrow ? [0xB8 | register, 0, 0, 0, 0] : [0x48, 0x8D, 0x05 | register << 3, 0, 0, 0, 0], target: index + 3, isAbsolute: isNarrow))
            items.append(Item(bytes: [0xFF, 0xD0 | register]))
        } else {
            items.append(Item(bytes: [0x90]))
            items.append(Item(bytes: [0xE8, 0, 0, 0, 0], target: index + 3))
        }
        items.append(Item(bytes: [0xE9, 0, 0, 0, 0], target: index + 5))
        let before = undefinedFlags
        items.append(general(withoutStack: true) ?? Item(bytes: [0x90]))
        items.append(Item(bytes: chance(4) ? [0xC2, 0, 0] : [0xC3]))
        // Jumps into the middle go to the end instead: RET without its CALL would end each sequence.
        undefinedFlags |= before
        for inside in index + 1..<items.count {
            insides.insert(inside)
            undefinedFlags |= incoming[inside] ?? 0
        }
    }
    /// As functions begin and end: pushes and pops, and what moves RSP or does not look at it.
    private mutating func addStackRow(_ items: inout [Item]) {
        for _ in 0..<2 + below(7) {
            switch below(6) {
            case 0: if let item = general(withoutStack: true) { items.append(item) }
            case 1:
                items.append(Item(bytes: (size == .bits64 ? [0x48] : []) + [0x83, chance(2) ? 0xEC : 0xC4, byte() & 0x38]))  // sub or add rsp, …
                undefinedFlags = 0
            default: items.append(Item(bytes: pushOrPop()))
            }
        }
    }
    private mutating func pushOrPop() -> [UInt8] {
        let register = byte() & (size == .bits64 ? 15 : 7)
        let prefix: [UInt8] = (chance(6) ? [0x66] : []) + (register > 7 ? [0x41] : [])
        switch below(8) {
        case 0: return [0x6A, byte()]
        case 1: return [0x68] + little(next(), 4)
        case 2: return (undefinedFlags == 0 ? [] : define()) + [0x9C]
        case 3, 4: return register == 4 ? [0x90] : prefix + [0x58 | register & 7]
        default: return prefix + [0x50 | register & 7]
        }
    }
    private mutating func stringInstruction() -> Item {
        var bytes: [UInt8] = []
        if chance(8) { bytes.append(0xFD) }
        let opcode = [UInt8](arrayLiteral: 0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF)[Int(below(10))]
        let compares = opcode == 0xA6 || opcode == 0xA7
        // Which operand of CMPS is looked at first is the processor's own affair: only one of them may be bad.
        let good = data + 0x1100 + below(0x800)
        let both = compares ? chance(2) : nil
        bytes += [0xBE] + little(both == true ? good : place(), 4)  // mov esi
        bytes += [0xBF] + little(both == false ? good : (chance(3) ? good : place()), 4)  // mov edi
        bytes += [0xB9] + little(chance(10) ? 0 : below(chance(3) && !compares ? 3000 : 30), 4)  // mov ecx
        if chance(4) { bytes.append(0x66) }
        if chance(4) != true { bytes.append(chance(3) ? 0xF2 : 0xF3) }
        if chance(3), size == .bits64 { bytes.append(0x48) }
        bytes.append(opcode)
        forms.insert(UInt16(opcode))
        bytes.append(0xFC)
        // With a count of zero CMPS and SCAS leave the flags as they were.
        return Item(bytes: (undefinedFlags == 0 ? [] : define()) + bytes)
    }

    private static let excludedOne: Set<UInt8> = {
        var set: Set<UInt8> = [
            0x0F, 0x26, 0x2E, 0x36, 0x3E, 0x62, 0x64, 0x65, 0x66, 0x67, 0x8C, 0x8E, 0x9A, 0x9B, 0x9D, 0xC4, 0xC5, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF, 0xE4, 0xE5,
            0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF2, 0xF3, 0xC2, 0xC3, 0xE0, 0xE1, 0xE2, 0xE3, 0x6C, 0x6D, 0x6E, 0x6F,
        ]
        set.formUnion(0x40...0x4F)
        set.formUnion(0x70...0x7F)
        set.formUnion(0xA0...0xA7)
        set.formUnion(0xAA...0xAF)
        return set
    }()
    /// Segments, far ways to go, what is written one bit after the other or not at all; INC, DEC and MOV of an address are there.
    private static let excludedNarrow: Set<UInt8> = {
        var set = excludedOne.subtracting(0x40...0x4F).subtracting(0xA0...0xA3)
        set.formUnion([0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x63, 0xD4, 0xD5, 0xD6])
        return set
    }()
    private static func excluded(_ size: CodeSize) -> Set<UInt8> { size == .bits64 ? excludedOne : excludedNarrow }
    private static let excludedTwo: Set<UInt8> = {
        var set: Set<UInt8> = [
            0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0E, 0x0F, 0x77, 0x78, 0x79, 0xA0, 0xA1, 0xA2, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA,
            0xAE, 0xB2, 0xB4, 0xB5, 0xB8, 0xB9, 0xF7, 0xFF, 0x0D, 0x38, 0x3A, 0x24, 0x25, 0x26, 0x27,
        ]
        set.formUnion(0x18...0x27)
        set.formUnion(0x30...0x3F)
        set.formUnion(0x80...0x8F)
        return set
    }()

    /// Any other instruction, its memory operand usually at a good place.
    private mutating func general(withoutStack: Bool = false) -> Item? {
        for _ in 0..<50 {
            guard let (bytes, i, displacement) = candidate() else { continue }
            if withoutStack, Self.touchesStackPointer(i) { continue }
            if invalidForms.contains(Self.form(i)), !chance(50) { continue }
            let effects = FlagEffects(i)
            var before: [UInt8] = []
            if effects.reads, undefinedFlags != 0 { before += define() }
            // Without a base the address is good already; what is added to it must not lead out of the data, where the host's process
            // may have something.
            if i.isMemory, i.base < 0 || chance(20) == false { before += setUp(i) }
            undefinedFlags = (effects.definesAll ? 0 : undefinedFlags & ~effects.defined) | effects.undefined
            forms.insert(UInt16(i.map.rawValue) << 8 | UInt16(i.opcode))
            sumsProducts = sumsProducts || i.map == .three3A && (i.opcode == 0x40 || i.opcode == 0x41)
            loadsEnvironment = loadsEnvironment || i.isMemory && i.map == .one && (i.opcode == 0xD9 || i.opcode == 0xDD) && i.group == 4
            return Item(bytes: before + bytes, relative: i.isRIPRelative ? (before.count + displacement, place()) : nil)
        }
        return nil
    }
    /// What tells forms apart that exist and that do not.
    private static func form(_ i: Instruction) -> UInt64 {
        let detail: UInt64 = (i.has66 ? 1 : 0) | (i.hasLock ? 2 : 0) | (i.isMemory ? 4 : 0) | UInt64(i.rep & 3) << 3 | UInt64(i.hasModRM ? i.group : 0) << 5
        return detail << 16 | UInt64(i.map.rawValue) << 8 | UInt64(i.opcode)
    }
    private var invalidForms: Set<UInt64> = []
    /// The instruction at the start of `code` is none on either side: rarely take it again.
    mutating func noteInvalid(_ code: ArraySlice<UInt8>) {
        guard case .instruction(let i) = Array(code).withUnsafeBufferPointer({ InstructionDecoder.decode($0, code: size) }) else { return }
        invalidForms.insert(Self.form(i))
    }
    private static func touchesStackPointer(_ i: Instruction) -> Bool {
        if i.hasModRM, i.rm == 4 || i.reg == 4 { return true }
        switch (i.map, i.opcode) {
        case (.one, 0x50...0x5F), (.one, 0x68), (.one, 0x6A), (.one, 0x8F), (.one, 0x90...0x97), (.one, 0x9C), (.one, 0xB8...0xBF), (.one, 0xB0...0xB7), (.one, 0xC8),
            (.one, 0xC9), (.one, 0xFF), (.two, 0xC8...0xCF):
            return true
        default: return false
        }
    }
    /// Puts a good address into the base register, and something small into the index register.
    private mutating func setUp(_ i: Instruction) -> [UInt8] {
        func move(_ register: Int8, _ value: UInt64) -> [UInt8] {
            (register > 7 ? [0x41] : []) + [0xB8 | UInt8(register) & 7] + little(value, 4)
        }
        var bytes: [UInt8] = []
        if i.base >= 0 {
            var address = place()
            if i.base == 4 { address &= ~7 }
            bytes = move(i.base, address &- UInt64(bitPattern: i.displacement))
        }
        if i.index >= 0, i.index != i.base { bytes = move(i.index, below(0x20)) + bytes }
        if [0xA3, 0xAB, 0xB3, 0xBB].contains(i.opcode), i.map == .two, Int8(i.reg) != i.base, Int8(i.reg) != i.index { bytes = move(Int8(i.reg), below(0x200)) + bytes }
        return bytes
    }

    /// An instruction, and where in it a displacement stands.
    private typealias Candidate = (bytes: [UInt8], instruction: Instruction, displacement: Int)
    private mutating func candidate() -> Candidate? {
        var code: [UInt8] = []
        if chance(3) {
            code = random.extendedOpcode(size)
            return finish(code)
        }
        let x87 = chance(8)
        let two = !x87 && chance(2)
        var opcode = byte()
        if x87 { opcode = 0xD8 | opcode & 7 }
        if !x87, !two, opcode & 0xF8 == 0xD8 { return nil }
        if two ? Self.excludedTwo.contains(opcode) : Self.excluded(size).contains(opcode) { return nil }
        if !x87, chance(3) { code.append(0x66) }
        if two, chance(2), opcode != 0xBC, opcode != 0xBD { code.append(chance(2) ? 0xF2 : 0xF3) }
        if chance(24) { code.append(0xF0) }
        if !x87, size == .bits64, chance(2) { code.append(0x40 | byte() & 15) }
        if two { code.append(0x0F) }
        code.append(opcode)
        if !two, (0xA0...0xA3).contains(opcode) { return finish(code, isAddress: true) }
        return finish(code)
    }
    /// Operands for an opcode; nil when it is not for these tests.
    private mutating func finish(_ opcode: [UInt8], isAddress: Bool = false) -> Candidate? {
        var code = opcode
        if isAddress { code += little(place(), 4) }
        var modRM = byte()
        // Without a base there are three forms: relative, absolute, and an index alone.
        let form = modRM >> 6 == 0 ? below(4) : 3
        if modRM >> 6 == 0 { modRM = form == 3 ? modRM | 0x80 : modRM & 0x38 | (form == 0 ? 5 : 4) }
        code.append(modRM)
        if form == 1 { code.append(0x25) } else if form == 2 { code.append(byte() | 5) } else if modRM >> 6 != 3, modRM & 7 == 4 { code.append(byte() & 0x3F) }
        let displacement = code.count
        if form != 3 { code += little(place(), 4) }
        if modRM >> 6 == 1 { code.append(byte()) } else if modRM >> 6 == 2 { code += little(next() & 0xFFF, 4) }
        while code.count < 15 { code.append(byte()) }
        guard case .instruction(let i) = code.withUnsafeBufferPointer({ InstructionDecoder.decode($0, code: size) }), Self.isUsable(i) else { return nil }
        return (Array(code.prefix(i.length)), i, displacement)
    }

    /// Where the instructions of a sequence start, its end too.
    static func starts(_ code: [UInt8], _ size: CodeSize) -> Set<Int> {
        var (starts, at) = ([0] as Set<Int>, 0)
        while at < code.count, case .instruction(let i) = code[at...].withUnsafeBufferPointer({ InstructionDecoder.decode($0, code: size) }) {
            at += i.length
            starts.insert(at)
        }
        return starts
    }
    /// Whether a sequence that wrote over itself became one that is never made: another way to go, or an instruction whose
    /// outcome is the processor's or the system's own affair.
    static func isAstray(_ code: [UInt8], now: [UInt8], _ size: CodeSize) -> Bool {
        if code == now { return false }
        var at = 0
        while at < now.count {
            guard case .instruction(let i) = now[at...].withUnsafeBufferPointer({ InstructionDecoder.decode($0, code: size) }) else { return true }
            let end = at + i.length
            if end > now.count { return true }
            let isMade: Bool
            switch (i.map, i.opcode) {
            case (.one, 0xA4...0xA7), (.one, 0xAA...0xAF): isMade = true
            case (.one, 0xC2), (.one, 0xC3), (.one, 0xE8), (.one, 0xE9), (.two, 0x80...0x8F): isMade = code[at..<end] == now[at..<end]
            case (.one, 0x8D) where i.isRIPRelative, (.one, 0xFF) where !i.isMemory && i.group == 2: isMade = code[at..<end] == now[at..<end]
            case (.one, let opcode) where i.map == .one && !(0xD8...0xDF).contains(opcode): isMade = !excluded(size).contains(opcode) && isUsable(i)
            case (.two, let opcode): isMade = !excludedTwo.contains(opcode) && isUsable(i)
            default: isMade = isUsable(i)
            }
            if !isMade { return true }
            at = end
        }
        return false
    }
    private static func isUsable(_ i: Instruction) -> Bool {
        if (i.isMemory && !i.isRIPRelative && i.index >= 0 && i.index == i.base) || Generator.isForeign(i) { return false }
        switch (i.map, i.opcode) {
        case (.three38, 0x90...0x93): return !i.isVEX  // what a gather has done when it faults differs between processors
        case (.one, 0xFF): return i.group < 2 || i.group == 6
        case (.one, 0x8F): return i.group == 0 && (i.isMemory || i.rm != 4)
        case (.one, 0x5C): return i.opcodeRegisterExtension != 0
        case (.one, 0x40...0x4F): return i.opcode & 7 != 4  // the stack pointer
        case (.one, 0x63): return i.operandSize != 2  // how much of memory it reads differs between processors
        case (.one, 0xD9), (.one, 0xDD): return !(i.isMemory && i.group == 6)  // FNSTENV and FNSAVE store the addresses of instructions
        case (.one, 0xDB): return i.isMemory || !(i.group == 4 && i.rm & 7 < 2 || i.group == 4 && i.rm & 7 == 4)
        case (.one, 0xD8...0xDF): return true
        case (.two, 0x2B): return i.rep == 0  // MOVNTSS and MOVNTSD are AMD's SSE4a, which we do not offer
        case (.two, 0xC7): return i.isMemory && i.group == 1 && i.rep == 0
        case (.two, 0xC8...0xCF): return i.operandSize != 2
        case (.two, 0xA4), (.two, 0xA5), (.two, 0xAC), (.two, 0xAD): return i.operandSize != 2
        default: return true
        }
    }
}

/// What an instruction does to the six arithmetic flags. SDM vol. 1 appendix A.
struct FlagEffects {
    var reads = false
    var definesAll = false
    /// Defined, the others left as they were.
    var defined: UInt64 = 0
    var undefined: UInt64 = 0

    init(_ i: Instruction) {
        let (cf, pf, af, zf, sf, of): (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (1, 4, 0x10, 0x40, 0x80, 0x800)
        switch (i.map, i.opcode) {
        case (.two, 0xB8): definesAll = true
        case (.two, 0xBC) where i.rep == 0xF3, (.two, 0xBD) where i.rep == 0xF3:
            defined = cf | zf
            undefined = of | sf | af | pf
        case (.three38, 0x0E), (.three38, 0x0F), (.three38, 0x17):
            if i.isVEX || i.opcode == 0x17 { definesAll = true }
        case (.three3A, 0x60...0x63): definesAll = true
        case (.three38, 0xF2), (.three38, 0xF3),
            (.three38, 0xF5) where i.rep == 0 && !i.has66, (.three38, 0xF7) where i.rep == 0 && !i.has66:
            if i.isVEX {
                defined = cf | of | zf
                undefined = sf | af | pf
            }
        case (.one, 0x00...0x3F): arithmetic(i.opcode >> 3)
        case (.one, 0x80...0x83): arithmetic(i.group)
        case (.one, 0x84), (.one, 0x85), (.one, 0xA8), (.one, 0xA9): arithmetic(4)
        case (.one, 0x69), (.one, 0x6B), (.two, 0xAF):
            defined = cf | of
            undefined = sf | zf | af | pf
        case (.one, 0xF6), (.one, 0xF7):
            switch i.group {
            case 0, 1: arithmetic(4)
            case 3: definesAll = true
            case 4, 5:
                defined = cf | of
                undefined = sf | zf | af | pf
            case 6, 7: undefined = SequenceGenerator.allFlags
            default: break
            }
        case (.one, 0xFE), (.one, 0xFF): if i.group < 2 { defined = SequenceGenerator.allFlags & ~cf }
        case (.one, 0xC0), (.one, 0xC1), (.one, 0xD0...0xD3): shift(i)
        case (.two, 0xA4), (.two, 0xA5), (.two, 0xAC), (.two, 0xAD):
            undefined = af | of
        case (.two, 0xBC), (.two, 0xBD):
            defined = zf
            undefined = cf | of | sf | af | pf
        case (.two, 0xA3), (.two, 0xAB), (.two, 0xB3), (.two, 0xBB), (.two, 0xBA):
            // ZF stays what it was.
            defined = cf
            undefined = of | sf | af | pf
        case (.two, 0x40...0x4F), (.two, 0x90...0x9F), (.one, 0x9F), (.one, 0x9C), (.one, 0xF5): reads = true
        case (.one, 0x9E): defined = cf | pf | af | zf | sf
        case (.one, 0xF8), (.one, 0xF9): defined = cf
        case (.two, 0xB0), (.two, 0xB1), (.two, 0xC0), (.two, 0xC1): definesAll = true
        case (.two, 0xC7): defined = zf
        case (.two, 0x2E), (.two, 0x2F): definesAll = true
        case (.one, 0xDA): reads = !i.isMemory
        case (.one, 0xDB):
            reads = !i.isMemory && i.group < 4
            if !i.isMemory, i.group >= 5 { definesAll = true }
        case (.one, 0xDF): if !i.isMemory, i.group >= 5 { definesAll = true }
        default: break
        }
    }
    private mutating func arithmetic(_ operation: UInt8) {
        definesAll = true
        reads = operation == 2 || operation == 3
        if [1, 4, 6].contains(operation) { undefined = 0x10 }
    }
    private mutating func shift(_ i: Instruction) {
        let (cf, af, of): (UInt64, UInt64, UInt64) = (1, 0x10, 0x800)
        let width = UInt64(i.opcode & 1 == 0 ? 8 : Int(i.operandSize) * 8)
        let variable = i.opcode == 0xD2 || i.opcode == 0xD3
        let count: UInt64 = i.opcode < 0xD0 ? UInt64(bitPattern: i.immediate) & (width == 64 ? 63 : 31) : 1
        reads = i.group == 2 || i.group == 3
        if !variable, count == 0 { return }
        let over = !variable && count == 1 ? 0 : of
        if i.group < 4 {
            undefined = over
            defined = variable ? 0 : cf
        } else {
            undefined = over | af | (i.group != 7 && (variable ? width < 32 : count >= width) ? cf : 0)
            definesAll = !variable
        }
    }
}
