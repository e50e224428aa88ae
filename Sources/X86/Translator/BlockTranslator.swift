import CX86

/// Translates one block of 64-bit code: each run of instructions that have a plan becomes a segment of host code, which
/// takes the place of its first operation's handler. Whatever a segment cannot do (a TLB miss, an instruction without a
/// plan, an exit that is not linked) it leaves to the interpreter at exactly that operation, with all state in its place.
///
/// In a segment the guest's registers are the host's of the same number, but RSP in R8 and R8–R11 in memory; arithmetic
/// flags are the host's. Flags that nobody can read any more may be lost: an exception's image then shows others.
struct BlockTranslator {
    private struct Line {
        var op: Op
        var handler: UInt
        var instruction: Instruction
        var plan: TranslationPlan
        var offset: Int
        var liveAfter = true
        var memory: AccessWindow.Use?
        var stack: AccessWindow.Use?
    }
    /// What the segment knows of the floating-point unit: that x87 and SSE may be used, and AVX.
    private enum Checked { case nothing, vectors, avx }
    private enum Flags { case dead, host, memory }
    /// A window's range was not all in one page: the rest of the segment without windows, from this line on.
    private struct Fallback {
        var jumps: [UnsafeMutablePointer<UInt8>]
        var line: Int
        var flags: Flags
        var vectors: VectorRegisters
        var checked: Checked
    }
    /// A base cache holds another page: looked up out of line. `slow` is the slow path for when that fails.
    private struct Miss {
        var jump: UnsafeMutablePointer<UInt8>
        var again: Int
        var size: Int
        var lookUp: Int
        var slow: Int
    }
    /// A branch's target is not where the jump cache has it first: maybe in the entry beside that one.
    private struct Alternate {
        var jump: UnsafeMutablePointer<UInt8>
        var back: Int
        /// What is done when it is not: the slow path of this number or the call's.
        var slow: Int
        var isCall: Bool
    }
    /// A conditional jump that the segment goes on behind is taken.
    private struct SideExit {
        var jump: UnsafeMutablePointer<UInt8>
        var line: Line
        var vectors: VectorRegisters
    }
    private struct SlowPath {
        var jumps: [UnsafeMutablePointer<UInt8>]
        var line: Line
        var flags: Flags
        var vectors: VectorRegisters
    }

    private let cache: TranslationCache
    private let features: X86Features
    private let first: Op
    private let gpa: UInt64
    private var code: Assembler
    /// What runs seldom: exchanged with `code` while that is written.
    private var cold: Assembler
    private var lines: [Line] = []
    private var flags = Flags.dead
    private var startFlags = Flags.dead
    private var vectors = VectorRegisters()
    private var checked = Checked.nothing
    private var slow: [SlowPath] = []
    private var callMisses: [(jumps: [UnsafeMutablePointer<UInt8>], line: Line)] = []
    private var misses: [Miss] = []
    private var fullStacks: [(jump: UnsafeMutablePointer<UInt8>, back: Int)] = []
    private var sideExits: [SideExit] = []
    private var landings: [UnsafeMutablePointer<UInt8>] = []
    private var alternates: [Alternate] = []
    private var fallbacks: [Fallback] = []
    private var usesWindows = true
    /// Registers that the segment adds to, as loops do with what they go through an array by.
    private var advancing: UInt16 = 0
    private var current = 0
    private var conversions: [(jump: UnsafeMutablePointer<UInt8>, back: Int)] = []
    private var stubs: [(slot: Int, kind: TranslationCache.EdgeKind, target: Int)] = []
    private var staleJumps: [UnsafeMutablePointer<UInt8>] = []
    private var loopExits: [UnsafeMutablePointer<UInt8>] = []
    private var body = 0
    private var isFirstSegment = false
    private var segmentHead: Op?
    /// Version cells of the pages the block was decoded from, with the versions it was decoded at.
    private let versions: [(cell: UInt, version: UInt32)]

    /// The first base cache of the privilege that runs this block.
    private let bank: Int

    init(cache: TranslationCache, features: X86Features, first: Op, gpa: UInt64, isUser: Bool, versions: [(cell: UInt, version: UInt32)]) {
        self.cache = cache
        self.features = features
        self.first = first
        self.gpa = gpa
        self.versions = versions
        bank = isUser ? Int(X86_BASE_CACHES) : 0
        code = cache.open()
        cold = cache.openCold()
    }

    /// - Parameter bytes: the guest's code from the block's start to the end of its page.
    mutating func translate(_ bytes: UnsafeBufferPointer<UInt8>) {
        var op = first + 1
        var run: [Line] = []
        var start = true
        var ended = false
        var extent = TranslationExtent()
        while op.pointee.len > 0, !ended, cache.hasRoom(code, cold: cold) {
            let offset = Int(op.pointee.off)
            let rest = UnsafeBufferPointer(rebasing: bytes[min(offset - Int(gpa & 4095), bytes.count)...])
            if case .instruction(let i) = InstructionDecoder.decode(rest, code: .bits64), let plan = TranslationPlan.make(i, features) {
                run.append(Line(op: op, handler: Self.handler(op), instruction: i, plan: plan, offset: offset))
                ended = !extent.goesOn(behind: i, plan)
            } else {
                segment(run, start: start, next: op)
                run = []
                start = false
            }
            op += 1
        }
        segment(run, start: start, next: op, endsBlock: op.pointee.len == 0)
        cache.commit(code)
        cache.commitCold(cold)
        if first.pointee.aux == 0 {
            first.pointee.aux = 2
            first.pointee.fn = TranslatorHandlers.skip
        }
    }
    private static func handler(_ op: Op) -> UInt { unsafeBitCast(op.pointee.fn, to: UInt.self) }

    // MARK: one segment

    /// - Parameter next: the operation after the last one.
    private mutating func segment(_ run: [Line], start: Bool, next: Op, endsBlock: Bool = false) {
        guard let head = run.first, start || run.count >= 3 || run.last?.plan.endsBlock == true else { return }
        lines = run
        segmentHead = head.op
        isFirstSegment = start
        analyseFlags()
        advancing = lines.reduce(0) { $0 | $1.plan.advances($1.instruction) }
        for (number, use) in AccessWindow.plan(lines.map { ($0.instruction, $0.plan) }).enumerated() {
            (lines[number].memory, lines[number].stack) = use
        }
        (vectors, checked) = (VectorRegisters(), .nothing)
        let checkedEntry = code.here
        if start { checkVersion() }
        let afterCheck = code.here
        if startFlags == .host { restoreFlags(mayBeLazy: true) }
        body = code.here
        flags = startFlags
        usesWindows = true
        emitLines(from: 0, next: next, endsBlock: endsBlock)
        swap(&code, &cold)
        usesWindows = false
        for fallback in fallbacks {
            for jump in fallback.jumps { code.patch(jump) }
            (flags, vectors, checked) = (fallback.flags, fallback.vectors, fallback.checked)
            emitLines(from: fallback.line, next: next, endsBlock: endsBlock)
        }
        fallbacks = []
        var flagsEntry = body
        if start, startFlags == .memory {
            flagsEntry = code.here
            saveFlags()
            code.jump(to: body)
        }
        finishSlowPaths()
        let entry = code.here
        enter()
        code.jump(to: afterCheck)
        swap(&code, &cold)
        if start {
            first.pointee.imm = UInt64(checkedEntry)
            first.pointee.disp = Int64(flagsEntry)
            first.pointee.aux = 1
            first.pointee.fn = unsafeBitCast(UInt(entry), to: Handler.self)
        } else {
            head.op.pointee.fn = unsafeBitCast(UInt(entry), to: Handler.self)
        }
    }

    private mutating func emitLines(from start: Int, next: Op, endsBlock: Bool) {
        for number in start..<lines.count {
            current = number
            emit(lines[number])
        }
        guard let last = lines.last, !last.plan.endsBlock else { return }
        guard endsBlock else { return leaveTo(next) }
        // On to what follows the block; the interpreter's last operation stands for the way there.
        var end = last
        (end.op, end.handler, end.offset) = (next, Self.handler(next), Int(next.pointee.off))
        edge(end, to: end.offset)
    }

    /// From the interpreter: the host's registers to its stack, the guest's from the state.
    private mutating func enter() {
        for register in Host.calleeSaved { code.push(register) }
        code.move(Host.state, Host.rsi)
        code.op(0xC7, reg: 0, Host.cell(Int(X86_T1_FLAGS_OFFSET)))
        code.int32(0xFFFF)
        for n in Host.mapped { if let host = Host.register(n) { code.load(host, Host.home(n)) } }
        code.store(4, Host.cell(Int(X86_HOST_STACK_OFFSET)))
        code.load(4, Host.cell(Int(X86_RETURN_STACK_OFFSET)))
    }
    private mutating func checkVersion() {
        for (cell, version) in versions {
            code.moveImmediate(Host.address, UInt64(cell))
            code.op(0x81, reg: 7, .memory(base: Host.address), wide: false)
            code.int32(Int32(bitPattern: version))
            staleJumps.append(code.jump(if: 5))
        }
        code.op(0x83, reg: 7, Host.cell(Int(X86_PENDING_OFFSET)), wide: false)
        code.byte(0)
        staleJumps.append(code.jump(if: 5))
    }
    /// To the interpreter at `op`.
    private mutating func leaveTo(_ op: Op) {
        vectors.store(&code)
        leave(op, Self.handler(op), flags)
    }
    private mutating func leave(_ op: Op, _ handler: UInt, _ flags: Flags) {
        let exit = flags == .host ? cache.exitWithFlags : (flags == .memory ? cache.exitWithMemory : cache.exitWithout)
        code.moveImmediate(Host.address, UInt64(UInt(bitPattern: op)))
        // Only a segment's first operation has another handler than the interpreter's.
        if op != first, op != segmentHead, handler == Self.handler(op) {
            return code.jump(to: exit.loadingHandler)
        }
        code.moveImmediate(Host.scratch, UInt64(handler))
        code.jump(to: exit.withHandler)
    }
    private mutating func finishSlowPaths() {
        for exit in sideExits {
            code.patch(exit.jump)
            (flags, vectors) = (.host, exit.vectors)
            edge(exit.line, to: target(exit.line))
        }
        sideExits = []
        for miss in misses {
            code.patch(miss.jump)
            code.moveImmediate(Host.scratch, UInt64(4096 - miss.size))
            code.call(miss.lookUp)
            slow[miss.slow].jumps.append(code.jump(if: 7))
            code.jump(to: miss.again)
        }
        misses = []
        for alternate in alternates {
            code.patch(alternate.jump)
            code.bytes(0x41, 0x83, 0xF1, 0x10)  // xor r9d, 16
            code.op(0x39, reg: Host.address, .memory(base: Host.state, index: Host.scratch, displacement: jumpTable))
            code.jump(if: 4, to: alternate.back)
            let missing = code.jump()
            if alternate.isCall { callMisses[alternate.slow].jumps.append(missing) } else { slow[alternate.slow].jumps.append(missing) }
        }
        alternates = []
        for landing in landings {
            code.patch(landing)
            code.op(0x01, reg: Host.scratch, .register(Host.address))  // add r11, r9
            code.jump(to: cache.returnElsewhere)
        }
        landings = []
        for path in slow {
            for jump in path.jumps { code.patch(jump) }
            path.vectors.store(&code)
            leave(path.line.op, path.line.handler, path.flags)
        }
        slow = []
        for miss in callMisses { finishCallMiss(miss.jumps, miss.line) }
        callMisses = []
        for full in fullStacks {
            code.patch(full.jump)
            code.bytes(0x48, 0x81, 0xCC)  // or rsp, …
            code.int32(Int32(ReturnStack.size - 1))
            code.bytes(0x48, 0x83, 0xE4, 0xC0)  // and rsp, -64
            code.jump(to: full.back)
        }
        fullStacks = []
        for conversion in conversions {
            code.patch(conversion.jump)
            code.leaRIP(Host.address, conversion.back)
            code.jump(to: cache.convertFlags)
        }
        conversions = []
        for stub in stubs {
            let address = code.here
            let edge = cache.makeEdge(slot: stub.slot, kind: stub.kind, stub: address)
            code.moveImmediate(Host.address, UInt64(stub.target) << 32 | UInt64(edge))
            code.store(Host.address, Host.cell(Int(X86_T1_EDGE_OFFSET)))
            leave(first, unsafeBitCast(TranslatorHandlers.linkEdge, to: UInt.self), stub.kind == .flags ? .host : .memory)
        }
        stubs = []
        if !staleJumps.isEmpty || !loopExits.isEmpty {
            for jump in staleJumps + loopExits { code.patch(jump) }
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: Int32(gpa & 4095)))
            code.jump(to: cache.exitToLoop)
            staleJumps = []
            loopExits = []
        }
    }

    // MARK: flags

    private mutating func analyseFlags() {
        var live = true
        var anyNeed = false
        for index in lines.indices.reversed() {
            lines[index].liveAfter = live
            let plan = lines[index].plan
            if plan.readsFlags || (plan.mergesFlags && live) { anyNeed = true }
            live = plan.readsFlags || (plan.definesFlags ? false : live)
        }
        startFlags = !live ? .dead : (anyNeed ? .host : .memory)
    }
    /// EFLAGS to the state. Changes EFLAGS not at all; r11 is lost.
    private mutating func saveFlags() {
        code.move(Host.address, Host.rax)
        code.bytes(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
        code.op(0x89, reg: Host.rax, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, operand16: true)
        code.move(Host.rax, Host.address)
    }
    /// The state's flags to EFLAGS. When they may still be in the interpreter's form, r9 and r11 are lost.
    private mutating func restoreFlags(mayBeLazy: Bool) {
        var lazy: UnsafeMutablePointer<UInt8>?
        if mayBeLazy {
            code.op(0x81, reg: 7, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false)
            code.int32(0xFFFF)
            lazy = code.jump(if: 4)
        }
        code.store(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.op(0xB7, reg: Host.rax, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, map: 1)  // movzx eax, word
        code.bytes(0x04, 0x7F, 0x9E)  // add al, 127; sahf
        code.load(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        if let lazy { conversions.append((lazy, code.here)) }
    }
    /// Before code that changes EFLAGS.
    private mutating func aboutToClobber(_ line: Line) {
        let plan = line.plan
        guard flags == .host else { return }
        if plan.readsFlags || (!plan.definesFlags && line.liveAfter) {
            saveFlags()
            flags = .memory
        } else {
            flags = .dead
        }
    }
    /// Before the instruction itself.
    private mutating func needFlags(_ line: Line) {
        guard flags == .memory, line.plan.readsFlags || (line.plan.mergesFlags && line.liveAfter) else { return }
        restoreFlags(mayBeLazy: false)
        flags = .host
    }

    // MARK: vector registers

    private mutating func flushVectors() {
        vectors.store(&code)
        vectors.clean()
    }
    private mutating func useVector(_ n: UInt8, reads: Bool, writes: Bool, _ line: Line) {
        let width: VectorRegisters.Width = !line.plan.isVEX ? .legacy : (line.instruction.vexL ? .vex256 : .vex128)
        vectors.use(n, reads: reads, writes: writes, width, &code)
    }
    /// CR0.EM and TS, and exceptions that the guest wants: the interpreter's business. Once a segment.
    private mutating func checkVectors(_ line: Line) {
        let wanted = line.plan.isVEX ? Checked.avx : .vectors
        guard checked == .nothing || (wanted == .avx && checked == .vectors) else { return }
        aboutToClobber(line)
        var jumps: [UnsafeMutablePointer<UInt8>] = []
        if checked == .nothing {
            code.op(0xF7, reg: 0, Host.cell(Int(X86_CR0_OFFSET)), wide: false)
            code.int32(Int32(ControlRegister.em | ControlRegister.ts))
            jumps.append(code.jump(if: 5))
            code.op(0x80, reg: 7, Host.cell(Int(X86_UNMASKED_OFFSET)), wide: false)
            code.byte(0)
            jumps.append(code.jump(if: 5))
        }
        if wanted == .avx {
            code.op(0x80, reg: 7, Host.cell(Int(X86_AVX_OFF_OFFSET)), wide: false)
            code.byte(0)
            jumps.append(code.jump(if: 5))
        }
        checked = wanted
        slow.append(SlowPath(jumps: jumps, line: line, flags: flags, vectors: vectors))
    }
    private mutating func zeroUpper(_ line: Line) {
        flushVectors()
        vectors = VectorRegisters()
        aboutToClobber(line)
        code.op(0x80, reg: 7, Host.cell(Int(X86_UPPER_IN_USE_OFFSET)), wide: false)
        code.byte(0)
        let clean = code.jump(if: 4)
        code.call(cache.zeroUpper)
        code.patch(clean)
    }

    // MARK: memory

    /// The linear address of a memory operand in r11.
    private mutating func address(_ i: Instruction, offset: Int, segments: Bool = true) {
        if i.isRIPRelative {
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: Int32(truncatingIfNeeded: i.displacement + Int64(offset + i.length))))
        } else {
            let (operand, isAbsolute) = addressOperand(i)
            if isAbsolute {
                code.op(0xC7, reg: 0, .register(Host.address))
                code.int32(Int32(truncatingIfNeeded: i.displacement))
                if i.addressSize == 4 { code.move(Host.address, Host.address, wide: false) }
            } else {
                code.lea(Host.address, operand, wide: i.addressSize == 8)
            }
        }
        if segments, i.segmentOverride >= 4 { code.op(0x03, reg: Host.address, Host.cell(Int(X86_SEGBASE_OFFSET) + Int(i.segmentOverride) * 8)) }
    }
    /// Base, index and displacement with registers from memory put into r11 and r9.
    private mutating func addressOperand(_ i: Instruction) -> (HostOperand, isAbsolute: Bool) {
        func host(_ n: Int8, _ temporary: UInt8) -> UInt8 {
            if let register = Host.register(UInt8(n)) { return register }
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
    private func baseCache(_ i: Instruction) -> Int? {
        if i.segmentOverride >= 4 { return 19 }
        if i.isRIPRelative { return 16 }
        if i.index >= 0 {
            if i.base < 0 { return 18 }
            return (advancing >> UInt16(i.index) | advancing >> UInt16(i.base)) & 1 != 0 ? 20 + Int(i.base) : nil
        }
        return i.base < 0 ? 17 : (i.base == 4 ? 4 : nil)
    }
    private static func cell(_ baseCache: Int, write: Bool) -> Int {
        Int(X86_BASE_CACHE_OFFSET) + baseCache * MemoryLayout<x86_base_cache>.stride + (write ? 16 : 0)
    }
    /// Checks the linear address in r11 and makes it the host's; r9 is lost, and EFLAGS.
    private mutating func check(size: Int, write: Bool, aligned: Bool = false, cache number: Int?) -> [UnsafeMutablePointer<UInt8>] {
        var jumps: [UnsafeMutablePointer<UInt8>] = []
        if aligned {
            code.bytes(0x41, 0xF6, 0xC3, UInt8(size - 1))  // test r11b, …
            jumps.append(code.jump(if: 5))
        }
        guard let number = number.map({ $0 + bank }) else { return jumps + checkTable(size: size, write: write) }
        let cell = Self.cell(number, write: write)
        let again = code.here
        code.move(Host.scratch, Host.address)
        code.op(0x33, reg: Host.scratch, Host.cell(cell))
        code.bytes(0x49, 0x81, 0xF9)  // cmp r9, …
        code.int32(Int32(4096 - size))
        misses.append(Miss(jump: code.jump(if: 7), again: again, size: size, lookUp: write ? cache.lookUp[number].write : cache.lookUp[number].read, slow: slow.count))
        code.op(0x03, reg: Host.address, Host.cell(cell + 8))
        return jumps
    }
    /// The offset of the TLB's entry for r11 in r9. Returns where the table lies in the state.
    private mutating func hashPage() -> Int32 {
        if features.contains(.bmi2) {
            code.bytes(0xC4, 0x43, 0x7B, 0xF0, 0xCB, 0x07)  // rorx r9d, r11d, 7
        } else {
            code.bytes(0x45, 0x89, 0xD9, 0x41, 0xC1, 0xE9, 0x07)  // mov r9d, r11d; shr r9d, 7
        }
        code.bytes(0x41, 0x81, 0xE1)  // and r9d, …
        code.int32(Int32((Int(X86_TLB_SIZE) - 1) * 32))
        return Int32(X86_TLB_TABLES) + (bank > 0 ? Int32(X86_TLB_BYTES) : 0)
    }
    private mutating func checkTable(size: Int, write: Bool) -> [UnsafeMutablePointer<UInt8>] {
        let table = hashPage()
        code.op(0x33, reg: Host.address, .memory(base: Host.state, index: Host.scratch, displacement: table + (write ? 8 : 0)))
        code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
        code.int32(Int32(4096 - size))
        let jump = code.jump(if: 7)
        code.op(0x03, reg: Host.address, .memory(base: Host.state, index: Host.scratch, displacement: table + 16))
        return [jump]
    }
    /// An operand through a window: base register and displacement on top of the window's distance, in r11.
    private mutating func windowed(_ use: AccessWindow.Use, base: UInt8, displacement: Int, aligned: Bool, _ line: Line) -> HostOperand {
        let delta = Host.cell(Int(X86_T1_DELTA_OFFSET) + use.window * 8)
        if let opening = use.opening {
            aboutToClobber(line)
            code.lea(Host.address, .memory(base: base, displacement: Int32(truncatingIfNeeded: opening.low)))
            let number = bank + 4
            var fallback = Fallback(jumps: [], line: current, flags: flags, vectors: vectors, checked: checked)
            if base != Host.guestRSP {
                let table = hashPage()
                code.op(0x33, reg: Host.address, .memory(base: Host.state, index: Host.scratch, displacement: table + (opening.writes ? 8 : 0)))
                code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
                code.int32(Int32(4096 - opening.size))
                fallback.jumps.append(code.jump(if: 7))
                fallbacks.append(fallback)
                code.op(0x03, reg: Host.address, .memory(base: Host.state, index: Host.scratch, displacement: table + 16))
                code.op(0x2B, reg: Host.address, .register(base))
                code.lea(Host.address, .memory(base: Host.address, displacement: Int32(truncatingIfNeeded: -opening.low)))
                code.store(Host.address, delta)
            } else {
            let cell = Self.cell(number, write: opening.writes)
            let again = code.here
            code.move(Host.scratch, Host.address)
            code.op(0x33, reg: Host.scratch, Host.cell(cell))
            code.bytes(0x49, 0x81, 0xF9)  // cmp r9, …
            code.int32(Int32(4096 - opening.size))
            let found = code.jump(if: 6)
            code.moveImmediate(Host.scratch, UInt64(4096 - opening.size))
            code.call(opening.writes ? cache.lookUp[number].write : cache.lookUp[number].read)
            fallback.jumps.append(code.jump(if: 7))
            code.jump(to: again)
            fallbacks.append(fallback)
            code.patch(found)
            code.load(Host.address, Host.cell(cell + 8))
            code.store(Host.address, delta)
            }
        } else {
            if aligned { aboutToClobber(line) }
            code.load(Host.address, delta)
        }
        let operand = HostOperand.memory(base: Host.address, index: base, displacement: Int32(truncatingIfNeeded: displacement))
        guard aligned else { return operand }
        code.lea(Host.address, operand)
        code.bytes(0x41, 0xF6, 0xC3, UInt8(line.plan.size - 1))  // test r11b, …
        slowPath([code.jump(if: 5)], line)
        return .memory(base: Host.address)
    }
    /// A line's memory operand, checked; r9 is free afterwards.
    private mutating func memoryOperand(_ line: Line) -> HostOperand {
        let i = line.instruction
        if usesWindows, let use = line.memory, let base = Host.register(UInt8(i.base)) {
            return windowed(use, base: base, displacement: Int(i.displacement), aligned: line.plan.aligned, line)
        }
        aboutToClobber(line)
        address(i, offset: line.offset)
        slowPath(check(size: line.plan.size, write: line.plan.writesRM, aligned: line.plan.aligned, cache: baseCache(i)), line)
        return Self.checked
    }
    /// Eight bytes at the stack pointer (for RET and POP), below it (for PUSH and CALL) or at RBP (for LEAVE).
    private mutating func stackOperand(_ line: Line, base: UInt8, displacement: Int, write: Bool) -> HostOperand {
        if usesWindows, let use = line.stack { return windowed(use, base: base, displacement: displacement, aligned: false, line) }
        aboutToClobber(line)
        code.lea(Host.address, .memory(base: base, displacement: Int32(displacement)))
        slowPath(check(size: 8, write: write, cache: base == Host.guestRSP ? 4 : nil), line)
        return Self.checked
    }
    private mutating func pushOperand(_ line: Line) -> HostOperand { stackOperand(line, base: Host.guestRSP, displacement: -8, write: true) }
    private mutating func moveStack(_ bytes: Int32) { code.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: bytes)) }

    private static let checked = HostOperand.memory(base: Host.address)
    private mutating func slowPath(_ jumps: [UnsafeMutablePointer<UInt8>], _ line: Line) {
        slow.append(SlowPath(jumps: jumps, line: line, flags: flags, vectors: vectors))
    }

    // MARK: instructions

    private mutating func emit(_ line: Line) {
        if line.plan.usesVector || line.plan.isX87 || line.plan.kind == .zeroUpper { checkVectors(line) }
        switch line.plan.kind {
        case .modRM: modRM(line)
        case .pushRegister: pushRegister(line)
        case .popRegister: popRegister(line)
        case .pushImmediate:
            code.op(0xC7, reg: 0, pushOperand(line))
            code.int32(Int32(truncatingIfNeeded: line.instruction.immediate))
            moveStack(-8)
        case .pushMemory: pushMemory(line)
        case .leave:
            let operand = stackOperand(line, base: 5, displacement: 0, write: false)
            code.lea(Host.guestRSP, .memory(base: 5, displacement: 8))
            code.load(5, operand)
        case .exchangeAccumulator: exchangeAccumulator(line.instruction)
        case .moveImmediate: moveImmediate(line.instruction)
        case .byteSwap: byteSwap(line.instruction)
        case .plain: plain(line)
        case .lea: lea(line)
        case .zeroUpper: zeroUpper(line)
        case .nop: if line.instruction.opcode == 0x90, line.instruction.rep == 0xF3 { code.bytes(0xF3, 0x90) }
        case .jump: edge(line, to: target(line))
        case .conditional: conditional(line)
        case .call: call(line)
        case .ret: ret(line)
        case .jumpIndirect: jumpIndirect(line)
        case .callIndirect: callIndirect(line)
        }
        if line.plan.definesFlags || line.plan.mergesFlags { flags = .host }
    }

    private mutating func modRM(_ line: Line) {
        let (i, plan) = (line.instruction, line.plan)
        let isByte = plan.byteReg || plan.byteRM
        let legacyByte = isByte && !i.hasREX
        var regField = i.reg & 7
        var regHome: UInt8?
        var rmOperand = Self.checked
        var rmHome: UInt8?
        func host(_ n: UInt8, byte: Bool) -> UInt8? { byte && legacyByte ? n : Host.register(n) }

        if i.isMemory { rmOperand = memoryOperand(line) }
        if plan.reg == .general {
            if let register = host(i.reg, byte: plan.byteReg) {
                regField = register
            } else {
                regField = Host.scratch
                regHome = i.reg
                let partial = plan.writesReg && (plan.byteReg || (i.operandSize == 2 && plan.rm != .vector))
                if plan.readsReg || partial { code.load(Host.scratch, Host.home(i.reg)) }
            }
        } else if plan.reg == .vector {
            regField = i.reg
        }
        if !i.isMemory {
            if plan.rm == .vector {
                rmOperand = .register(i.rm)
            } else if plan.rm == .none {
                rmOperand = .register(i.rm & 7)
            } else if let register = host(i.rm, byte: plan.byteRM) {
                rmOperand = .register(register)
            } else {
                rmOperand = .register(Host.address)
                rmHome = i.rm
                if plan.readsRM || (plan.writesRM && plan.size < 4) { code.load(Host.address, Host.home(i.rm)) }
            }
        }
        var third: UInt8 = 0
        var thirdHome: UInt8?
        if plan.vvvv == .general {
            third = Host.register(i.vvvv) ?? Host.scratch
            if Host.register(i.vvvv) == nil {
                thirdHome = i.vvvv
                if plan.readsV { code.load(Host.scratch, Host.home(i.vvvv)) }
            }
        } else if plan.vvvv == .vector {
            third = i.vvvv
        }
        useVectors(line, reads: true)
        useVectors(line, reads: false)
        needFlags(line)
        if plan.isVEX {
            let prefix: UInt8 = i.has66 ? 1 : (i.rep == 0xF3 ? 2 : (i.rep == 0xF2 ? 3 : 0))
            code.vex(i.opcode, reg: regField, vvvv: third, rmOperand, map: UInt8(i.map.number), prefix: prefix, wide: i.significantW, long: i.vexL)
        } else {
            code.op(
                i.opcode, reg: regField, rmOperand, wide: i.rexW, map: UInt8(i.map.number), operand16: i.has66,
                rep: plan.isExtended ? i.rep : 0, lock: i.hasLock, forceREX: isByte && i.hasREX)
        }
        if plan.immediateSize > 0 { code.immediate(i.immediate, size: plan.immediateSize) }
        if let regHome, plan.writesReg { code.store(Host.scratch, Host.home(regHome)) }
        if let rmHome, plan.writesRM { code.store(Host.address, Host.home(rmHome)) }
        if let thirdHome, plan.writesV { code.store(Host.scratch, Host.home(thirdHome)) }
    }
    /// Everything read before anything written: they may be the same register.
    private mutating func useVectors(_ line: Line, reads: Bool) {
        let (i, plan) = (line.instruction, line.plan)
        func use(_ n: UInt8, _ isRead: Bool, _ isWritten: Bool) {
            if reads ? isRead : isWritten { useVector(n, reads: reads, writes: !reads, line) }
        }
        if plan.rm == .vector, !i.isMemory { use(i.rm, plan.readsRM, plan.writesRM) }
        if plan.vvvv == .vector { use(i.vvvv, plan.readsV, plan.writesV) }
        if plan.fourth == .vector { use(UInt8(truncatingIfNeeded: i.immediate >> 4) & 15, true, false) }
        use(0, plan.readsXMM0, plan.writesXMM0)
        if plan.reg == .vector { use(i.reg, plan.readsReg, plan.writesReg) }
    }

    private mutating func pushRegister(_ line: Line) {
        let i = line.instruction
        let operand = pushOperand(line)
        let n = i.opcode == 0xFF ? i.rm : (i.opcode & 7) | i.opcodeRegisterExtension
        if let host = Host.register(n) {
            code.store(host, operand)
        } else {
            code.load(Host.scratch, Host.home(n))
            code.store(Host.scratch, operand)
        }
        moveStack(-8)
    }
    private mutating func popRegister(_ line: Line) {
        let n = (line.instruction.opcode & 7) | line.instruction.opcodeRegisterExtension
        let operand = stackOperand(line, base: Host.guestRSP, displacement: 0, write: false)
        guard n != 4 else { return code.load(Host.guestRSP, operand) }
        code.load(Host.register(n) ?? Host.address, operand)
        moveStack(8)
        if Host.register(n) == nil { code.store(Host.address, Host.home(n)) }
    }
    private mutating func pushMemory(_ line: Line) {
        code.load(Host.address, memoryOperand(line))
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        let operand = pushOperand(line)
        code.load(Host.scratch, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        code.store(Host.scratch, operand)
        moveStack(-8)
    }
    /// Puts the address behind a call on the stack; the stack pointer stays.
    private mutating func storeReturnAddress(_ line: Line) {
        let operand = pushOperand(line)
        code.load(Host.scratch, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.lea(Host.scratch, .memory(base: Host.scratch, displacement: Int32(following(line))))
        code.store(Host.scratch, operand)
    }
    private mutating func exchangeAccumulator(_ i: Instruction) {
        let n = (i.opcode & 7) | i.opcodeRegisterExtension
        let host = Host.register(n)
        if host == nil { code.load(Host.scratch, Host.home(n)) }
        code.op(0x87, reg: Host.rax, .register(host ?? Host.scratch), wide: i.operandSize == 8, operand16: i.operandSize == 2)
        if host == nil { code.store(Host.scratch, Host.home(n)) }
    }
    private mutating func moveImmediate(_ i: Instruction) {
        let n = (i.opcode & 7) | i.opcodeRegisterExtension
        let byte = i.opcode < 0xB8
        if byte, !i.hasREX { return code.bytes(0xB0 | n, UInt8(truncatingIfNeeded: i.immediate)) }
        let host = Host.register(n) ?? Host.scratch
        let isHome = Host.register(n) == nil
        if byte || i.operandSize == 2 {
            if isHome { code.load(Host.scratch, Host.home(n)) }
            code.op(byte ? 0xC6 : 0xC7, reg: 0, .register(host), wide: false, operand16: !byte, forceREX: byte)
            code.immediate(i.immediate, size: byte ? 1 : 2)
        } else {
            code.moveImmediate(host, i.operandSize == 8 ? UInt64(bitPattern: i.immediate) : UInt64(UInt32(truncatingIfNeeded: i.immediate)))
        }
        if isHome { code.store(Host.scratch, Host.home(n)) }
    }
    private mutating func byteSwap(_ i: Instruction) {
        let n = (i.opcode & 7) | i.opcodeRegisterExtension
        let host = Host.register(n) ?? Host.scratch
        if Host.register(n) == nil { code.load(Host.scratch, Host.home(n)) }
        let rex: UInt8 = (i.operandSize == 8 ? 8 : 0) | (host > 7 ? 1 : 0)
        if rex != 0 { code.byte(0x40 | rex) }
        code.bytes(0x0F, 0xC8 | host & 7)
        if Host.register(n) == nil { code.store(Host.scratch, Host.home(n)) }
    }
    private mutating func plain(_ line: Line) {
        let i = line.instruction
        needFlags(line)
        if line.plan.isX87 { return code.bytes(i.opcode, 0xC0 | i.group << 3 | i.rm & 7) }
        if i.has66, !line.plan.byteReg { code.byte(0x66) }
        if i.rexW { code.byte(0x48) }
        code.byte(i.opcode)
        if line.plan.immediateSize > 0 { code.immediate(i.immediate, size: line.plan.immediateSize) }
    }
    private mutating func lea(_ line: Line) {
        let i = line.instruction
        let host = Host.register(i.reg)
        if let host, !i.isRIPRelative, i.operandSize > 2, i.base >= 0 || i.index >= 0 {
            return code.lea(host, addressOperand(i).0, wide: i.operandSize == 8 && i.addressSize == 8)
        }
        address(i, offset: line.offset, segments: false)
        if i.operandSize == 2 {
            let target = host ?? Host.scratch
            if host == nil { code.load(Host.scratch, Host.home(i.reg)) }
            code.op(0x89, reg: Host.address, .register(target), wide: false, operand16: true)
            if host == nil { code.store(Host.scratch, Host.home(i.reg)) }
            return
        }
        if i.operandSize == 4 { code.move(Host.address, Host.address, wide: false) }
        if let host { code.move(host, Host.address) } else { code.store(Host.address, Host.home(i.reg)) }
    }

    // MARK: control flow

    /// Where a block can start that needs no look at the next page.
    private static let inPage = 0..<4096 - 14
    private func target(_ line: Line) -> Int { line.offset + line.instruction.length + Int(line.instruction.immediate) }
    private func following(_ line: Line) -> Int { line.offset + line.instruction.length }

    private mutating func conditional(_ line: Line) {
        if current + 1 < lines.count {
            // The segment goes on behind it.
            needFlags(line)
            sideExits.append(SideExit(jump: code.jump(if: line.instruction.opcode & 15), line: line, vectors: vectors))
            return
        }
        flushVectors()
        needFlags(line)
        let taken = code.jump(if: line.instruction.opcode & 15)
        edge(line, to: following(line))
        flags = .host
        code.patch(taken)
        edge(line, to: target(line))
    }

    /// Goes on at an offset from the page's start.
    private mutating func edge(_ line: Line, to offset: Int, isCall: Bool = false) {
        flushVectors()
        guard Self.inPage.contains(offset) else {
            flagsToMemory()
            code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
            code.lea(Host.address, .memory(base: Host.address, displacement: Int32(truncatingIfNeeded: offset)))
            dispatch()
        slowPath([], line)
            return
        }
        if isCall {
            flagsToMemory()
            pushReturn()
        } else if offset == Int(gpa & 4095), isFirstSegment, startFlags == .dead {
            code.op(0x83, reg: 7, Host.cell(Int(X86_PENDING_OFFSET)), wide: false)
            code.byte(0)
            code.jump(if: 4, to: body)
            loopExits.append(code.jump())
            return
        }
        let slot = cache.makeSlot()
        stubs.append((slot, flags == .host ? .flags : .memory, offset))
        if offset <= line.offset {
            // Backward: the second target of the pair when somebody wants something.
            code.load(Host.address, Host.cell(Int(X86_POLL_OFFSET)))
            code.leaRIP(Host.scratch, slot)
            code.op(0xFF, reg: isCall ? 2 : 4, .memory(base: Host.scratch, index: Host.address, scale: 3), wide: false)
        } else {
            code.jumpThrough(slot, isCall: isCall)
        }
    }

    // MARK: calls and returns, see ReturnStack

    /// The running page, on the stack of returns. EFLAGS are lost.
    private mutating func pushReturn() {
        code.bytes(0xF7, 0xC4)  // test esp, …
        code.int32(ReturnStack.room)
        fullStacks.append((code.jump(if: 4), code.here))
        code.op(0xFF, reg: 6, Host.cell(Int(X86_BLOCK_BASE_OFFSET)), wide: false)
    }
    /// Where a call returns: to the block behind it, if the return address in r11 says so.
    private mutating func land(_ line: Line) {
        let offset = following(line)
        flags = .memory
        code.pop(Host.scratch)
        guard Self.inPage.contains(offset) else { return code.jump(to: cache.returnElsewhere) }
        code.op(0x2B, reg: Host.address, .register(Host.scratch))
        code.bytes(0x49, 0x81, 0xFB)  // cmp r11, …
        code.int32(Int32(offset))
        landings.append(code.jump(if: 5))
        code.store(Host.scratch, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        let slot = cache.makeSlot()
        stubs.append((slot, .memory, offset))
        code.jumpThrough(slot)
    }

    private var jumpTable: Int32 { Int32(X86_JCACHE_TABLES) + (bank > 0 ? Int32(X86_JCACHE_BYTES) : 0) }
    /// To the block at the address in r11, through the jump cache; flags are in memory. The next slow path, or the next
    /// call's, is taken on a miss.
    /// - Parameter commit: written between the last check and the jump.
    private mutating func dispatch(isCall: Bool = false, callMiss: Bool = false, _ commit: (inout Assembler) -> Void = { _ in }) {
        code.bytes(0x45, 0x69, 0xCB)  // imul r9d, r11d, …
        code.int32(Int32(bitPattern: JumpHash.factor))
        code.bytes(0x41, 0xC1, 0xE9, UInt8(JumpHash.shift - 4))  // shr r9d, …
        code.bytes(0x41, 0x81, 0xE1)  // and r9d, …
        code.int32(Int32(X86_JCACHE_BYTES) - 16)
        code.op(0x39, reg: Host.address, .memory(base: Host.state, index: Host.scratch, displacement: jumpTable))
        alternates.append(Alternate(jump: code.jump(if: 5), back: code.here, slow: callMiss ? callMisses.count : slow.count, isCall: callMiss))
        if isCall { pushReturn() }
        code.load(Host.scratch, .memory(base: Host.state, index: Host.scratch, displacement: jumpTable + 8))
        code.bytes(0x49, 0x81, 0xE3)  // and r11, ~4095
        code.int32(-4096)
        code.store(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        commit(&code)
        code.op(0xFF, reg: isCall ? 2 : 4, .memory(base: Host.scratch, displacement: 8), wide: false)
    }
    private mutating func flagsToMemory() {
        if flags == .host {
            saveFlags()
            flags = .memory
        }
    }

    private mutating func call(_ line: Line) {
        flushVectors()
        storeReturnAddress(line)
        let offset = target(line)
        guard !Self.inPage.contains(offset) else {
            code.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: -8))
            edge(line, to: offset, isCall: true)
            return land(line)
        }
        flagsToMemory()
        code.load(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.lea(Host.address, .memory(base: Host.address, displacement: Int32(truncatingIfNeeded: offset)))
        dispatch(isCall: true) { $0.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: -8)) }
        slowPath([], line)
        land(line)
    }
    private mutating func ret(_ line: Line) {
        flushVectors()
        aboutToClobber(line)
        flagsToMemory()
        code.load(Host.address, stackOperand(line, base: Host.guestRSP, displacement: 0, write: false))
        let drop = 8 + Int32(line.instruction.opcode == 0xC2 ? line.instruction.immediate & 0xFFFF : 0)
        code.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: drop))
        code.op(0xC7, reg: 0, Host.cell(Int(X86_RETURN_OFFSET_OFFSET)), wide: false)
        code.int32(drop << 12 | Int32(line.offset & 4095))
        code.byte(0xC3)
    }
    /// An indirect branch's target in r11.
    private mutating func loadTarget(_ line: Line) {
        let i = line.instruction
        if i.isMemory {
            code.load(Host.address, memoryOperand(line))
        } else if let host = Host.register(i.rm) {
            code.move(Host.address, host)
        } else {
            code.load(Host.address, Host.home(i.rm))
        }
    }
    private mutating func jumpIndirect(_ line: Line) {
        flushVectors()
        flagsToMemory()
        loadTarget(line)
        dispatch()
        slowPath([], line)
    }
    private mutating func callIndirect(_ line: Line) {
        flushVectors()
        flagsToMemory()
        loadTarget(line)
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        // The return address goes below the stack pointer, which moves only when the jump is sure.
        storeReturnAddress(line)
        code.load(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        dispatch(isCall: true, callMiss: true) { $0.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: -8)) }
        callMisses.append(([], line))
        land(line)
    }
    /// An indirect call whose target is not in the jump cache. The return address is written already, maybe over the
    /// operand, so the interpreter must not do it again, unless it has to raise the exception for the target.
    private mutating func finishCallMiss(_ jumps: [UnsafeMutablePointer<UInt8>], _ line: Line) {
        for jump in jumps { code.patch(jump) }
        code.load(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        code.move(Host.scratch, Host.address)
        code.bytes(0x49, 0xC1, 0xE1, 0x10, 0x49, 0xC1, 0xF9, 0x10)  // shl r9, 16; sar r9, 16
        code.op(0x39, reg: Host.address, .register(Host.scratch))
        let wrong = code.jump(if: 5)
        code.lea(Host.guestRSP, .memory(base: Host.guestRSP, displacement: -8))
        pushReturn()
        code.leaRIP(Host.scratch, cache.returnToUnknown)
        code.push(Host.scratch)
        code.jump(to: cache.exitToLoop)
        code.patch(wrong)
        leave(line.op, line.handler, .memory)
    }
}
