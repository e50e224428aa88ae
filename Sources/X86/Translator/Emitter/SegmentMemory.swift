import CX86

/// Which operands remember the page they used last, and where.
enum BaseCache {
    /// In the state, for operands of all blocks.
    case shared(Int)
    /// In one that is the operand's own, beside the code: those of which a trial has shown that they stay in their page.
    case own(_ site: Int8)

    static let stack = 0
    /// By base register, for operands that go through an array.
    static func advancing(_ base: Int8) -> Int { 1 + Int(base) }
    /// For addresses that the instruction alone decides, or nearly: programs go round a few dozen pages of those.
    static func named(page address: Int64) -> Int {
        let page = UInt64(bitPattern: address) >> 12
        return firstNamed + Int((page ^ page >> 6) & UInt64(X86_NAMED_CACHES - 1))
    }
    static let firstNamed = Int(X86_WINDOW_CACHES)
}

// Guest addresses to host addresses: the TLB inline, base caches, windows.
extension BlockTranslator {
    /// The linear address of a memory operand in r11.
    mutating func address(_ i: Instruction, offset: Int, segments: Bool = true) {
        if i.isRIPRelative {
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: Int32(truncatingIfNeeded: i.displacement + Int64(offset + i.length))))
        } else {
            let (operand, isAbsolute) = addressOperand(i)
            if isAbsolute {
                code.op(0xC7, reg: 0, .register(Host.address))
                code.int32(Int32(truncatingIfNeeded: i.displacement))
                if i.addressSize == 4 { code.move(Host.address, Host.address, wide: false) }
            } else if i.addressSize == 8, case .memory(let base, 0xFF, _, 0) = operand {
                if base != Host.address { code.move(Host.address, base) }
            } else {
                code.lea(Host.address, operand, wide: i.addressSize == 8)
            }
        }
        if segments, i.segmentOverride >= 4 {
            code.op(0x03, reg: Host.address, Host.cell(Int(X86_SEGBASE_OFFSET) + Int(i.segmentOverride) * 8), wide: !isNarrow)
        }
    }
    /// Base, index and displacement with registers from memory put into r11 and r9.
    mutating func addressOperand(_ i: Instruction) -> (HostOperand, isAbsolute: Bool) {
        func host(_ n: Int8, _ temporary: UInt8) -> UInt8 {
            if let register = Host.register(UInt8(n)) { return register }
            // A base may stay where it is as long as the index needs no place.
            if isInScratch(UInt8(n)), temporary == Host.scratch || i.index < 0 || Host.register(UInt8(i.index)) != nil { return Host.scratch }
            code.load(temporary, Host.home(UInt8(n)))
            return temporary
        }
        let displacement = Int32(truncatingIfNeeded: i.displacement)
        if i.base < 0, i.index < 0 { return (.memory(base: 0), true) }
        if i.base < 0 {
            // No base: [0 + index * scale + disp32] needs a form of its own, so scale in a register.
            let index = host(i.index, Host.scratch)
            code.op(0xC7, reg: 0, .register(Host.address))
            code.int32(displacement)
            return (.memory(base: Host.address, index: index, scale: i.scale, displacement: 0), false)
        }
        let base = host(i.base, Host.address)
        if i.index < 0 { return (.memory(base: base, displacement: displacement), false) }
        return (.memory(base: base, index: host(i.index, Host.scratch), scale: i.scale, displacement: displacement), false)
    }
    /// Which base cache an operand uses; nil for pointers and indices that wander: they ask the TLB itself. (Programs that
    /// follow pointers change pages so often that finding out costs more than it saves: 40 % of the time in Python.)
    func baseCache(_ i: Instruction) -> BaseCache? {
        if i.isRIPRelative || i.base < 0 || i.segmentOverride >= 4 { return .shared(BaseCache.named(page: i.isRIPRelative ? linear &+ i.displacement : i.displacement)) }
        if i.index >= 0 {
            return (advancing >> UInt16(i.index) | advancing >> UInt16(i.base)) & 1 != 0 ? .shared(BaseCache.advancing(i.base)) : nil
        }
        return i.base == 4 ? .shared(BaseCache.stack) : nil
    }
    static func cell(_ baseCache: Int, write: Bool) -> Int {
        let stride = MemoryLayout<x86_base_cache>.stride
        if baseCache % Int(X86_BASE_CACHES) == BaseCache.stack, baseCache < 2 * Int(X86_BASE_CACHES) {
            return Int(X86_STACK_CACHE_OFFSET) + (baseCache > 0 ? stride : 0) + (write ? 16 : 0)
        }
        return Int(X86_BASE_CACHE_OFFSET) + baseCache * stride + (write ? 16 : 0)
    }
    /// How often the segment asks each base cache: what only one operand asks stays as it is to the segment's end.
    mutating func countCacheUses() {
        cacheUses = InlineArray(repeating: 0)
        func use(_ cache: BaseCache?) { if case .shared(let number) = cache, number < BaseCache.firstNamed { cacheUses[number] &+= 1 } }
        for n in lines.indices {
            if lines[n].instruction.isMemory, lines[n].plan.size > 0 {
                if lines[n].memory == nil { use(operandCache(lines[n])) } else if lines[n].memory?.opening != nil { use(openingCache(lines[n])) }
            }
            if lines[n].plan.usesStack, lines[n].stack == nil || lines[n].stack?.opening != nil { use(.shared(BaseCache.stack)) }
        }
    }
    /// Whether a base cache that was asked holds what it holds to the segment's end.
    private func isAskedOnce(_ cache: BaseCache) -> Bool {
        switch cache {
        case .shared(let number): cacheUses[number] == 1
        case .own: !isRepeated
        }
    }
    private func openingCache(_ line: Line) -> BaseCache? {
        line.instruction.base == 4 && line.instruction.index < 0 ? .shared(BaseCache.stack) : windowCache(line)
    }
    /// What an address is the sum of, where nothing but registers and a displacement are.
    private struct Sum {
        /// Of the guest.
        var base: UInt8
        var index: (host: UInt8, scale: UInt8)?
        var displacement: Int32
    }
    private func sum(_ i: Instruction) -> Sum? {
        // Of 32 bits, an index may be meant to be negative: then the sum of 64 is never an address.
        guard !i.isRIPRelative, i.base >= 0, isNarrow ? i.addressSize == 4 && i.index < 0 : i.addressSize == 8, i.segmentOverride < 4 else { return nil }
        var sum = Sum(base: UInt8(i.base), index: nil, displacement: Int32(truncatingIfNeeded: i.displacement))
        if i.index >= 0 {
            guard let index = Host.register(UInt8(i.index)) else { return nil }
            sum.index = (index, i.scale)
        }
        return sum
    }
    /// The linear address in r11, of 64 bits in narrow code, too.
    private mutating func address(of sum: Sum) {
        let base = Host.register(sum.base) ?? Host.address
        if sum.displacement == 0 { code.move(Host.address, base) } else { code.lea(Host.address, .memory(base: base, displacement: sum.displacement)) }
    }
    /// The operand at a sum, with the distance from the guest's addresses to the host's in r11: that does not wait for the guest's
    /// address, so an operand whose page is known is there as soon as on the host.
    private mutating func operand(_ sum: Sum) -> HostOperand {
        let base = Host.register(sum.base)
        if sum.index == nil, let base { return .memory(base: Host.address, index: base, displacement: sum.displacement) }
        code.op(0x03, reg: Host.address, base.map { .register($0) } ?? Host.home(sum.base))
        return .memory(base: Host.address, index: sum.index?.host ?? 0xFF, scale: sum.index?.scale ?? 0, displacement: sum.displacement)
    }
    /// Checks the linear address in r11, and says where it is on the host; r9 may be lost, and EFLAGS.
    ///
    /// In narrow code a sum's address is one of 64 bits, so that what is checked is what is accessed, and one from 4 GiB on has to be found out:
    /// base caches hold none.
    private mutating func check(
        size: Int, write: Bool, aligned: Bool = false, cache: BaseCache?, site: Int8 = -1, _ sum: Sum?
    ) -> (Jumps, HostOperand) {
        var jumps = Jumps()
        if aligned {
            code.bytes(0x41, 0xF6, 0xC3, UInt8(size - 1))  // test r11b, …
            jumps.append(code.jump(if: 5))
        }
        guard let cache else {
            guard let sum else {
                jumps.append(checkTable(size: size, write: write))
                return (jumps, Self.checked)
            }
            if isNarrow, sum.displacement != 0 { jumps.append(code.compareWithNarrow(scratch: Host.scratch)) }
            let (fails, table) = compareWithTable(size: size, write: write)
            jumps.append(fails)
            code.load(Host.address, delta(table))
            return (jumps, operand(sum))
        }
        let cell = compareWithCache(cache, size: size, write: write, site: site, fallback: nil)
        guard let sum, !cell.isPage else {
            if !cell.isPage { code.op(0x03, reg: Host.address, cell.tag) }
            code.op(0x03, reg: Host.address, cell.way)
            return (jumps, Self.checked)
        }
        code.load(Host.address, cell.way)
        return (jumps, operand(sum))
    }
    /// What the entry of the TLB that r9 found adds to a linear address.
    func delta(_ table: Int32) -> HostOperand { Host.cell(table + 2 * Int32(X86_TLB_COLUMN), index: Host.scratch, scale: 3) }
    private func tag(_ table: Int32, write: Bool) -> HostOperand {
        Host.cell(table + (write ? Int32(X86_TLB_COLUMN) : 0), index: Host.scratch, scale: 3)
    }
    /// The offset in its page of the linear address in r11, if that is the base cache's. Returns where that is.
    private mutating func compareWithCache(_ choice: BaseCache, size: Int, write: Bool, site: Int8, fallback: Int?) -> Cell {
        let again = code.here
        let (cell, lookUp, own): (Cell, OperandCaches.Pair, UInt?)
        switch choice {
        case .shared(let number):
            let offset = Self.cell(bank + number, write: write)
            named.forget(number)
            cell = Cell(tag: Host.cell(offset), way: Host.cell(offset + 8), isPage: number >= BaseCache.firstNamed)
            (lookUp, own) = (shared.lookUp[bank + number], nil)
        case .own(let site):
            let place = ownCache(site, write: write)
            cell = Cell(tag: .near(place), way: .near(place + 8), isPage: false)
            let lookUps = operandLookUps
            (lookUp, own) = (isNarrow ? lookUps.narrow : (bank > 0 ? lookUps.user : lookUps.supervisor), place)
        }
        code.op(0x2B, reg: Host.address, cell.tag)
        code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
        code.int32(Int32(4096 - size))
        misses.append(
            Miss(
                jump: code.jump(if: 7), again: again, address: .lessTag, size: size, lookUp: write ? lookUp.write : lookUp.read, own: own,
                slow: slow.count, site: site, fallback: fallback))
        return cell
    }
    /// Where a base cache has what it knows: its tag, and the distance from the guest's addresses to the host's, or the host's page.
    private struct Cell {
        var tag: HostOperand
        var way: HostOperand
        var isPage: Bool
    }
    /// The number of the TLB's entry for r11 in r9. Returns where the table lies in the state.
    private mutating func hashPage() -> Int32 {
        code.bytes(0x45, 0x89, 0xD9, 0x41, 0xC1, 0xE9, 0x0C)  // mov r9d, r11d; shr r9d, 12
        return Int32(X86_TLB_TABLES) + (bank > 0 ? Int32(X86_TLB_BYTES) : 0)
    }
    /// The offset in its page of the linear address in r11, if the TLB has that; its place there in r9. Returns the jump that is taken
    /// when not, and where the table lies in the state.
    mutating func compareWithTable(size: Int, write: Bool) -> (fails: UnsafeMutablePointer<UInt8>, table: Int32) {
        let table = hashPage()
        code.op(0x33, reg: Host.address, tag(table, write: write))
        code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
        code.int32(Int32(4096 - size))
        return (code.jump(if: 7), table)
    }
    /// Makes the linear address in r11 the host's. Returns the jump that is taken when the TLB does not have it.
    mutating func checkTable(size: Int, write: Bool) -> UnsafeMutablePointer<UInt8> {
        let (fails, table) = compareWithTable(size: size, write: write)
        code.op(0x33, reg: Host.address, tag(table, write: write))
        code.op(0x03, reg: Host.address, delta(table))
        return fails
    }
    /// An operand through a window: base register and displacement on top of the window's distance, in r11; with an index that and
    /// the displacement on top of the distance and the base.
    mutating func windowed(
        _ use: AccessWindow.Use, base: UInt8, index: (host: UInt8, scale: UInt8)? = nil, displacement: Int, aligned: Bool, _ line: Line
    ) -> HostOperand {
        usedWindow = use.window
        if let opening = use.opening {
            deltas[use.window] = Host.cell(Int(X86_T1_DELTA_OFFSET) + use.window * 8)
            aboutToClobber(line)
            if index == nil, opening.low == 0 {
                code.move(Host.address, base)
            } else {
                code.lea(Host.address, .memory(base: base, index: index?.host ?? 0xFF, scale: index?.scale ?? 0, displacement: Int32(truncatingIfNeeded: opening.low)))
            }
            var jumps = Jumps()
            var mayExhaust = false
            if let cache = base == Host.guestRSP && index == nil ? .shared(BaseCache.stack) : windowCache(line) {
                let fallback = hasFallbacks ? fallbacks.count : nil
                let cell = compareWithCache(cache, size: opening.size, write: opening.writes, site: line.site, fallback: fallback)
                code.load(Host.address, cell.way)
                if index == nil, isAskedOnce(cache) {
                    deltas[use.window] = cell.way
                } else {
                    if index != nil { code.op(0x03, reg: Host.address, .register(base)) }
                    code.store(Host.address, deltas[use.window])
                }
                mayExhaust = line.site >= 0
            } else {
                if isNarrow { jumps.append(code.compareWithNarrow(scratch: Host.scratch)) }
                let (fails, table) = compareWithTable(size: opening.size, write: opening.writes)
                jumps.append(fails)
                code.load(Host.address, delta(table))
                if index != nil { code.op(0x03, reg: Host.address, .register(base)) }
                code.store(Host.address, deltas[use.window])
            }
            if hasFallbacks {
                // For when patience ends.
                if mayExhaust { slowPath(Jumps(), line) }
                fallbacks.append(Fallback(jumps: jumps, line: current, flags: flags, vectors: vectors, checked: checked))
            } else {
                slowPath(jumps, line, isWindow: true)
            }
        } else {
            if aligned { aboutToClobber(line) }
            let isHeld = held.map { $0.window == use.window && $0.at == code.here } ?? false
            if !isHeld { code.load(Host.address, deltas[use.window]) }
        }
        let displacement = Int32(truncatingIfNeeded: displacement + use.moved) + (base == Host.guestRSP ? stackMove : 0)
        let operand = HostOperand.memory(base: Host.address, index: index?.host ?? base, scale: index?.scale ?? 0, displacement: displacement)
        guard aligned else { return operand }
        code.lea(Host.address, operand)
        code.bytes(0x41, 0xF6, 0xC3, UInt8(line.plan.size - 1))  // test r11b, …
        slowPath(Jumps(code.jump(if: 5)), line)
        return .memory(base: Host.address)
    }
    /// A line's memory operand, checked; r9 is free afterwards.
    mutating func memoryOperand(_ line: Line) -> HostOperand {
        let i = line.instruction
        if usesWindows, let use = line.memory, let base = Host.register(UInt8(i.base)) {
            let index = i.index < 0 ? nil : Host.register(UInt8(i.index)).map { (host: $0, scale: i.scale) }
            return windowed(use, base: base, index: index, displacement: Int(i.displacement), aligned: line.plan.aligned, line)
        }
        if let operand = namedOperand(line) { return operand }
        aboutToClobber(line)
        let sum = sum(i)
        if isNarrow, let sum { address(of: sum) } else { address(i, offset: line.offset) }
        let (jumps, operand) = check(
            size: line.plan.size, write: line.plan.writesRM, aligned: line.plan.aligned, cache: operandCache(line), site: line.site, sum)
        slowPath(jumps, line)
        return operand
    }
    /// An operand whose address is the instruction's alone, or relative to it: which page it lies in is one comparison, and once
    /// a segment. Nil where that has to be found out otherwise.
    private mutating func namedOperand(_ line: Line) -> HostOperand? {
        let (i, size) = (line.instruction, line.plan.size)
        guard i.isRIPRelative || (i.base < 0 && i.index < 0), i.segmentOverride < 4, i.hasNaturalAddress else { return nil }
        // From the block's page on, or from address 0.
        let address = i.isRIPRelative ? i.displacement + Int64(line.offset + i.length) : i.displacement
        let (page, within) = (address & ~4095, Int(address & 4095))
        guard within + size <= 4096, !line.plan.aligned || within & (size - 1) == 0, abs(page) < 1 << 31 - 4096 else { return nil }
        let number = BaseCache.named(page: i.isRIPRelative ? linear &+ address : address)
        let known = named.knows(number, page: page, isRelative: i.isRIPRelative, write: line.plan.writesRM)
        let cell = Self.cell(bank + number, write: known == .written || line.plan.writesRM)
        if known == nil {
            aboutToClobber(line)
            let again = code.here
            if i.isRIPRelative {
                code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
                code.op(0x2B, reg: Host.address, Host.cell(cell))
                code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
                code.int32(Int32(-page))
            } else {
                code.op(0x81, reg: 7, Host.cell(cell))
                code.int32(Int32(page))
            }
            let lookUp = shared.lookUp[bank + number]
            misses.append(
                Miss(
                    jump: code.jump(if: 5), again: again, address: i.isRIPRelative ? .relative(Int32(address)) : .absolute(Int32(address)), size: size,
                    lookUp: line.plan.writesRM ? lookUp.write : lookUp.read, own: nil, slow: slow.count, site: -1, fallback: nil))
            slowPath(Jumps(), line)
            named.note(number, page: page, isRelative: i.isRIPRelative, write: line.plan.writesRM)
        }
        code.load(Host.address, Host.cell(cell + 8))
        return .memory(base: Host.address, displacement: Int32(within))
    }
    /// A word at the stack pointer (for RET and POP), below it (for PUSH and CALL) or at RBP (for LEAVE).
    mutating func stackOperand(_ line: Line, base: UInt8, displacement: Int, write: Bool) -> HostOperand {
        if usesWindows, let use = line.stack { return windowed(use, base: base, displacement: displacement, aligned: false, line) }
        aboutToClobber(line)
        let sum = Sum(base: base == Host.guestRSP ? 4 : base, index: nil, displacement: Int32(displacement))
        address(of: sum)
        let (jumps, operand) = check(size: word, write: write, cache: base == Host.guestRSP ? .shared(BaseCache.stack) : nil, sum)
        slowPath(jumps, line)
        return operand
    }
    mutating func pushOperand(_ line: Line) -> HostOperand { stackOperand(line, base: Host.guestRSP, displacement: -word, write: true) }
    /// A word from memory, or to it.
    mutating func loadWord(_ register: UInt8, _ operand: HostOperand) { code.op(0x8B, reg: register, operand, wide: !isNarrow) }
    mutating func storeWord(_ register: UInt8, _ operand: HostOperand) { code.op(0x89, reg: register, operand, wide: !isNarrow) }
    /// Adds to the stack pointer. Changes no flags.
    mutating func addToStack(_ bytes: Int32) { code.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: bytes), wide: !isNarrow) }
    static let checked = HostOperand.memory(base: Host.address)
    mutating func slowPath(_ jumps: Jumps, _ line: Line, isWindow: Bool = false) {
        slow.append(SlowPath(jumps: jumps, op: line.op, handler: line.handler, flags: flags, vectors: vectors, isWindow: isWindow))
    }
}
