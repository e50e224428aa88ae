import CX86

enum TranslatorHandlers {
    /// Stands first in each block of 64-bit code: counts down in `extra`, then has the block translated (`WaitingBlocks`). `disp` holds the
    /// block's guest-physical address, `imm` where translated code goes that wants this block.
    static let count: Handler = { op, s in
        let left = op.pointee.extra &- 1
        op.pointee.extra = left
        if left == 0, translatedNow(op, s) {
            // Through the run loop, which finds the block anew: nothing is left on the stack.
            s.pointee.rip = instructionRIP(op, s)
            return 0
        }
        return next(op, s)
    }
    /// In place of `count` where the block's start cannot be translated.
    static let skip: Handler = { op, s in next(op, s) }
    /// A block's operands have been watched long enough.
    static let judge: Handler = { op, s in
        judgeNow(op, s)
    }
    /// An operand's base cache has failed for the last time, in the block that `t1_target` names.
    static let watchAgain: Handler = { op, s in
        watchNow(s)
        return op.pointee.fn(op, s)
    }
    /// A window without fallback has failed, in the block that `t1_target` names.
    static let windowFailed: Handler = { op, s in
        noteFailedWindow(s)
        return op.pointee.fn(op, s)
    }
    /// A translated RET has taken an address from the stack that is none.
    static let returnFault: Handler = { _, s in
        setGPR(s, GPR.rsp, gpr(s, GPR.rsp) &- UInt64(s.pointee.return_offset >> 12))
        return raiseAtReturn(s)
    }
    /// An edge of translated code that is not linked.
    static let linkEdge: Handler = { op, s in
        let address = resolveEdge(s)
        guard let first = Op(bitPattern: UInt(address)) else { return 0 }
        return first.pointee.fn(first, s)
    }
}

@inline(never) private func raiseAtReturn(_ s: CPU) -> Next {
    let op = core(s).systemOp
    op.pointee.off = UInt16(s.pointee.return_offset & 4095)
    return raise(op, s, Vector.generalProtection, 0)
}
@inline(never) private func translatedNow(_ op: Op, _ s: CPU) -> Bool { outside { core(s).translateSoon(op) } }
@inline(never) private func judgeNow(_ op: Op, _ s: CPU) -> Next {
    outside { core(s).endTrial(op) }
    s.pointee.rip = instructionRIP(op, s)
    return 0
}
@inline(never) private func watchNow(_ s: CPU) {
    if let first = namedBlock(s) { outside { core(s).watchAgain(first) } }
}
@inline(never) private func noteFailedWindow(_ s: CPU) {
    guard let first = namedBlock(s), !first.needsFallbacks else { return }
    outside { core(s).noteFailedWindow(first) }
}
/// See `BlockTranslator.nameBlock`.
private func namedBlock(_ s: CPU) -> Op? { s.pointee.operations.map { $0 + Int(s.pointee.t1_target) / MemoryLayout<x86_op>.stride } }
/// The block that an edge leads to, linked when it is translated; 0 when the run loop has to find it.
@inline(never) private func resolveEdge(_ s: CPU) -> UInt64 {
    // The edge says where in the page it leads.
    s.pointee.rip = s.pointee.block_base &+ (s.pointee.t1_edge & 4095)
    guard s.pointee.pending == 0 else { return 0 }
    guard let first = notedBlock(s, s.pointee.rip), isCurrent(first) else { return 0 }
    if first.pointee.aux != 0 { outside { core(s).link(Int(s.pointee.t1_edge >> 12), to: first) } }
    return UInt64(UInt(bitPattern: first))
}

extension X86Core {
    /// A block has run often enough to be translated. False when it is to wait for others.
    func translateSoon(_ first: Op) -> Bool {
        let block = WaitingBlocks.Block(first: first, place: BlockPlace(state))
        if translationThreshold == 1 {
            translateBlock(first, block.place)
            return true
        }
        if waitingBlocks.waits(block) { return false }
        for block in waitingBlocks.list { translateBlock(block.first, block.place) }
        waitingBlocks.removeAll()
        return true
    }
    private func translateBlock(_ first: Op, _ place: BlockPlace) {
        guard let translations, !translations.isFull, first.pointee.aux == 0, isCurrent(first) else { return }
        let gpa = UInt64(bitPattern: first.pointee.disp)
        guard let host = memory.host(gpa) else { return }
        let bytes = UnsafeBufferPointer(start: UnsafePointer(host.assumingMemoryBound(to: UInt8.self)), count: 4096 - Int(gpa & 4095))
        let header = first - 1
        if takeOver(first, place) { return }
        traceCost?(nil, translations.bytes)
        (first.timesWatched, first.failedWindows) = (1, 0)
        // Programs only: the kernel's blocks are many, and few of them hot.
        let isWatched = lockStep == nil && (place.isUser || watchesSupervisor)
        let version = (UInt(header.pointee.imm), header.pointee.extra)
        func translated() -> Int { translate(bytes, first, gpa, place, version, phase: isWatched ? firstPhase(gpa) : .none) }
        let count = sharingKey(first, gpa, place).map { translations.offer(first, $0, translated) } ?? translated()
        if first.pointee.aux == 1 { translations.note(first, page: Int(header.pointee.imm)) }
        traceCost?(count, translations.bytes)
        traceTranslation?(translations.latest.address, translations.latest.bytes, place.page &+ UInt64(first.pointee.off))
    }
    /// Whether the block has a translation now that another processor has made.
    @discardableResult func takeOver(_ first: Op, _ place: BlockPlace) -> Bool {
        guard let translations, !translations.isFull, first.pointee.aux == 0 else { return false }
        guard let key = sharingKey(first, UInt64(bitPattern: first.pointee.disp), place), translations.takeOver(first, key) else { return false }
        if first.pointee.aux == 1 { translations.note(first, page: Int((first - 1).pointee.imm)) }
        takenOver += 1
        traceTranslation?(translations.latest.address, translations.latest.bytes, place.page &+ UInt64(first.pointee.off))
        return true
    }
    /// By what others find the translation of a block in one page; nil while there is nobody to share it with.
    private func sharingKey(_ first: Op, _ gpa: UInt64, _ place: BlockPlace) -> UInt64? {
        guard memory.translations.isShared, lockStep == nil, (first - 1).pointee.reg == 0 else { return nil }
        return BlockCache.key(gpa, user: place.isUser, place.kind)
    }
    /// A block of one instruction that goes on in the next page: translated when it is made, while its bytes are together.
    func translateCrossing(
        _ first: Op, _ gpa: UInt64, _ bytes: UnsafeBufferPointer<UInt8>, _ version: (cell: UInt, version: UInt32), _ next: (cell: UInt, version: UInt32)
    ) {
        guard let translations, !translations.isFull, translationThreshold > 0 else { return }
        first.pointee.aux = 0
        _ = translate(bytes, first, gpa, BlockPlace(state), version, next, phase: .none)
    }
    private func firstPhase(_ gpa: UInt64) -> AccessTrial.Phase {
        // Operands of all kinds, by chance.
        trials == .skipped ? .judged(UInt32(truncatingIfNeeded: (gpa &* 0x9E37_79B9) >> 12)) : .counted(trialDelay)
    }
    /// How often a block runs before its operands are watched: two more translations take as long as some thousand executions gain.
    private var trialDelay: Int16 {
        if trials == .immediate { return 0 }
        return translationThreshold == 1 ? 16 : 16384
    }
    /// How long a block's operands are watched; shortly where everything is translated at once, for tests.
    private var trialLength: Int16 {
        if trials == .immediate { return 0 }
        return translationThreshold == 1 ? 2 : 128
    }
    func endTrial(_ first: Op) {
        guard let translations, first.pointee.aux == 1 else { return }
        let sites = first.watchedOperands
        guard sites > 0 else {
            // Were it not translated again now, it would ask with each turn.
            translations.counter(first.counters).pointee = .max
            return translateAgain(first, first.hasNothingToWatch ? .judged(0) : .trial(trialLength))
        }
        let counters = translations.trialCounters(first.counters)
        let stays = AccessTrial.verdict(counters, executions: first.isOnProbation ? AccessTrial.probation : trialLength, sites: sites)
        if !first.isOnProbation, stays == 1 << UInt32(sites) &- 1 {
            first.isOnProbation = true
            (counters + 1).update(repeating: 0, count: sites)
            translations.counter(counters.pointee).pointee = AccessTrial.probation
            return
        }
        translations.counter(counters.pointee).pointee = .max
        translateAgain(first, .judged(stays))
    }
    func watchAgain(_ first: Op) {
        first.timesWatched &+= 1
        translateAgain(first, first.timesWatched > AccessTrial.most ? .judged(0) : .trial(trialLength))
    }
    func noteFailedWindow(_ first: Op) {
        first.failedWindows = trials == .immediate ? AccessTrial.mostFailedWindows : first.failedWindows + 1
        guard first.needsFallbacks, let translations, first.pointee.aux == 1 else { return }
        guard first.counters != 0 else { return translateAgain(first, .none) }
        translateAgain(first, first.watchedOperands > 0 ? .trial(trialLength) : .counted(max(translations.counter(first.counters).pointee, 0)))
    }
    /// With what is known of its operands now; edges that lead to it lead to the new code.
    private func translateAgain(_ first: Op, _ phase: AccessTrial.Phase) {
        let header = first - 1
        guard let translations, !translations.isFull, first.pointee.aux == 1, header.pointee.reg == 0, isCurrent(first),
            let page = memory.address(ofCell: UInt(header.pointee.imm)), let host = memory.host(page)
        else { return }
        let start = Int(first.pointee.off)
        let bytes = UnsafeBufferPointer(start: UnsafePointer(host.assumingMemoryBound(to: UInt8.self)) + start, count: 4096 - start)
        let old = first.ways
        traceCost?(nil, translations.bytes)
        let count = translate(bytes, first, page + UInt64(start), BlockPlace(state), (UInt(header.pointee.imm), header.pointee.extra), phase: phase)
        traceCost?(count, translations.bytes)
        traceTranslation?(translations.latest.address, translations.latest.bytes, state.pointee.block_base &+ UInt64(start))
        let new = first.ways
        translations.redirect(old.asking, to: new.asking)
        renewBlock(state.pointee.block_base &+ UInt64(start), first)
        translations.retarget(page: Int(header.pointee.imm), from: old, to: new)
    }
    /// Returns how many instructions were translated.
    private func translate(
        _ bytes: UnsafeBufferPointer<UInt8>, _ first: Op, _ gpa: UInt64, _ place: BlockPlace, _ version: (cell: UInt, version: UInt32),
        _ next: (cell: UInt, version: UInt32)? = nil, phase: AccessTrial.Phase
    ) -> Int {
        guard let translator = spareTranslator ?? makeTranslator(first) else { return 0 }
        translator.pointee.translate(bytes, first: first, gpa: gpa, place, version: version, next: next, phase: phase) {
            blocks.find(BlockCache.key($0, user: place.isUser, place.kind))
        }
        return translator.pointee.instructionCount
    }
    private func makeTranslator(_ first: Op) -> UnsafeMutablePointer<BlockTranslator>? {
        guard let translations else { return nil }
        let translator = UnsafeMutablePointer<BlockTranslator>.allocate(capacity: 1)
        translator.initialize(to: BlockTranslator(cache: translations, features: features, first: first, repeatsLoops: lockStep == nil))
        spareTranslator = translator
        return translator
    }
    func link(_ edge: Int, to first: Op) {
        guard let translations, edge < translations.edgeCount else { return }
        let header = first - 1
        let (kind, crossing) = (translations.edges[edge].kind, translations.edges[edge].crossing)
        if let crossing, !mayLink(crossing, header) {
            // In another address space there may be nothing against it.
            return translations.setPatience(edge, 64 * TranslationCache.patience)
        }
        // The target's header watches its page's version; the other end is as it was when it was translated, or never runs again.
        let (ways, page) = (first.ways, Int(header.pointee.imm))
        guard first.pointee.aux == 1 else {
            if header.pointee.reg == 0, !translations.isFull { translations.link(edge, to: translations.makeWayOut(first, kind), asks: false, page: page) }
            return
        }
        if header.pointee.reg != 0 {
            // Nothing unlinks the edge when the second page changes: to the version check.
            guard crossing != nil, !translations.isFull else { return }
            let entry = kind == .memory || !ways.needFlags ? ways.asking : translations.makeWaySavingFlags(to: ways.asking)
            translations.link(edge, to: entry, asks: false, page: page, leadsOn: true)
        } else if translations.mayLeadToAsking(edge), kind == .memory || !ways.needFlags {
            translations.link(edge, to: ways.asking, asks: true, page: page)
        } else {
            // Behind the version check: a change unlinks the edge.
            translations.link(edge, to: kind == .flags ? ways.flags : ways.memory, asks: false, page: page)
        }
    }
    /// Whether both ends of an edge are in pages that this address space has in one place only, where they are now. (So what lies behind
    /// the target's is one page, too: where it goes on.)
    private func mayLink(_ crossing: TranslationCache.Crossing, _ header: Op) -> Bool {
        let target = state.pointee.block_base
        let places = crossing.isUser ? userPlaces : supervisorPlaces
        return places.place(of: UInt(header.pointee.imm)) == target && places.place(of: crossing.source) == target &- UInt64(bitPattern: crossing.distance)
    }
}

/// Where a translated block can be entered: with flags in EFLAGS; with flags in memory; the same, asking whether somebody wants something.
struct Ways {
    let flags: Int
    let memory: Int
    let asking: Int
    var needFlags: Bool { flags != memory }
}
extension UnsafeMutablePointer<x86_op> {
    var ways: Ways { Ways(flags: Int(pointee.disp), memory: Int(pointee.imm) + Int(pointee.scale), asking: Int(pointee.imm)) }
}
