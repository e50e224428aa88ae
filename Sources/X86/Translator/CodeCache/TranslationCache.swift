import CX86

/// Translated code of one core: a buffer mapped twice, the stubs that all blocks share, and the edges between blocks.
///
/// Edges within a page are jumps that name their targets, and are rewritten when they are linked and unlinked: no other thread runs this
/// code, and this one does not while it writes. So are those of judged blocks to other pages. Others' are unlinked all together when the
/// address space changes, and go through cells, which lie with other data in the first part of the buffer. So do backward edges with
/// flags in EFLAGS.
///
/// What is rewritten through one mapping and runs through the other is not followed by a serializing instruction: processors with 64 bits
/// look for such writes by physical address, and a few hundred instructions lie between. (With IRET a guest under QEMU's emulation
/// did not boot in five minutes; CPUID leaves a virtual machine, 5 µs each time.)
final class TranslationCache {
    /// How an edge hands over the flags: in EFLAGS or in the state.
    enum EdgeKind { case flags, memory }
    /// What an edge's target is written to.
    enum Way {
        /// The jump or call that ends here: an edge that need not ask whether somebody wants something, or whose target does.
        case direct(end: CodeOffset)
        /// A pair of cells, the second for when somebody wants something. While the target asks that itself, and needs no flags, a jump
        /// that ends here goes there instead.
        case polled(slot: CodeOffset, room: CodeOffset)
        /// The same without that jump: of an edge to another page.
        case cells(slot: CodeOffset)
    }
    struct Edge {
        var way: Way
        var kind: EdgeKind
        var isBackward: Bool
        /// Where it leads while it is not linked.
        var stub: CodeOffset
        /// Of an edge that leads to another page.
        var crossing: Crossing?
        /// Whose list of linked edges it is in; 0: none.
        var page = 0
        /// The same of edges to other pages.
        var crossingPage = 0
    }
    /// A place in the buffer.
    typealias CodeOffset = Int32
    /// What an edge to another page stands on: that both pages are where they were when it was linked.
    struct Crossing {
        /// The version cell of the page that the edge lies in; it names the page.
        var source: UInt
        /// From that page's address to the target's.
        var distance: Int64
        var isUser: Bool
        /// How often it may still go through the jump cache before it asks to be linked: a counter.
        var count: CodeOffset
    }
    /// How often such an edge goes through the jump cache before it is linked, for each address space anew: linking costs as much as
    /// some hundred questions to the jump cache.
    static let patience: Int16 = 64
    static let size = 110 << 20
    private static let slotBytes = 8 << 20
    /// Behind the slots counters of 16 bits: of blocks' executions, close together as they are written all the time, and of edges.
    private static let counterBytes = 1 << 20
    static let codeStart = slotBytes + 2 * counterBytes
    /// More than any block takes in either half: 48 instructions five times over (four fallbacks), each with a slow path that stores
    /// sixteen vector registers.
    static let reserve = 256 << 10

    let writable: UnsafeMutableRawPointer
    let executable: UnsafeMutableRawPointer
    private let flagTable: UnsafeMutablePointer<UInt64>
    /// Ends of what runs mostly and of what runs seldom, which fills the second half: apart, so that the host's instruction
    /// cache holds the former only.
    var used = 0
    var coldUsed = coldStart
    /// Where the code that all blocks share ends.
    private(set) var start = 0
    /// Between the two, by itself: programs' blocks that have been judged, which is to say those that run most. Spread over everything
    /// that ever ran, they would need several times as many entries of the host's TLB.
    private var hotUsed = hotStart
    private static let hotStart = 46 << 20
    private static let coldStart = 54 << 20
    /// Where the translation that was committed last lies.
    private(set) var latest: (address: UInt, bytes: Int) = (0, 0)
    private var largePages = LargePages()
    var slots = 0
    var counters = (executions: 0, crossings: 0)
    /// In pages of their own, which go back to the host with the code.
    let edges: UnsafeMutablePointer<Edge>
    /// Where each leads: apart, as many are looked through.
    private let targets: UnsafeMutablePointer<CodeOffset>
    private(set) var edgeCount = 0
    private static let mostEdges = 1 << 20
    private static let edgeBytes = UInt(mostEdges * (MemoryLayout<Edge>.stride + MemoryLayout<CodeOffset>.stride))
    /// Linked edges by the page that they lead to.
    private var linked: [Int: [Int]] = [:]
    /// Translated blocks by their page. Their entries do not look at its version: blocks are taken out of use when it changes.
    private var blocks: [Int: [UnsafeMutablePointer<x86_op>]] = [:]
    /// The supervisor's linked edges to other pages.
    private var supervisorCrossing: [Int] = []
    /// The user's.
    private var userCrossing = UserCrossings()

    /// Whose addresses blocks name.
    private(set) var shared = SharedCode()
    private(set) var operandCaches: OperandCaches
    /// What other processors have translated, and which of them this one is.
    let others: SharedTranslations
    private(set) var member: Int32 = 0
    private let operations: UnsafeMutablePointer<x86_op>?
    /// Of the block that is being translated, if others may want it.
    let fixups: UnsafeMutablePointer<FixupLog>
    var isOffering = false
    /// Of the image that is being made.
    var words: [UInt32] = []

    /// - Parameter empty: what base caches hold that hold nothing.
    init?(state: UnsafeMutablePointer<x86_cpu>, empty: (tag: UInt64, way: UInt64), sharing others: SharedTranslations) {
        var rw: UnsafeMutableRawPointer?
        var rx: UnsafeMutableRawPointer?
        guard cx_code_buffer(UInt(Self.size), &rw, &rx) == 0, let rw, let rx else { return nil }
        writable = rw
        executable = rx
        self.others = others
        operations = state.pointee.operations
        fixups = .allocate(capacity: 1)
        fixups.initialize(to: FixupLog())
        let memory = cx_map_zeroed(Self.edgeBytes)
        edges = memory.bindMemory(to: Edge.self, capacity: Self.mostEdges)
        targets = (memory + Self.mostEdges * MemoryLayout<Edge>.stride).bindMemory(to: CodeOffset.self, capacity: Self.mostEdges)
        operandCaches = OperandCaches(most: Self.slotBytes / 16, state: state, empty: empty)
        flagTable = .allocate(capacity: 1024)
        for image in 0..<512 {
            let (flags, overflow) = (UInt64(image & 0xFF), image > 255)
            let (fres, faux) = lazyFlags(flags & 0xD5 | (overflow ? EFlags.of : 0))
            flagTable[image * 2] = fres
            flagTable[image * 2 + 1] = faux
        }
        state.pointee.flag_table = UnsafeRawPointer(flagTable)
        used = Self.codeStart
        var code = open()
        shared.make(&code)
        operandCaches.makeLookUps(&code)
        commit(code)
        start = used
        member = others.join(SharedTranslations.Member(executable: executable, writable: writable, edges: edges))
    }
    deinit {
        others.leave(member)
        fixups.pointee.deallocate()
        fixups.deallocate()
        cx_unmap(writable, UInt(Self.size))
        cx_unmap(executable, UInt(Self.size))
        cx_unmap(edges, Self.edgeBytes)
        operandCaches.deallocate()
        flagTable.deallocate()
    }

    /// Memory in use.
    var bytes: Int {
        used - Self.codeStart + hotUsed - Self.hotStart + coldUsed - Self.coldStart + slots * 16 + (counters.executions + counters.crossings) * 2
    }
    var isFull: Bool {
        used + Self.reserve > Self.hotStart || coldUsed + Self.reserve > Self.size || slots + 4096 > Self.slotBytes / 16
            || max(counters.executions, counters.crossings) + 4096 > Self.counterBytes / 2 || edgeCount + 4096 > Self.mostEdges
    }

    func flush() {
        member = others.renew(member)
        used = start
        hotUsed = Self.hotStart
        coldUsed = Self.coldStart
        slots = 0
        operandCaches.forget()
        counters = (0, 0)
        largePages = LargePages()
        // Shared code lies in the first page behind them.
        cx_discard(writable, UInt(Self.codeStart), 1)
        let kept = (start + 4095) & ~4095
        cx_discard(writable + kept, UInt(Self.size - kept), 1)
        edgeCount = 0
        cx_discard(edges, Self.edgeBytes, 0)
        linked.removeAll()
        blocks.removeAll()
        supervisorCrossing.removeAll()
        userCrossing.removeAll()
    }

    // MARK: code

    func open(hot: Bool = false) -> Assembler { assembler(at: hot && hotUsed + Self.reserve <= Self.coldStart ? hotUsed : used) }
    func openCold() -> Assembler { assembler(at: coldUsed) }
    func assembler(at offset: Int) -> Assembler {
        Assembler(
            at: (writable + offset).assumingMemoryBound(to: UInt8.self), toExecutable: executable - writable, fixups: isOffering ? fixups : nil)
    }
    func commit(_ code: Assembler) {
        let isHot = offset(code) >= Self.hotStart
        let begin = isHot ? hotUsed : used
        latest = (UInt(bitPattern: executable) + UInt(begin), end(code) - begin)
        largePages.grown(writable, executable, from: begin, to: end(code), of: isHot ? Self.hotStart : Self.codeStart)
        if isHot { hotUsed = end(code) } else { used = end(code) }
    }
    func commitCold(_ code: Assembler) {
        largePages.grown(writable, executable, from: coldUsed, to: end(code), of: Self.coldStart)
        coldUsed = end(code)
    }
    /// The same of code that was copied there.
    func grown(from old: (code: Int, cold: Int)) {
        latest = (UInt(bitPattern: executable) + UInt(old.code), used - old.code)
        largePages.grown(writable, executable, from: old.code, to: used, of: Self.codeStart)
        largePages.grown(writable, executable, from: old.cold, to: coldUsed, of: Self.coldStart)
    }
    private func offset(_ code: Assembler) -> Int { UnsafeMutableRawPointer(code.cursor) - writable }
    private func end(_ code: Assembler) -> Int { (offset(code) + 15) & ~15 }
    /// Whether a block may go on being written.
    func hasRoom(_ code: Assembler, cold: Assembler) -> Bool {
        let end = offset(code) >= Self.hotStart ? Self.coldStart : Self.hotStart
        return offset(code) < end - Self.reserve / 2 && offset(cold) < Self.size - Self.reserve / 2
    }

    // MARK: edges

    /// A pair of target addresses; the second is used when `poll` says so. Returns its executable address.
    func makeSlot() -> Int {
        defer { slots += 1 }
        return Int(bitPattern: executable) + slots * 16
    }
    /// A base cache for one operand, beside the slots. Its address.
    func makeOperandCache() -> UInt {
        defer { slots += 1 }
        let place = writable + slots * 16
        operandCaches.empty(place)
        return UInt(bitPattern: place)
    }
    /// Of a block's executions while they are counted, later of its patience.
    func makeCounter(_ value: Int16) -> CodeOffset {
        defer { counters.executions += 1 }
        let offset = executionsOffset(counters.executions)
        counter(offset).pointee = value
        return offset
    }
    func executionsOffset(_ number: Int) -> CodeOffset { CodeOffset(truncatingIfNeeded: Self.slotBytes + number * 2) }
    func crossingsOffset(_ number: Int) -> CodeOffset { CodeOffset(truncatingIfNeeded: Self.slotBytes + Self.counterBytes + number * 2) }
    func makeCrossingCounter() -> CodeOffset {
        defer { counters.crossings += 1 }
        return crossingsOffset(counters.crossings)
    }
    func counter(_ offset: CodeOffset) -> UnsafeMutablePointer<Int16> { (writable + Int(offset)).assumingMemoryBound(to: Int16.self) }
    /// A trial's counters, one for each operand, beside the slots; before them the offset of the block's own.
    func makeTrialCounters(_ sites: Int, of counter: CodeOffset) -> CodeOffset {
        defer { slots += (1 + sites + 3) / 4 }
        let offset = CodeOffset(truncatingIfNeeded: slots * 16)
        trialCounters(offset).pointee = counter
        return offset
    }
    func trialCounters(_ offset: CodeOffset) -> UnsafeMutablePointer<Int32> { (writable + Int(offset)).assumingMemoryBound(to: Int32.self) }
    /// Where code finds a counter.
    func address(of offset: CodeOffset) -> UInt { UInt(bitPattern: writable + Int(offset)) }
    func codeOffset(_ address: Int) -> CodeOffset { CodeOffset(truncatingIfNeeded: address - Int(bitPattern: executable)) }
    func codeOffset(writable address: UnsafeMutablePointer<UInt8>) -> CodeOffset { CodeOffset(truncatingIfNeeded: UnsafeMutableRawPointer(address) - writable) }
    /// `isFull` leaves room.
    func makeEdge(_ way: Way, kind: EdgeKind, isBackward: Bool, stub: Int, crossing: Crossing? = nil) -> Int {
        defer { edgeCount += 1 }
        let stub = codeOffset(stub)
        edges[edgeCount] = Edge(way: way, kind: kind, isBackward: isBackward, stub: stub, crossing: crossing)
        switch way {
        case .direct: break
        case .polled(let slot, _), .cells(let slot): set(slot + 8, stub)
        }
        unlink(edgeCount)
        return edgeCount
    }
    private func unlink(_ edge: Int) {
        lead(edge, to: edges[edge].stub)
        setPatience(edge, Self.patience)
    }
    /// - Parameter asks: the target is where a block asks whether somebody wants something.
    private func lead(_ edge: Int, to target: CodeOffset, asks: Bool = false) {
        targets[edge] = target
        switch edges[edge].way {
        case .direct(let end): setDisplacement(end, target)
        case .cells(let slot): set(slot, target)
        case .polled(let slot, let room):
            set(slot, target)
            let bytes = (writable + Int(room) - 5).assumingMemoryBound(to: UInt8.self)
            if asks {
                bytes.pointee = 0xE9
                setDisplacement(room, target)
            } else {
                for (n, byte) in Assembler.room.enumerated() { bytes[n] = byte }
            }
        }
    }
    /// How often an edge to another page goes through the jump cache before it asks to be linked.
    func setPatience(_ edge: Int, _ count: Int16) {
        guard let crossing = edges[edge].crossing else { return }
        counter(crossing.count).pointee = count
    }
    private func set(_ cell: CodeOffset, _ target: CodeOffset) {
        (writable + Int(cell)).storeBytes(of: UInt64(UInt(bitPattern: executable + Int(target))), as: UInt64.self)
    }
    private func setDisplacement(_ end: CodeOffset, _ target: CodeOffset) { (writable + Int(end) - 4).storeBytes(of: target &- end, as: Int32.self) }
    /// How code names operations: by how far behind the first of all blocks' they are.
    func offset(of operation: UnsafeMutablePointer<x86_op>) -> UInt32 { UInt32(truncatingIfNeeded: Int(bitPattern: operation) - Int(bitPattern: operations)) }
    /// Code that goes on in the interpreter at `first`, for edges to blocks that do not start with translated code.
    func makeWayOut(_ first: UnsafeMutablePointer<x86_op>, _ kind: EdgeKind) -> Int {
        var code = openCold()
        let address = code.here
        code.moveOperation(Host.address, offset(of: first))
        code.jump(to: (kind == .flags ? shared.exitWithFlags : shared.exitWithMemory).loadingHandler)
        commitCold(code)
        return address
    }
    /// Code that saves the flags and goes on at `target`.
    func makeWaySavingFlags(to target: Int) -> Int {
        var code = openCold()
        let address = code.here
        code.saveFlags()
        code.jump(to: target)
        commitCold(code)
        return address
    }
    /// Whether an edge is to lead to where its target asks whether somebody wants something.
    func mayLeadToAsking(_ edge: Int) -> Bool {
        guard edges[edge].isBackward else { return false }
        if case .cells = edges[edge].way { return false }
        return true
    }
    /// - Parameter asks: as in `lead`.
    /// - Parameter leadsOn: the target's instruction goes on in the page behind.
    func link(_ edge: Int, to target: Int, asks: Bool, page: Int, leadsOn: Bool = false) {
        lead(edge, to: codeOffset(target), asks: asks)
        if let crossing = edges[edge].crossing { list(edge, crossing, page: page, leadsOn: leadsOn) }
        // One to another page may be in the list from another address space.
        if edges[edge].page != page { linked[page, default: []].append(edge) }
        edges[edge].page = page
    }
    private func list(_ edge: Int, _ crossing: Crossing, page: Int, leadsOn: Bool) {
        let old = edges[edge].crossingPage
        edges[edge].crossingPage = page
        if crossing.isUser {
            userCrossing.add(edge, from: crossing.source, to: page, distance: crossing.distance, isNew: old != page, leadsOn: leadsOn)
        } else if old == 0 {
            supervisorCrossing.append(edge)
        }
    }
    /// A block of the page has other code: edges that led to the old lead to the new.
    func retarget(page: Int, from old: Ways, to new: Ways) {
        let (flags, memory, asking) = (codeOffset(old.flags), codeOffset(old.memory), codeOffset(old.asking))
        for edge in linked[page] ?? [] {
            let target = targets[edge]
            if target == flags {
                lead(edge, to: codeOffset(new.flags))
            } else if target == memory {
                lead(edge, to: codeOffset(new.memory))
            } else if target == asking {
                lead(edge, to: codeOffset(new.asking), asks: true)
            }
        }
    }
    /// Edges to other pages may lead elsewhere.
    func unlinkCrossing(user: Bool) {
        guard user else {
            for edge in supervisorCrossing { unlist(edge) }
            return supervisorCrossing.removeAll(keepingCapacity: true)
        }
        for neighbour in userCrossing.takeAll() { unlist(neighbour) }
    }
    private func unlist(_ neighbour: UserCrossings.Neighbour) {
        // Some may be another neighbour's by now.
        for edge in neighbour.edges where edges[edge].crossingPage == neighbour.page { unlist(edge) }
    }
    private func unlist(_ edge: Int) {
        edges[edge].crossingPage = 0
        unlink(edge)
    }
    /// Another address space of the user's: edges to other pages stay linked, as programs have most of their pages at the same distances.
    /// Before code of a page runs there, `keep` is asked.
    func leaveAddressSpace() {
        if userCrossing.isLong { unlinkCrossing(user: true) }
        for edge in userCrossing.takeLeadingOn() { unlink(edge) }
    }
    /// Code of a page is run at an address: edges from there stay linked whose targets' pages are where `place` says.
    func keep(_ source: UInt, at linear: UInt64, _ place: (UInt) -> UInt64?) {
        for neighbour in userCrossing.takeMisplaced(from: source, at: linear, place) { unlist(neighbour) }
    }
    /// How many neighbours there have been so far.
    var newest: Int { userCrossing.newest }
    /// The same for all pages of an address space, of which it was true when there had been so many neighbours.
    func keep(since: Int, _ place: (UInt) -> UInt64?) {
        for neighbour in userCrossing.takeMisplaced(since: since, place) { unlist(neighbour) }
    }
    /// A block was translated that lies in one page.
    func note(_ first: UnsafeMutablePointer<x86_op>, page: Int) { blocks[page, default: []].append(first) }
    /// The code of a page has changed.
    func forget(page: Int) {
        for edge in linked.removeValue(forKey: page) ?? [] {
            unlink(edge)
            if edges[edge].page == page { edges[edge].page = 0 }
        }
        takeOut(page)
    }
    /// Has ways in to blocks of a page that are no longer current go to the interpreter. One may be: translated since the change.
    private func takeOut(_ page: Int) {
        guard var list = blocks.removeValue(forKey: page) else { return }
        list.removeAll { first in
            if isCurrent(first) { return false }
            redirect(Int(first.pointee.imm), to: shared.untranslated)
            first.pointee.imm = UInt64(shared.untranslated)
            return true
        }
        if !list.isEmpty { blocks[page] = list }
    }
    /// Whoever enters old code of a block goes elsewhere: the jump cache may have it for several address spaces.
    /// - Parameter entry: where the code compares `pending`.
    func redirect(_ entry: Int, to target: Int) {
        guard entry != shared.untranslated, entry != target else { return }
        let place = writable + (entry - Int(bitPattern: executable))
        place.storeBytes(of: 0xE9, as: UInt8.self)
        setDisplacement(codeOffset(entry) + 5, codeOffset(target))
    }
    /// The code of many pages has changed.
    func forgetChanged() {
        for edge in linked.values.joined() {
            unlink(edge)
            edges[edge].page = 0
        }
        linked.removeAll(keepingCapacity: true)
        for user in [false, true] { unlinkCrossing(user: user) }
        for page in Array(blocks.keys) { takeOut(page) }
    }
}
