import CX86

/// Translates one block of 64-bit code, or of `CodeKind.narrow`: each run of instructions that have a plan becomes a segment of host code, which
/// takes the place of its first operation's handler. Whatever a segment cannot do (a TLB miss, an instruction without a
/// plan, an exit that is not linked) it leaves to the interpreter at exactly that operation, with all state in its place.
///
/// In a segment the guest's registers are the host's of the same number, but RSP in R8 and R8–R11 in memory; arithmetic
/// flags are the host's. Flags that nobody can read any more may be lost: an exception's image then shows others.
///
/// In narrow code the upper halves of registers are zero: its way in sees to that, and instructions of 32 bits do. An address is a sum of 32 bits,
/// computed as such and then used alone; or one of 64 that has been found to be below 4 GiB (`AccessWindows.isNarrow`).
struct BlockTranslator {
    typealias Line = TranslationLine
    /// What the segment knows of the floating-point unit: that x87 and SSE may be used, and AVX.
    enum Checked { case nothing, vectors, avx }
    enum Flags { case dead, host, memory }
    /// A window's range was not all in one page: the rest of the segment without windows, from this line on.
    struct Fallback {
        var jumps: Jumps
        var start = 0
        var line: Int
        var flags: Flags
        var vectors: VectorRegisters
        var checked: Checked
    }
    /// How an address that a base cache does not have comes into r11.
    enum MissedAddress {
        /// It is there, less the cache's tag.
        case lessTag
        case relative(Int32)
        case absolute(Int32)
    }
    /// A base cache holds another page: looked up out of line. `slow` is the slow path for when that fails.
    struct Miss {
        var jump: UnsafeMutablePointer<UInt8>
        var again: Int
        var address: MissedAddress
        var size: Int
        var lookUp: SharedCode.LookUp
        /// The base cache, if it is the operand's own.
        var own: UInt?
        var slow: Int
        var site: Int8
        /// A window's: the fallback that is taken instead of the slow path.
        var fallback: Int?
    }
    /// A branch's target is not where the jump cache has it first: maybe in the entry beside that one.
    struct Alternate {
        var jump: UnsafeMutablePointer<UInt8>
        var back: Int
        /// What is done when it is not: the slow path of this number or the call's.
        var slow: Int
        var isCall: Bool
    }
    /// A conditional jump that leaves the way that the segment goes on.
    struct SideExit {
        var jump: UnsafeMutablePointer<UInt8>
        var line: Line
        var target: Int
        var vectors: VectorRegisters
    }
    /// Where an edge leads while it is not linked: to be written.
    struct Stub {
        var way: TranslationCache.Way
        var kind: TranslationCache.EdgeKind
        var isBackward: Bool
        /// Offset in the page.
        var target: Int
        /// Of an edge to another page.
        var crossing: TranslationCache.Crossing?
    }
    struct SlowPath {
        var jumps: Jumps
        /// Where the interpreter goes on.
        var op: Op
        var handler: UInt
        var flags: Flags
        var vectors: VectorRegisters
        /// Of a window without fallback.
        var isWindow = false
    }

    let cache: TranslationCache
    /// The cache's, which never change.
    let shared: SharedCode
    let operandLookUps: OperandCaches.LookUps
    let features: X86Features
    private(set) var first: Op
    private(set) var gpa: UInt64
    /// Of the block's page, where it is translated: it may run elsewhere, too.
    private(set) var linear: Int64 = 0
    var code: Assembler
    /// What runs seldom: exchanged with `code` while that is written.
    var cold: Assembler
    private var windows = AccessWindows()
    var lines: [Line] = []
    var flags = Flags.dead
    var startFlags = Flags.dead
    var vectors = VectorRegisters()
    var checked = Checked.nothing
    var named = NamedPages()
    var slow: [SlowPath] = []
    var callMisses: [(jumps: Jumps, op: Op, handler: UInt)] = []
    var misses: [Miss] = []
    var fullStacks: [(jump: UnsafeMutablePointer<UInt8>, back: Int)] = []
    var sideExits: [SideExit] = []
    var landings: [UnsafeMutablePointer<UInt8>] = []
    var alternates: [Alternate] = []
    var fallbacks: [Fallback] = []
    /// Where fallbacks may come into the segment without windows, and what that knows there.
    private var fallbackEntries: [(line: Int, at: Int, flags: Flags, vectors: VectorRegisters)] = []
    var usesWindows = true
    /// Whether a window that fails has a fallback; the interpreter goes on otherwise.
    var hasFallbacks: Bool { phase.isLast || !isFirstSegment || first.needsFallbacks || nextVersion != nil || !repeatsLoops }
    /// The window whose distance is still in r11, as long as nothing more is written.
    var held: (window: Int, at: Int)?
    /// The register that lives in memory, whose value is in r9 as long as nothing more is written.
    var scratch: (home: UInt8, at: Int)?
    /// What is still to be added to the stack pointer.
    var stackMove: Int32 = 0
    var usedWindow: Int?
    /// Where each window's distance is.
    var deltas: InlineArray<4, HostOperand> = InlineArray(repeating: .register(0))
    var cacheUses: InlineArray<17, UInt8> = InlineArray(repeating: 0)
    /// By site, base caches that are an operand's own, for reading and for writing (twice `AccessTrial.mostSites`); 0 for none yet.
    var ownCaches: InlineArray<62, UInt> = InlineArray(repeating: 0)
    /// Lines of the segment are a loop's turns.
    var isRepeated = false
    /// Registers that the segment adds to, as loops do with what they go through an array by.
    var advancing: UInt16 = 0
    var current = 0
    var conversions: [(jump: UnsafeMutablePointer<UInt8>, back: Int)] = []
    var stubs: [Stub] = []
    var staleJumps: [UnsafeMutablePointer<UInt8>] = []
    var loopExits: [UnsafeMutablePointer<UInt8>] = []
    var body = 0
    var isFirstSegment = false
    var segmentHead: Op?
    /// Version cells of the pages the block was decoded from, with the versions it was decoded at: its own page, and the next one.
    private(set) var version: (cell: UInt, version: UInt32)
    private var nextVersion: (cell: UInt, version: UInt32)?

    /// The first base cache of the privilege that runs this block.
    private(set) var bank = 0
    private(set) var isNarrow = false
    /// What the stack, and addresses, are made of.
    var word: Int { isNarrow ? 4 : 8 }

    private(set) var instructionCount = 0
    private(set) var phase = AccessTrial.Phase.none
    var siteCount = 0
    /// Where a trial's counts are, or what is left of patience afterwards; 0 for nowhere.
    var counters: UInt = 0
    var trialEnd: UnsafeMutablePointer<UInt8>?
    var exhausted: [(jump: UnsafeMutablePointer<UInt8>, slow: Int)] = []
    /// Off where each block has to end with its last instruction.
    private let repeatsLoops: Bool

    /// One for many blocks, so that its lists are allocated once.
    init(cache: TranslationCache, features: X86Features, first: Op, repeatsLoops: Bool) {
        self.repeatsLoops = repeatsLoops
        self.cache = cache
        (shared, operandLookUps) = (cache.shared, cache.operandCaches.lookUp)
        self.features = features
        self.first = first
        (gpa, version) = (0, (0, 0))
        code = cache.open()
        cold = cache.openCold()
    }

    /// - Parameters:
    ///   - bytes: the guest's code from the block's start to the end of its page.
    ///   - version: of the block's page; `next`: of the page behind it, if the block lies in both.
    ///   - phase: what is known of the operands of the first segment. When they have been watched, only that one is translated anew.
    mutating func translate(
        _ bytes: UnsafeBufferPointer<UInt8>, first: Op, gpa: UInt64, _ place: BlockPlace, version: (cell: UInt, version: UInt32),
        next: (cell: UInt, version: UInt32)? = nil, phase: AccessTrial.Phase, block: (UInt64) -> Op?
    ) {
        (self.first, self.gpa, self.version, nextVersion) = (first, gpa, version, next)
        self.phase = phase
        linear = Int64(bitPattern: place.page)
        let isAgain = first.pointee.aux == 1
        isNarrow = place.kind == .narrow
        bank = isNarrow ? 2 * Int(X86_BASE_CACHES) : (place.isUser ? Int(X86_BASE_CACHES) : 0)
        code = cache.open(hot: phase.isLast)
        cold = cache.openCold()
        (instructionCount, held, scratch, isFirstSegment, segmentHead) = (0, nil, nil, false, nil)
        var op = first + 1
        lines.removeAll(keepingCapacity: true)
        var start = true
        var ended = false
        var extent = TranslationExtent(goesFar: phase.goesFar)
        while op.pointee.len > 0, !ended, cache.hasRoom(code, cold: cold) {
            let offset = Int(op.pointee.off)
            let rest = Self.rest(bytes, from: offset - Int(gpa & 4095))
            if case .instruction(let decoded) = InstructionDecoder.decode(rest, code: place.kind.size), case let i = isNarrow ? decoded.inCommonForm : decoded,
                let plan = TranslationPlan.make(i, features), !(plan.kind == .setInterrupt && op.pointee.extra == 1)  // its shadow lies in another block
            {
                lines.append(Line(op: op, handler: Self.handler(op), instruction: i, plan: plan, offset: offset))
                ended = !extent.goesOn(behind: i, plan, at: offset)
                if ended, phase.goesFar, let followed = self.followed(block) {
                    lines[lines.count - 1].isFollowed = true
                    ended = false
                    op = followed
                }
            } else {
                segment(start: start, next: op)
                lines.removeAll(keepingCapacity: true)
                start = false
                if isAgain { break }
            }
            op += 1
        }
        if start || !isAgain { segment(start: start, next: op, endsBlock: op.pointee.len == 0) }
        cache.commit(code)
        cache.commitCold(cold)
        if first.pointee.aux == 0 {
            first.pointee.aux = 2
            first.pointee.fn = TranslatorHandlers.skip
        }
    }
    /// The page's bytes from the block's start on, or before that when a jump has led there.
    private static func rest(_ bytes: UnsafeBufferPointer<UInt8>, from offset: Int) -> UnsafeBufferPointer<UInt8> {
        guard offset < 0 else { return UnsafeBufferPointer(rebasing: bytes[min(offset, bytes.count)...]) }
        return UnsafeBufferPointer(start: bytes.baseAddress.map { $0 + offset }, count: bytes.count - offset)
    }
    /// The first operation of the block that the last line jumps to, if all of that has room in the segment.
    private func followed(_ block: (UInt64) -> Op?) -> Op? {
        guard let last = lines.last, last.plan.kind == .jump else { return nil }
        let offset = target(last)
        guard Self.inPage.contains(offset), offset != Int(gpa & 4095), let first = block(gpa & ~4095 | UInt64(offset)), (first - 1).pointee.reg == 0 else { return nil }
        var end = first + 1
        while end.pointee.len > 0 { end += 1 }
        return lines.count + (end - first) <= BlockCache.maximumOperations ? first : nil
    }
    static func handler(_ op: Op) -> UInt { unsafeBitCast(op.pointee.fn, to: UInt.self) }

    // MARK: one segment

    /// Of what `lines` holds.
    ///
    /// - Parameter next: the operation after the last one.
    private mutating func segment(start: Bool, next: Op, endsBlock: Bool = false) {
        guard let head = lines.first?.op, start || lines.count >= 3 || lines.last?.plan.endsBlock == true else { return }
        // What it led to has no plan.
        lines[lines.count - 1].isFollowed = false
        instructionCount += lines.count
        segmentHead = head
        isFirstSegment = start
        analyseFlags()
        advancing = 0
        for index in lines.indices { advancing |= lines[index].plan.advances(lines[index].instruction) }
        (siteCount, counters, isRepeated) = (0, 0, false)
        if start {
            numberSites()
            repeatLoop()
        }
        windows.plan(&lines)
        (vectors, checked, named, scratch) = (VectorRegisters(), .nothing, NamedPages(), nil)
        let checkedEntry = code.here
        if start { checkEntry() }
        var (afterCheck, flagsEntry) = (code.here, 0)
        usesWindows = true
        if start, startFlags == .memory || (startFlags == .host && phase.counts) {
            let toBody = code.shortJump()
            flagsEntry = code.here
            saveFlags()
            code.patchShort(toBody)
            afterCheck = code.here
        }
        if startFlags == .host {
            // Counting takes EFLAGS.
            if start { beginTrial() }
            restoreFlags(mayBeLazy: true)
        }
        body = code.here
        if flagsEntry == 0 { flagsEntry = body }
        flags = startFlags
        if start, startFlags != .host { beginTrial() }
        countCacheUses()
        emitLines(from: 0, next: next, endsBlock: endsBlock)
        swap(&code, &cold)
        emitFallbacks(next: next, endsBlock: endsBlock)
        finishSlowPaths()
        fallbacks.removeAll(keepingCapacity: true)
        fallbackEntries.removeAll(keepingCapacity: true)
        let entry = code.here
        code.leaRIP(Host.scratch, afterCheck)
        code.jump(to: isNarrow ? shared.enterNarrow : shared.enter)
        swap(&code, &cold)
        if start {
            first.pointee.imm = UInt64(checkedEntry)
            first.pointee.scale = UInt8(afterCheck - checkedEntry)
            first.pointee.disp = Int64(flagsEntry)
            first.pointee.aux = 1
            first.pointee.fn = unsafeBitCast(UInt(entry), to: Handler.self)
        } else {
            head.pointee.fn = unsafeBitCast(UInt(entry), to: Handler.self)
        }
    }

    /// The segment without windows: once, and most fallbacks lead into the middle of that.
    private mutating func emitFallbacks(next: Op, endsBlock: Bool) {
        usesWindows = false
        for number in fallbacks.indices {
            let fallback = fallbacks[number]
            fallback.jumps.patch(&code)
            fallbacks[number].start = code.here
            if let entry = fallbackEntries.first(where: { $0.line == fallback.line }), entry.vectors == fallback.vectors {
                // Flags are never the host's here: the window was just compared.
                if entry.flags == .host, fallback.flags == .memory { restoreFlags(mayBeLazy: false) }
                code.jump(to: entry.at)
            } else {
                (flags, vectors, checked, named) = (fallback.flags, fallback.vectors, fallback.checked, NamedPages())
                emitLines(from: fallback.line, next: next, endsBlock: endsBlock)
            }
        }
    }

    /// A short loop goes round several times in one segment: it asks less often whether somebody wants something, and its turns
    /// share windows and vector registers.
    private mutating func repeatLoop() {
        guard repeatsLoops, let last = lines.last, last.plan.kind == .conditional, isLoop(target(last)), Self.inPage.contains(following(last)) else { return }
        let turn = lines.count
        let turns = min(LoopTurns.most, LoopTurns.lines / turn)
        guard turns > 1 else { return }
        isRepeated = true
        for _ in 1..<turns {
            lines[lines.count - 1].isTurn = true
            lines.append(contentsOf: lines[..<turn])
        }
        lines[lines.count - 1].isTurn = false
        analyseFlags()
    }
    private enum LoopTurns {
        static let most = 8
        static let lines = 40
    }

    mutating func emitLines(from start: Int, next: Op, endsBlock: Bool) {
        for number in start..<lines.count {
            current = number
            if !usesWindows, fallbacks.contains(where: { $0.line == number }) {
                (named, scratch) = (NamedPages(), nil)
                fallbackEntries.append((number, code.here, flags, vectors))
            }
            emitHolding(lines[number])
        }
        writeStackPointer()
        guard let last = lines.last, !last.plan.endsBlock else { return }
        guard endsBlock else { return leaveTo(next) }
        // On to what follows the block; the interpreter's last operation stands for the way there.
        var end = last
        (end.op, end.handler, end.offset) = (next, Self.handler(next), Int(next.pointee.off))
        edge(end, to: end.offset)
    }

    /// What ways in ask that nothing watches: whether somebody wants something, and of a block in two pages whether they are as they were.
    mutating func checkEntry() {
        if let nextVersion {
            compareVersion(version)
            compareVersion(nextVersion)
        }
        code.comparePending()
        staleJumps.append(code.jump(if: 5))
    }
    private mutating func compareVersion(_ page: (cell: UInt, version: UInt32)) {
        let (cell, version) = page
        let distance = Int(bitPattern: cell) &- (code.here + 10)
        if Int(Int32(truncatingIfNeeded: distance)) == distance {
            code.bytes(0x81, 0x3D)  // cmp dword [rip + …], …
            code.int32(Int32(distance))
        } else {
            code.moveImmediate(Host.address, UInt64(cell))
            code.op(0x81, reg: 7, .memory(base: Host.address), wide: false)
        }
        code.int32(Int32(bitPattern: version))
        staleJumps.append(code.jump(if: 5))
    }
    /// To the interpreter at `op`.
    mutating func leaveTo(_ op: Op) {
        vectors.store(&code)
        leave(op, Self.handler(op), flags)
    }
    mutating func leave(_ op: Op, _ handler: UInt, _ flags: Flags) {
        let exit = flags == .host ? shared.exitWithFlags : (flags == .memory ? shared.exitWithMemory : shared.exitWithout)
        // Only a segment's first operation has another handler than the interpreter's.
        let operation = cache.offset(of: op)
        if op != first, op != segmentHead, handler == Self.handler(op) { return code.exit(Host.address, operation, to: exit.loadingHandler) }
        code.moveImmediate(Host.scratch, UInt64(handler))
        code.exit(Host.address, operation, to: exit.withHandler)
    }
    private mutating func load(_ address: MissedAddress) {
        switch address {
        case .lessTag: break
        case .relative(let distance):
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: distance))
        case .absolute(let address):
            code.op(0xC7, reg: 0, .register(Host.address))
            code.int32(address)
        }
    }
    mutating func finishSlowPaths() {
        for exit in sideExits {
            if exit.vectors.areStored, isEdge(exit.jump, exit.line, to: exit.target) { continue }
            code.patch(exit.jump)
            (flags, vectors) = (.host, exit.vectors)
            edge(exit.line, to: exit.target)
        }
        sideExits.removeAll(keepingCapacity: true)
        for miss in misses {
            code.patch(miss.jump)
            countMiss(miss)
            load(miss.address)
            if let own = miss.own {
                code.store(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
                code.leaRIP(Host.rax, Int(bitPattern: own))
            }
            code.moveImmediate(Host.scratch, UInt64(4096 - miss.size))
            if case .lessTag = miss.address { code.call(miss.lookUp.lessTag) } else { code.call(miss.lookUp.linear) }
            if let fallback = miss.fallback { code.jump(if: 7, to: fallbacks[fallback].start) } else { slow[miss.slow].jumps.append(code.jump(if: 7)) }
            code.jump(to: miss.again)
        }
        finishExhausted()
        finishTrial()
        misses.removeAll(keepingCapacity: true)
        for alternate in alternates {
            code.patch(alternate.jump)
            code.bytes(0x41, 0x83, 0xF1, 0x02)  // xor r9d, 2
            code.op(0x39, reg: Host.address, Host.cell(jumpTable, index: Host.scratch, scale: 3))
            code.jump(if: 4, to: alternate.back)
            let missing = code.jump()
            if alternate.isCall { callMisses[alternate.slow].jumps.append(missing) } else { slow[alternate.slow].jumps.append(missing) }
        }
        alternates.removeAll(keepingCapacity: true)
        for landing in landings {
            code.patch(landing)
            code.op(0x01, reg: Host.scratch, .register(Host.address))  // add r11, r9
            code.jump(to: shared.returnElsewhere)
        }
        landings.removeAll(keepingCapacity: true)
        for path in slow {
            path.jumps.patch(&code)
            if path.isWindow { nameBlock() }
            path.vectors.store(&code)
            leave(path.op, path.isWindow ? unsafeBitCast(TranslatorHandlers.windowFailed, to: UInt.self) : path.handler, path.flags)
        }
        slow.removeAll(keepingCapacity: true)
        for miss in callMisses { finishCallMiss(miss.jumps, miss.op, miss.handler) }
        callMisses.removeAll(keepingCapacity: true)
        for full in fullStacks {
            code.patch(full.jump)
            code.bytes(0x48, 0x81, 0xCC)  // or rsp, …
            code.int32(Int32(ReturnStack.size - 1))
            code.bytes(0x48, 0x83, 0xE4, 0xC0)  // and rsp, -64
            code.jump(to: full.back)
        }
        fullStacks.removeAll(keepingCapacity: true)
        for conversion in conversions {
            code.patch(conversion.jump)
            code.leaRIP(Host.address, conversion.back)
            code.jump(to: shared.convertFlags)
        }
        conversions.removeAll(keepingCapacity: true)
        for stub in stubs {
            if let crossing = stub.crossing {
                finishCrossing(stub, crossing)
                continue
            }
            let edge = cache.makeEdge(stub.way, kind: stub.kind, isBackward: stub.isBackward, stub: code.here)
            code.moveEdge(Host.address, edge, to: stub.target)
            code.jump(to: stub.kind == .flags ? shared.linkWithFlags : shared.linkWithMemory)
        }
        stubs.removeAll(keepingCapacity: true)
        if !staleJumps.isEmpty || !loopExits.isEmpty {
            for jump in staleJumps { code.patch(jump) }
            for jump in loopExits { code.patch(jump) }
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: Int32(gpa & 4095)))
            code.jump(to: shared.exitToLoop)
            staleJumps.removeAll(keepingCapacity: true)
            loopExits.removeAll(keepingCapacity: true)
        }
    }
}
