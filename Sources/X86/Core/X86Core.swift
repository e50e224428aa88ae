import CX86
import Synchronization

/// Why `X86Core.run` came back.
package enum X86Exit: Equatable, Sendable {
    /// HLT with nothing pending: run again when an interrupt is.
    case halt
    /// Triple fault.
    case shutdown
    /// Somebody called `requestExit`.
    case cancelled
    case internalError(String)
}

/// One software x86-64 processor: architectural state, soft TLB, decoded blocks and the loop that runs them.
///
/// Everything but the `request…` and `interrupt…` methods belongs to the thread that runs it.
package final class X86Core: @unchecked Sendable {  // see above
    let state: UnsafeMutablePointer<x86_cpu>
    let memory: PhysicalMemory
    // SAFETY: whoever is the environment owns this core, and runs it.
    unowned(unsafe) let environment: any X86Environment
    let blocks: BlockCache
    /// Translated code; nil when the host gives no executable memory, or nothing is to be translated.
    private(set) var translations: TranslationCache?
    /// With the lists that the newest block's translation has left. In memory of its own: it is large, and would be moved out and in with each.
    var spareTranslator: UnsafeMutablePointer<BlockTranslator>?
    var waitingBlocks = WaitingBlocks()
    /// How many blocks have translations that other processors have made.
    package internal(set) var takenOver = 0
    /// Executions after which a block of 64-bit code is translated. Before the first run.
    package var translationThreshold: UInt32 = 32
    /// Whether the supervisor's blocks are watched, too, and judged (`AccessTrial`): for tests.
    package var watchesSupervisor = false
    /// When blocks are watched and judged: usually after thousands of executions, in tests also with the first one, or without.
    package enum Trials { case usual, immediate, skipped }
    package var trials = Trials.usual
    /// Where the TLB and what is saved of others may have entries of large pages in the lower half.
    var largeRegions = LargeRegions()
    /// Since the TLB was emptied it was given entries of pages in the lower half that the tables call global, which INVLPG drops for all
    /// process-context identifiers.
    var holdsGlobalUserPages = false
    /// The instructions that the guest has. Before the first run.
    package var features = X86Features.host
    var lockStep: LockStep?
    let scratchPage: UnsafeMutableRawPointer
    /// Base caches of 32-bit code may hold something.
    var usesNarrowCaches = true
    /// See `dropBaseCaches`.
    let nowhere = UInt64.random(in: 0 ... .max) & 0x3FFF_FFFF_FFFF_F000 | 1 << 63
    /// But for global mappings.
    var filledSupervisor = FilledEntries()
    var filledGlobal = FilledEntries()
    var filledUser = FilledEntries()
    let writtenPages: WrittenPages
    var supervisorPages = ExecutedPages()
    var userPages = ExecutedPages()
    var supervisorPlaces = CodePlaces()
    var userPlaces = CodePlaces()
    /// No INVLPG has changed what code the user runs since the guest came to this address space.
    var userPlacesAreSure = true
    var savedContexts = SavedContexts()
    var savedTLBs = SavedTLBs()
    private let entryPoints = EntryPoints()
    var returns = ReturnStack()
    var supervisorJumps = JumpTable()
    var userJumps = JumpTable()
    /// In this context the kernel ran code from a page that is not global.
    var supervisorRunsPrivatePages = false
    /// Version cells of pages whose code changed: edges into them are to be unlinked. nil: too many to count, all edges are.
    private let changedPages = Mutex<[UInt]?>([])
    var breakpoints = Breakpoints()
    /// Of the instruction that runs by itself: bits of DR6.
    var breakpointHits: UInt64 = 0
    /// One instruction is to run, and nothing after it.
    var isAlone = false
    /// POPF has cleared TF, with which it began.
    var isLastStep = false
    /// The instruction has loaded SS: its traps follow the next one.
    var hasLoadedSS = false
    var internalError: String?
    /// Whether the owner should treat interrupts as waiting: set by other threads, see `interruptPending`.
    private let inGuest = Atomic<Bool>(false)
    /// A stand-in operation for accesses that belong to no instruction (event delivery).
    let systemOp: Op

    package init(memory: PhysicalMemory, environment: any X86Environment) {
        self.memory = memory
        self.environment = environment
        writtenPages = WrittenPages(pages: memory.pageCount)
        let bytes = cx_map_zeroed(UInt(X86_STATE_BYTES))
        // Wherever a jump may lead has an entry, and a small page of its own with that.
        cx_prefer_large(bytes + Int(X86_JCACHE_TABLES), UInt(2 * X86_JCACHE_BYTES))
        state = bytes.assumingMemoryBound(to: x86_cpu.self)
        scratchPage = .allocate(byteCount: 8192, alignment: 4096)
        scratchPage.initializeMemory(as: UInt8.self, repeating: 0, count: 8192)
        systemOp = .allocate(capacity: 2)
        systemOp.initialize(repeating: BlockCache.blankOperation, count: 2)
        blocks = BlockCache()
        state.pointee.operations = blocks.arena
        state.pointee.tlb_supervisor = (bytes + Int(X86_TLB_TABLES)).assumingMemoryBound(to: UInt64.self)
        state.pointee.tlb_user = (bytes + Int(X86_TLB_TABLES) + Int(X86_TLB_BYTES)).assumingMemoryBound(to: UInt64.self)
        supervisorJumps.places = (bytes + Int(X86_JCACHE_TABLES)).assumingMemoryBound(to: x86_jump.self)
        userJumps.places = (bytes + Int(X86_JCACHE_TABLES) + Int(X86_JCACHE_BYTES)).assumingMemoryBound(to: x86_jump.self)
        makeTables()
        state.pointee.core = Unmanaged.passUnretained(self).toOpaque()
        state.pointee.tsc_scale = 1 << 32
        reset()
        translations = TranslationCache(
            state: state, empty: (nowhere, UInt64(UInt(bitPattern: scratchPage)) &- nowhere), sharing: memory.translations)
        returns.prepare(state, empty: translations?.shared.returnWithoutCall ?? 0, unknown: translations?.shared.returnToUnknown ?? 0)
        memory.register(self)
    }
    deinit {
        memory.unregister(self)
        spareTranslator?.deinitialize(count: 1)
        spareTranslator?.deallocate()
        cx_unmap(state, UInt(X86_STATE_BYTES))
        systemOp.deallocate()
        scratchPage.deallocate()
        filledSupervisor.deallocate()
        filledGlobal.deallocate()
        filledUser.deallocate()
        writtenPages.deallocate()
        supervisorPages.deallocate()
        userPages.deallocate()
        supervisorPlaces.deallocate()
        userPlaces.deallocate()
        savedContexts.deallocate()
        savedTLBs.deallocate()
        largeRegions.deallocate()
        entryPoints.deallocate()
        returns.deallocate()
    }

    /// Whether SYSCALL enters the kernel from compatibility mode (AMD APM vol. 3), too.
    package var hasCompatibilitySyscall = false

    /// The time stamp counter was `start` when CLOCK_MONOTONIC was `origin` nanoseconds, and counts `scale` / 2^32 ticks a
    /// nanosecond. Only while it does not run; 1 GHz since the host's start until then.
    package func setTimeStamp(origin: UInt64, start: UInt64, scale: UInt64) {
        state.pointee.tsc_origin = origin
        state.pointee.tsc_start = start
        state.pointee.tsc_scale = scale
    }
    var timeStampCounter: UInt64 { X86.timeStampCounter(state) }

    // MARK: calls from other threads

    /// An interrupt may be deliverable: look at the next block boundary.
    package func interruptPending() {
        _ = cx_exchange32(latchCell, 1)
        setPending(Pending.interrupt)
    }
    private func setPending(_ bits: UInt32) {
        cx_or32(pendingCell, bits)
        cx_store64(pollCell, 1)
    }
    private var latchCell: UnsafeMutablePointer<UInt32> {
        // SAFETY: as `pendingCell`.
        UnsafeMutableRawPointer(state).advanced(by: Int(X86_INTERRUPT_LATCH_OFFSET)).assumingMemoryBound(to: UInt32.self)
    }
    private var pollCell: UnsafeMutablePointer<UInt64> {
        // SAFETY: as `pendingCell`.
        UnsafeMutableRawPointer(state).advanced(by: Int(X86_POLL_OFFSET)).assumingMemoryBound(to: UInt64.self)
    }
    /// The code of a page changed: translated code must not go there directly any more. Any thread.
    func requestUnlink(_ versionCell: UInt) {
        changedPages.withLock { pages in
            // A core that does not run collects what the others change: a guest must not make that grow.
            if let known = pages, known.count >= 64 { pages = nil } else { pages?.append(versionCell) }
        }
        setPending(Pending.unlink)
    }
    /// See `Pending.hold`.
    func holdBlocks() { cx_or32(pendingCell, Pending.hold) }
    private func serveUnlink() {
        cx_and32(pendingCell, ~Pending.unlink)
        let changed = changedPages.withLock { pages in
            defer { pages = [] }
            return pages
        }
        guard let changed else { return translations?.forgetChanged() ?? () }
        for page in changed { translations?.forget(page: Int(bitPattern: page)) }
    }
    /// Makes `run` return soon with `.cancelled`.
    package func requestExit() { setPending(Pending.cancel) }

    func requestWriteTagFlush(from other: X86Core) {
        setPending(Pending.flushWriteTags)
        var spins = 0
        while inGuest.load(ordering: .sequentiallyConsistent),
            atomicLoad(pendingCell) & Pending.flushWriteTags != 0
        {
            // Two cores may wait for each other: serve our own request meanwhile.
            if atomicLoad(other.pendingCell) & Pending.flushWriteTags != 0 { other.serveWriteTagFlush() }
            spins += 1
            if spins > 100 { cx_yield() } else { cx_pause() }
        }
    }
    private func serveWriteTagFlush() {
        dropAllWriteTags()
        cx_and32(pendingCell, ~Pending.flushWriteTags)
    }
    private var pendingCell: UnsafeMutablePointer<UInt32> {
        // SAFETY: a field of state, which lives as long as self.
        UnsafeMutableRawPointer(state).advanced(by: Int(X86_PENDING_OFFSET)).assumingMemoryBound(to: UInt32.self)
    }
    private func atomicLoad(_ p: UnsafeMutablePointer<UInt32>) -> UInt32 { cx_load32(p) }

    /// Interrupts were allowed again: what was latched meanwhile counts now.
    func interruptsEnabled() {
        if atomicLoad(latchCell) != 0 { setPending(Pending.interrupt) }
    }

    // MARK: running

    /// Runs the guest on this thread until something ends it.
    package func run() -> X86Exit {
        let s = state
        inGuest.store(true, ordering: .sequentiallyConsistent)
        loadFloatingPoint()
        defer {
            saveFloatingPoint()
            inGuest.store(false, ordering: .sequentiallyConsistent)
        }
        while true {
            if s.pointee.pending != 0 || s.pointee.poll != 0, let exit = outside({ servePending() }) { return exit }
            s.pointee.exit_reason = ExitReason.next
            // What sets TF is not followed by the trap: that comes behind what runs with it. SDM vol. 3 § 18.3.1.4.
            let isStep = s.pointee.rflags & EFlags.tf != 0
            if isStep { isAlone = true }
            guard let first = knownBlock() ?? outside({ findBlock() }) else {
                if let exit = leave() { return exit }
                continue
            }
            if let lockStep {
                lockStep.prepare(self)
                if stepLocked(first, lockStep) {
                    if s.pointee.exit_reason != ExitReason.next, let exit = leave() { return exit }
                    continue
                }
            }
            let isHeld = isAlone
            hasLoadedSS = false
            let isResumed = s.pointee.rflags & EFlags.rf != 0
            if isHeld { holdBlocks() }
            #if DEBUG
                var op: Op? = first
                while let current = op { op = Op(bitPattern: UInt(current.pointee.fn(current, s))) }
            #else
                _ = first.pointee.fn(first, s)
            #endif
            if isHeld {
                isAlone = false
                if isResumed { s.pointee.rflags &= ~EFlags.rf }
                if lockStep == nil { cx_and32(pendingCell, ~Pending.hold) }
            }
            if s.pointee.exit_reason != ExitReason.next {
                traceExit?(s.pointee.rip, s.pointee.exit_reason)
                if let exit = leave() { return exit }
            }
            // An exception's handler runs without TF.
            if isHeld, s.pointee.exit_reason == ExitReason.next {
                endAlone(isStep: isStep && (s.pointee.rflags & EFlags.tf != 0 || isLastStep))
                isLastStep = false
            }
        }
    }

    private func servePending() -> X86Exit? {
        let s = state
        cx_store64(pollCell, 0)
        // What stays pending is to be noticed in translated loops, too.
        defer { if atomicLoad(pendingCell) != 0 { cx_store64(pollCell, 1) } }
        let pending = atomicLoad(pendingCell)
        if pending & Pending.unlink != 0 { serveUnlink() }
        if pending & Pending.flushWriteTags != 0 { serveWriteTagFlush() }
        if pending & Pending.cancel != 0 {
            cx_and32(pendingCell, ~Pending.cancel)
            return .cancelled
        }
        if pending & Pending.interrupt != 0 {
            if s.pointee.inhibit != 0 {
                s.pointee.inhibit = 0  // one more block: the shadow of STI or MOV SS
                return nil
            }
            cx_and32(pendingCell, ~Pending.interrupt)
            guard s.pointee.rflags & EFlags.interruptEnable != 0 else { return nil }
            _ = cx_exchange32(latchCell, 0)
            if let vector = environment.acknowledgeInterrupt() {
                deliver(vector: vector, error: nil, software: false, rip: s.pointee.rip)
                if s.pointee.exit_reason == ExitReason.shutdown { return .shutdown }
            }
        }
        return nil
    }

    /// Deals with a reason to leave the handlers; nil to go on.
    private func leave() -> X86Exit? {
        let s = state
        switch s.pointee.exit_reason {
        case ExitReason.fault:
            breakpointHits = 0
            let rip = s.pointee.fault_op.map { instructionRIP($0, s) } ?? s.pointee.rip
            let error = s.pointee.fault_has_error != 0 ? s.pointee.fault_error : nil
            trace?(s.pointee.fault_vector, rip, error ?? 0)
            deliver(vector: s.pointee.fault_vector, error: error, software: false, rip: rip)
            return s.pointee.exit_reason == ExitReason.shutdown ? .shutdown : nil
        case ExitReason.again:
            if let op = s.pointee.fault_op { s.pointee.rip = instructionRIP(op, s) }
            s.pointee.exit_reason = ExitReason.next
            isAlone = true
            return nil
        case ExitReason.halt:
            s.pointee.exit_reason = ExitReason.next
            return .halt
        case ExitReason.shutdown: return .shutdown
        case ExitReason.internalError: return .internalError(internalError ?? "unknown")
        default: return nil
        }
    }

    /// Called with vector, rip and error code for each exception: a debugging aid.
    package var trace: ((UInt8, UInt64, UInt64) -> Void)?
    /// With address, physical address and number of operations of each block that is decoded.
    package var traceBlock: ((UInt64, UInt64, Int) -> Void)?
    /// With address and reason whenever handlers give the run loop the word for one.
    package var traceExit: ((UInt64, UInt32) -> Void)?
    /// Before a block is translated with nil, and after it with how many instructions that were.
    package var traceCost: ((_ instructions: Int?, _ codeBytes: Int) -> Void)?
    /// With host address, size and guest address of each block that is translated.
    package var traceTranslation: ((UInt, Int, UInt64) -> Void)?
    package var faultAddress: UInt64 { state.pointee.cr2 }
    package var privilege: UInt8 { state.pointee.cpl }

    // MARK: finding blocks

    private var linearRIP: UInt64 {
        let s = state
        return s.pointee.mode == 2 ? s.pointee.rip : (s.pointee.rip &+ s.pointee.segbase.1) & 0xFFFF_FFFF
    }
    /// The jump cache's answer for the current RIP.
    private func knownBlock() -> Op? {
        let s = state
        let rip = s.pointee.rip
        s.pointee.block_base = linearRIP & ~4095
        guard !isAlone, let first = notedBlock(s, rip), isCurrent(first) else { return nil }
        return first
    }
    private func findBlock() -> Op? {
        let s = state
        let rip = s.pointee.rip
        let linear = linearRIP
        if breakpoints.watchesCode, breakpoints.watchesPage(linear, ofCode: true) {
            if stopsBefore(linear) { return nil }
            isAlone = true
        }
        let stepping = isAlone
        systemOp.pointee.off = UInt16(linear & 4095)  // a fetch fault shows this address
        guard s.pointee.mode != 2 || isCanonical(linear) else {
            _ = raise(systemOp, s, Vector.generalProtection, 0)
            return nil
        }
        let user = s.pointee.cpl == 3
        makeRoom(user: user)
        let gpa: UInt64
        let isFirst: Bool
        let entry = tlbEntry(s, linear)
        if entry.readTag == linear & ~4095, entry.gpa & TLBBit.executable != 0 {
            gpa = entry.gpa & ~4095 | linear & 4095
            isFirst = noteExecution(linear, gpa, global: entry.gpa & TLBBit.global != 0, user: user)
        } else {
            switch translate(linear, .fetch, user: user) {
            case .fault(let code): return fetchFault(linear, code)
            case .ok(let translation):
                gpa = translation.gpa
                isFirst = noteExecution(linear, gpa, global: translation.global, user: user)
                enter(translation, linear)
            }
        }
        let key = BlockCache.key(gpa, user: user, CodeKind(s))
        if !stepping, let known = blocks.find(key) {
            noteFound(known, rip, isFirst: isFirst)
            return known
        }
        guard let page = memory.page(gpa), let host = memory.host(gpa) else {
            internalError = "the guest executes at physical address 0x\(String(gpa, radix: 16)), which is not RAM"
            s.pointee.exit_reason = ExitReason.internalError
            return nil
        }
        let inPage = 4096 - Int(gpa & 4095)
        // Mark before reading, so that a write in between is seen.
        let version = memory.markCode(page, gpa, min(inPage, BlockCache.maximumBytes), by: self)
        var builder = BlockBuilder(
            cache: blocks, code: CodeKind(s), features: features, threshold: translations == nil ? 0 : translationThreshold,
            untranslated: translations?.shared.untranslated ?? 0)
        let one = (memory.versionCell(page), version)
        let bytes = UnsafeBufferPointer(start: UnsafePointer(host.assumingMemoryBound(to: UInt8.self)), count: inPage)
        let isWhole = lockStep == nil || !CodeKind(s).isTranslated
        let limit = isWhole ? BlockCache.maximumOperations : max(translatedExtent(bytes, gpa)?.count ?? BlockCache.maximumOperations, 1)
        if let first = builder.build(bytes, gpa: gpa, one: one, limit: stepping ? 1 : limit) {
            traceBlock?(rip, gpa, blocks.lastCount)
            if !stepping {
                blocks.insert(key, first)
                takeOver(first, BlockPlace(s))
                noteBlock(rip, first)
            }
            return first
        }
        return crossingBlock(linear, gpa, bytes, one: one, user: user, stepping: stepping)
    }

    /// The block of a single instruction that goes on in the next page.
    private func crossingBlock(
        _ linear: UInt64, _ gpa0: UInt64, _ bytes: UnsafeBufferPointer<UInt8>, one: (UInt, UInt32), user: Bool, stepping: Bool
    ) -> Op? {
        let s = state
        let second = linear &+ UInt64(bytes.count)
        let gpa: UInt64
        switch translate(second, .fetch, user: user) {
        case .fault(let code): return fetchFault(second, code)
        case .ok(let translation):
            gpa = translation.gpa
            noteExecution(second, gpa, global: translation.global, user: user)
        }
        guard let page = memory.page(gpa), let host = memory.host(gpa) else {
            internalError = "the guest executes at physical address 0x\(String(gpa, radix: 16)), which is not RAM"
            s.pointee.exit_reason = ExitReason.internalError
            return nil
        }
        // Processes that run the same program have the same two pages there.
        let code = CodeKind(s)
        let key = stepping || !code.isTranslated ? nil : BlockCache.key(gpa0, user: user, code, isCrossing: true)
        if let key, let known = blocks.find(key), (known - 1).pointee.disp == Int64(Int(bitPattern: memory.versionCell(page))) {
            noteBlock(s.pointee.rip, known)
            return known
        }
        let two = (memory.versionCell(page), memory.markCode(page, gpa, 16, by: self))
        var copy = Array(bytes.prefix(15))
        copy += UnsafeBufferPointer(start: UnsafePointer(host.assumingMemoryBound(to: UInt8.self)), count: 15)
        var builder = BlockBuilder(
            cache: blocks, code: CodeKind(s), features: features, threshold: translations == nil ? 0 : translationThreshold,
            untranslated: translations?.shared.untranslated ?? 0)
        let first = copy.withUnsafeBufferPointer { bytes in
            let first = builder.build(bytes, gpa: gpa0, one: one, two: two, limit: 1)
            if let first, !stepping, code.isTranslated { translateCrossing(first, gpa0, bytes, one, two) }
            return first
        }
        if let first, !stepping {
            if let key { blocks.insert(key, first) }
            noteBlock(s.pointee.rip, first)
        }
        return first
    }

    /// A block that was decoded before, perhaps in another address space, is run at an address.
    ///
    /// - Parameter isFirst: of its page.
    private func noteFound(_ first: Op, _ rip: UInt64, isFirst: Bool) {
        let header = first - 1
        if state.pointee.cpl == 3, CodeKind(state).isTranslated, header.pointee.reg == 0 {
            if isFirst {
                entryPoints.forEach(in: UInt(header.pointee.imm), version: header.pointee.extra) { first, offset in
                    if (first - 1).pointee.size == header.pointee.size { userJumps.insert(rip & ~4095 | UInt64(offset), first) }
                }
            }
            entryPoints.note(first)
        }
        noteBlock(rip, first)
    }
    /// Before anything is noted of a block: what is noted must not be forgotten before the block is in the jump cache.
    private func makeRoom(user: Bool) {
        if blocks.isFull || translations?.isFull == true {
            flushBlocks()
        } else if user ? userPlaces.isFull : supervisorPlaces.isFull {
            newContext()
        }
    }
    /// Code of a page is run at an address. True when it is the first of that page in this context.
    @discardableResult private func noteExecution(_ linear: UInt64, _ gpa: UInt64, global: Bool, user: Bool) -> Bool {
        var news = CodePlaces.News.none
        if let page = memory.page(gpa) {
            let cell = memory.versionCell(page)
            news = user ? userPlaces.note(cell, at: linear & ~4095) : supervisorPlaces.note(cell, at: linear & ~4095)
            switch news {
            case .none: break
            case .first: if user { keepEdges(cell, at: linear & ~4095) }
            case .second: translations?.unlinkCrossing(user: user)
            }
        }
        if user {
            userPages.insert(linear)
        } else {
            supervisorPages.insert(linear)
            if !global { supervisorRunsPrivatePages = true }
        }
        return news == .first
    }
    private func fetchFault(_ linear: UInt64, _ code: UInt64) -> Op? {
        state.pointee.cr2 = linear
        _ = raise(systemOp, state, Vector.pageFault, code)
        return nil
    }

    /// Memory that decoded and translated code takes. Only between runs.
    package var codeBytes: Int { blocks.bytes + (translations?.bytes ?? 0) }
    /// Forgets decoded and translated code and what the TLB knows, and gives their memory back. Only between runs.
    package func releaseCode() {
        flushBlocks()
        releaseTLB()
    }

    private func flushBlocks() {
        blocks.flush()
        waitingBlocks.removeAll()
        savedContexts.removeAll()
        entryPoints.removeAll()
        translations?.flush()
        newContext()
    }
}
