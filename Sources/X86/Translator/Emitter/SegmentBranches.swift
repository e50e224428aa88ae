import CX86

// How a segment ends: edges within the page, jumps through the jump cache, calls and returns.
extension BlockTranslator {
    /// Where a block can start that needs no look at the next page.
    static let inPage = 0..<4096 - 14
    func target(_ line: Line) -> Int { line.offset + line.instruction.length + Int(line.instruction.immediate) }
    func following(_ line: Line) -> Int { line.offset + line.instruction.length }

    mutating func conditional(_ line: Line) {
        if current + 1 < lines.count {
            // The segment goes on behind it, or where it leads.
            needFlags(line)
            let condition = line.instruction.opcode & 15 ^ (line.isTurn ? 1 : 0)
            sideExits.append(SideExit(jump: code.jump(if: condition), line: line, target: line.isTurn ? following(line) : target(line), vectors: vectors))
            return
        }
        flushVectors()
        needFlags(line)
        if isLoop(target(line)), Self.inPage.contains(following(line)) {
            // The way on lies apart: a turn of the loop has one jump that is taken.
            let exit = code.jump(if: (line.instruction.opcode & 15) ^ 1)
            sideExits.append(SideExit(jump: exit, line: line, target: following(line), vectors: vectors))
            return loopBack()
        }
        let taken = code.jump(if: line.instruction.opcode & 15)
        let isEdge = isEdge(taken, line, to: target(line))
        edge(line, to: following(line))
        if isEdge { return }
        flags = .host
        code.patch(taken)
        edge(line, to: target(line))
    }
    /// A conditional jump to a later place of the page is an edge itself.
    mutating func isEdge(_ jump: UnsafeMutablePointer<UInt8>, _ line: Line, to offset: Int) -> Bool {
        guard offset > line.offset, Self.inPage.contains(offset) else { return false }
        stubs.append(Stub(way: .direct(end: cache.codeOffset(writable: jump)), kind: .flags, isBackward: false, target: offset))
        return true
    }

    /// What a jump leads to follows. Backward that is not without asking whether somebody wants something.
    mutating func follow(_ line: Line) {
        guard target(line) <= line.offset else { return }
        aboutToClobber(line)
        code.comparePending()
        slowPath(Jumps(code.jump(if: 5)), line)
    }
    /// Goes on at an offset from the page's start.
    mutating func edge(_ line: Line, to offset: Int, isCall: Bool = false) {
        flushVectors()
        guard Self.inPage.contains(offset) else { return crossingEdge(line, to: offset, isCall: isCall) }
        if isCall {
            flagsToMemory()
            pushReturn()
        } else if isLoop(offset) {
            return loopBack()
        }
        let isBackward = offset <= line.offset
        let kind: TranslationCache.EdgeKind = flags == .host ? .flags : .memory
        stubs.append(Stub(way: kind == .flags && isBackward ? goPolled() : goDirectly(isCall: isCall), kind: kind, isBackward: isBackward, target: offset))
    }
    /// Backward edges lead to where the target asks whether somebody wants something, which takes flags in memory.
    private mutating func goDirectly(isCall: Bool = false) -> TranslationCache.Way {
        if isCall { code.call(code.here) } else { code.jump(to: code.here) }
        return .direct(end: cache.codeOffset(code.here))
    }
    private mutating func goPolled() -> TranslationCache.Way {
        for byte in Assembler.room { code.byte(byte) }
        let (room, slot) = (code.here, cache.makeSlot())
        goThrough(slot)
        return .polled(slot: cache.codeOffset(slot), room: cache.codeOffset(room))
    }
    /// Whether an edge leads to the beginning of the block.
    func isLoop(_ offset: Int) -> Bool { offset == Int(gpa & 4095) && isFirstSegment && startFlags == .dead }
    private mutating func loopBack() {
        code.comparePending()
        code.jump(if: 4, to: body)
        loopExits.append(code.jump())
    }
    /// The second target of the pair when somebody wants something. Changes no flags.
    private mutating func goThrough(_ slot: Int, isCall: Bool = false) {
        code.load(Host.address, Host.cell(Int(X86_POLL_OFFSET)))
        code.leaRIP(Host.scratch, slot)
        code.op(0xFF, reg: isCall ? 2 : 4, .memory(base: Host.scratch, index: Host.address, scale: 3), wide: false)
    }
    /// To another page, or to an instruction that may go on in another. Linked as long as the pages are where they are
    /// (`CodePlaces`); `block_base` goes along. Changes no flags.
    private mutating func crossingEdge(_ line: Line, to offset: Int, isCall: Bool) {
        let within = offset & 4095
        if isCall {
            flagsToMemory()
            pushReturn()
            addToStack(-Int32(word))
        }
        let distance = offset - within
        if distance != 0 {
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: Int32(truncatingIfNeeded: distance)), wide: !isNarrow)
            code.store(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        }
        let crossing = TranslationCache.Crossing(source: version.cell, distance: Int64(distance), isUser: bank > 0, count: cache.makeCrossingCounter())
        let (kind, isBackward): (TranslationCache.EdgeKind, Bool) = (flags == .host ? .flags : .memory, offset <= line.offset)
        // Where every edge to another page is a jump, many have to be rewritten with each change of the address space.
        let way = phase.isLast && !(kind == .flags && isBackward) ? goDirectly(isCall: isCall) : goThroughCells(isBackward: isBackward, isCall: isCall)
        stubs.append(Stub(way: way, kind: kind, isBackward: isBackward, target: within, crossing: crossing))
    }
    private mutating func goThroughCells(isBackward: Bool, isCall: Bool) -> TranslationCache.Way {
        let slot = cache.makeSlot()
        if isBackward { goThrough(slot, isCall: isCall) } else { code.jumpThrough(slot, isCall: isCall) }
        return .cells(slot: cache.codeOffset(slot))
    }
    /// Where an edge to another page leads while it is not linked: through the jump cache, and to be linked after a while.
    mutating func finishCrossing(_ stub: Stub, _ crossing: TranslationCache.Crossing) {
        let (kind, offset) = (stub.kind, stub.target)
        let edge = cache.makeEdge(stub.way, kind: kind, isBackward: stub.isBackward, stub: code.here, crossing: crossing)
        if kind == .flags { saveFlags() }
        code.moveEdge(Host.address, edge, to: offset)
        code.decrement(cache.address(of: crossing.count))
        code.jump(to: shared.crossing)
    }

    // MARK: calls and returns, see ReturnStack

    /// The running page, on the stack of returns. EFLAGS are lost.
    mutating func pushReturn() {
        code.bytes(0xF7, 0xC4)  // test esp, …
        code.int32(ReturnStack.room)
        fullStacks.append((code.jump(if: 4), code.here))
        code.op(0xFF, reg: 6, Host.cell(Int(X86_BLOCK_BASE_OFFSET)), wide: false)
    }
    /// Where a call returns: to the block behind it, if the return address in r11 says so.
    mutating func land(_ line: Line) {
        let offset = following(line)
        flags = .memory
        code.pop(Host.scratch)
        guard Self.inPage.contains(offset) else { return code.jump(to: shared.returnElsewhere) }
        code.op(0x2B, reg: Host.address, .register(Host.scratch))
        code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
        code.int32(Int32(offset))
        landings.append(code.jump(if: 5))
        code.store(Host.scratch, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        stubs.append(Stub(way: goDirectly(), kind: .memory, isBackward: false, target: offset))
    }

    var jumpTable: Int32 { Int32(X86_JCACHE_TABLES) + (bank > 0 ? Int32(X86_JCACHE_BYTES) : 0) }
    /// To the block at the address in r11, through the jump cache; flags are in memory. The next slow path, or the next
    /// call's, is taken on a miss.
    /// - Parameter commit: written between the last check and the jump.
    mutating func dispatch(isCall: Bool = false, callMiss: Bool = false, _ commit: (inout Assembler) -> Void = { _ in }) {
        code.hashTarget()
        code.op(0x39, reg: Host.address, Host.cell(jumpTable, index: Host.scratch, scale: 3))
        alternates.append(Alternate(jump: code.jump(if: 5), back: code.here, slow: callMiss ? callMisses.count : slow.count, isCall: callMiss))
        if isCall { pushReturn() }
        code.bytes(0x49, 0x81, 0xE3)  // and r11, ~4095
        code.int32(-4096)
        code.store(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        commit(&code)
        code.op(0xFF, reg: isCall ? 2 : 4, Host.cell(jumpTable + 8, index: Host.scratch, scale: 3), wide: false)
    }
    mutating func flagsToMemory() {
        if flags == .host {
            saveFlags()
            flags = .memory
        }
    }

    mutating func call(_ line: Line) {
        flushVectors()
        storeReturnAddress(line)
        let offset = target(line)
        if Self.inPage.contains(offset) { addToStack(-Int32(word)) }
        edge(line, to: offset, isCall: true)
        land(line)
    }
    mutating func ret(_ line: Line) {
        flushVectors()
        aboutToClobber(line)
        flagsToMemory()
        loadWord(Host.address, stackOperand(line, base: Host.guestRSP, displacement: 0, write: false))
        let drop = Int32(word) + Int32(line.instruction.opcode == 0xC2 ? line.instruction.immediate & 0xFFFF : 0)
        addToStack(drop)
        code.op(0xC7, reg: 0, Host.cell(Int(X86_RETURN_OFFSET_OFFSET)), wide: false)
        code.int32(drop << 12 | Int32(line.offset & 4095))
        code.byte(0xC3)
    }
    /// An indirect branch's target in r11.
    mutating func loadTarget(_ line: Line) {
        let i = line.instruction
        if i.isMemory {
            loadWord(Host.address, memoryOperand(line))
        } else if let host = Host.register(i.rm) {
            code.move(Host.address, host)
        } else {
            code.load(Host.address, Host.home(i.rm))
        }
    }
    mutating func jumpIndirect(_ line: Line) {
        flushVectors()
        flagsToMemory()
        loadTarget(line)
        dispatch()
        slowPath(Jumps(), line)
    }
    mutating func callIndirect(_ line: Line) {
        flushVectors()
        flagsToMemory()
        loadTarget(line)
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        // The return address goes below the stack pointer, which moves only when the jump is sure.
        storeReturnAddress(line)
        code.load(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        let (word, isWide) = (Int32(word), !isNarrow)
        dispatch(isCall: true, callMiss: true) { $0.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: -word), wide: isWide) }
        callMisses.append((Jumps(), line.op, line.handler))
        land(line)
    }
    /// An indirect call whose target is not in the jump cache. The return address is written already, maybe over the
    /// operand, so the interpreter must not do it again, unless it has to raise the exception for the target.
    mutating func finishCallMiss(_ jumps: Jumps, _ op: Op, _ handler: UInt) {
        jumps.patch(&code)
        code.load(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        code.move(Host.scratch, Host.address)
        code.bytes(0x49, 0xC1, 0xE1, 0x10, 0x49, 0xC1, 0xF9, 0x10)  // shl r9, 16; sar r9, 16
        code.op(0x39, reg: Host.address, .register(Host.scratch))
        let wrong = code.jump(if: 5)
        addToStack(-Int32(word))
        pushReturn()
        code.leaRIP(Host.scratch, shared.returnToUnknown)
        code.push(Host.scratch)
        code.jump(to: shared.exitToLoop)
        code.patch(wrong)
        leave(op, handler, .memory)
    }
}
