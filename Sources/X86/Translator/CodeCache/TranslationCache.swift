import CX86

/// Host registers that do not stand for a guest register of the same number.
enum Host {
    static let rax: UInt8 = 0
    static let rcx: UInt8 = 1
    static let rsi: UInt8 = 6
    static let rdi: UInt8 = 7
    /// The guest's stack pointer: the host's stack stays the host's.
    static let guestRSP: UInt8 = 8
    static let scratch: UInt8 = 9
    /// The CPU state.
    static let state: UInt8 = 10
    static let address: UInt8 = 11

    /// The host register that holds guest register `n` in translated code; nil when it stays in memory (R8–R11).
    static func register(_ n: UInt8) -> UInt8? {
        switch n {
        case 4: return guestRSP
        case 8...11: return nil
        default: return n
        }
    }
    static let calleeSaved: [UInt8] = [3, 5, 12, 13, 14, 15]
    static let mapped: [UInt8] = [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]

    /// What `state` points behind the state's beginning, so that a displacement of one byte reaches what code names most.
    static let bias: Int32 = 192
    static func cell(_ offset: Int) -> HostOperand { .memory(base: state, displacement: Int32(offset) - bias) }
    /// An entry of a table behind the state.
    static func cell(_ offset: Int32, index: UInt8, scale: UInt8) -> HostOperand { .memory(base: state, index: index, scale: scale, displacement: offset - bias) }
    static func home(_ n: UInt8) -> HostOperand { cell(Int(n) * 8) }
    static func vectorHome(_ n: UInt8) -> HostOperand { cell(vectorOffset(Int(n))) }
}

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
        /// Where it leads while it is not linked, and where it leads.
        var stub: CodeOffset
        var target: CodeOffset
        /// Of an edge that leads to another page.
        var crossing: Crossing?
        /// Whose list of linked edges it is in; 0: none.
        var page = 0
        /// The same of edges to other pages.
        var crossingPage = 0
    }
    /// What edges of a page that lead to one other page stand on.
    private struct Neighbour {
        /// The other page, and how far it lies from the first.
        let page: Int
        let distance: Int64
        var edges: [Int]
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
    /// Ways into the interpreter, the operation in r11: with its handler in r9, or taken from the operation.
    struct Exit {
        var withHandler = 0
        var loadingHandler = 0
    }
    private static let size = 110 << 20
    private static let slotBytes = 8 << 20
    /// Behind the slots counters of 16 bits: of blocks' executions, close together as they are written all the time, and of edges.
    private static let counterBytes = 1 << 20
    private static let codeStart = slotBytes + 2 * counterBytes
    /// More than any block takes in either half: 48 instructions five times over (four fallbacks), each with a slow path that stores
    /// sixteen vector registers.
    private static let reserve = 256 << 10

    private let writable: UnsafeMutableRawPointer
    private let executable: UnsafeMutableRawPointer
    private let flagTable: UnsafeMutablePointer<UInt64>
    /// Ends of what runs mostly and of what runs seldom, which fills the second half: apart, so that the host's instruction
    /// cache holds the former only.
    private var used = 0
    private var coldUsed = coldStart
    private var start = 0
    /// Between the two, by itself: programs' blocks that have been judged, which is to say those that run most. Spread over everything
    /// that ever ran, they would need several times as many entries of the host's TLB.
    private var hotUsed = hotStart
    private static let hotStart = 46 << 20
    private static let coldStart = 54 << 20
    /// Where the translation that was committed last lies.
    private(set) var latest: (address: UInt, bytes: Int) = (0, 0)
    private var largePages = LargePages()
    private var slots = 0
    private var counters = (executions: 0, crossings: 0)
    /// In pages of their own, which go back to the host with the code.
    let edges: UnsafeMutablePointer<Edge>
    private(set) var edgeCount = 0
    private static let mostEdges = 1 << 20
    private static let edgeBytes = UInt(mostEdges * MemoryLayout<Edge>.stride)
    /// Linked edges by the page that they lead to.
    private var linked: [Int: [Int]] = [:]
    /// Translated blocks by their page. Their entries do not look at its version: blocks are taken out of use when it changes.
    private var blocks: [Int: [UnsafeMutablePointer<x86_op>]] = [:]
    /// The supervisor's linked edges to other pages.
    private var supervisorCrossing: [Int] = []
    /// The user's, by the page that they lie in; and those that lead to an instruction that goes on in the page behind their target's.
    private var userCrossing: [UInt: [Neighbour]] = [:]
    private var leadingOn: [Int] = []
    /// Neighbours in the order in which they came, as what an address space has in place has to be asked of new ones only. All of those
    /// there are have come since the first of these, which is the n-th of all.
    private var news: [(source: UInt, page: Int, distance: Int64)] = []
    private var firstNews = 0
    private static let mostNews = 1 << 16

    // Executable addresses of shared code.
    private(set) var exitWithFlags = Exit()
    private(set) var exitWithMemory = Exit()
    private(set) var exitWithout = Exit()
    private(set) var exitToLoop = 0
    /// From the interpreter to the code at r9: the host's registers to its stack, the guest's from the state.
    private(set) var enter = 0
    private(set) var untranslated = 0
    private(set) var convertFlags = 0
    /// Called: clears the upper halves of all vector registers in the state. XMM0 is lost.
    private(set) var zeroUpper = 0
    /// Where returns go that do not find their call, see ReturnStack: the target in r11, flags in memory.
    private(set) var returnElsewhere = 0
    private(set) var returnWithoutCall = 0
    private(set) var returnToUnknown = 0
    /// To the target in r11, flags in memory, through the jump cache.
    private(set) var lookUpTarget = 0
    /// By base cache, for reading and for writing.
    private(set) var lookUp: [(read: Int, write: Int)] = []
    private(set) var operandCaches: OperandCaches

    /// - Parameter empty: what base caches hold that hold nothing.
    init?(state: UnsafeMutablePointer<x86_cpu>, empty: (tag: UInt64, way: UInt64)) {
        var rw: UnsafeMutableRawPointer?
        var rx: UnsafeMutableRawPointer?
        guard cx_code_buffer(UInt(Self.size), &rw, &rx) == 0, let rw, let rx else { return nil }
        writable = rw
        executable = rx
        edges = cx_map_zeroed(Self.edgeBytes).bindMemory(to: Edge.self, capacity: Self.mostEdges)
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
        makeSharedCode()
        start = used
    }
    deinit {
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
        forgetNews()
        leadingOn.removeAll()
    }

    // MARK: code

    func open(hot: Bool = false) -> Assembler { assembler(at: hot && hotUsed + Self.reserve <= Self.coldStart ? hotUsed : used) }
    func openCold() -> Assembler { assembler(at: coldUsed) }
    private func assembler(at offset: Int) -> Assembler {
        Assembler(at: (writable + offset).assumingMemoryBound(to: UInt8.self), toExecutable: executable - writable)
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
        let offset = CodeOffset(truncatingIfNeeded: Self.slotBytes + counters.executions * 2)
        counter(offset).pointee = value
        return offset
    }
    func makeCrossingCounter() -> CodeOffset {
        defer { counters.crossings += 1 }
        return CodeOffset(truncatingIfNeeded: Self.slotBytes + Self.counterBytes + counters.crossings * 2)
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
        edges[edgeCount] = Edge(way: way, kind: kind, isBackward: isBackward, stub: stub, target: stub, crossing: crossing)
        switch way {
        case .direct: break
        case .polled(let slot, _), .cells(let slot): set(slot + 8, stub)
        }
        unlink(edgeCount)
        return edgeCount
    }
    /// - Parameter poll: where the edge leads when somebody wants something.
    func setPoll(_ edge: Int, _ poll: Int) { if case .cells(let slot) = edges[edge].way { set(slot + 8, codeOffset(poll)) } }
    private func unlink(_ edge: Int) {
        lead(edge, to: edges[edge].stub)
        setPatience(edge, Self.patience)
    }
    /// - Parameter asks: the target is where a block asks whether somebody wants something.
    private func lead(_ edge: Int, to target: CodeOffset, asks: Bool = false) {
        edges[edge].target = target
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
    /// Code that goes on in the interpreter at `first`, for edges to blocks that do not start with translated code.
    func makeWayOut(_ first: UnsafeMutablePointer<x86_op>, _ kind: EdgeKind) -> Int {
        var code = openCold()
        let address = code.here
        code.moveImmediate(Host.address, UInt64(UInt(bitPattern: first)))
        code.jump(to: (kind == .flags ? exitWithFlags : exitWithMemory).loadingHandler)
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
        if leadsOn, crossing.isUser { leadingOn.append(edge) }
        let old = edges[edge].crossingPage
        edges[edge].crossingPage = page
        guard crossing.isUser else { return old == 0 ? supervisorCrossing.append(edge) : () }
        if old == page { return }
        if add(edge, to: &userCrossing[crossing.source, default: []], page, crossing.distance) { news.append((crossing.source, page, crossing.distance)) }
    }
    /// True for a new neighbour.
    private func add(_ edge: Int, to neighbours: inout [Neighbour], _ page: Int, _ distance: Int64) -> Bool {
        guard let known = neighbours.firstIndex(where: { $0.page == page && $0.distance == distance }) else {
            neighbours.append(Neighbour(page: page, distance: distance, edges: [edge]))
            return true
        }
        neighbours[known].edges.append(edge)
        return false
    }
    /// A block of the page has other code: edges that led to the old lead to the new.
    func retarget(page: Int, _ changes: (old: Int, new: Int, asks: Bool)...) {
        for edge in linked[page] ?? [] {
            if let change = changes.first(where: { codeOffset($0.old) == edges[edge].target }) { lead(edge, to: codeOffset(change.new), asks: change.asks) }
        }
    }
    /// Edges to other pages may lead elsewhere.
    func unlinkCrossing(user: Bool) {
        guard user else {
            for edge in supervisorCrossing { unlist(edge) }
            return supervisorCrossing.removeAll(keepingCapacity: true)
        }
        for neighbour in userCrossing.values.joined() { for edge in neighbour.edges { unlist(edge) } }
        userCrossing.removeAll(keepingCapacity: true)
        forgetNews()
        leadingOn.removeAll(keepingCapacity: true)
    }
    private func unlist(_ edge: Int) {
        edges[edge].crossingPage = 0
        unlink(edge)
    }
    /// Another address space of the user's: edges to other pages stay linked, as programs have most of their pages at the same distances.
    /// Before code of a page runs there, `keep` is asked.
    func leaveAddressSpace() {
        if news.count > Self.mostNews { unlinkCrossing(user: true) }
        for edge in leadingOn { unlink(edge) }
        leadingOn.removeAll(keepingCapacity: true)
    }
    /// Code of a page is run at an address: edges from there stay linked whose targets' pages are where `place` says.
    func keep(_ source: UInt, at linear: UInt64, _ place: (UInt) -> UInt64?) {
        guard let neighbours = userCrossing[source] else { return }
        for neighbour in neighbours where place(UInt(bitPattern: neighbour.page)) != linear &+ UInt64(bitPattern: neighbour.distance) {
            remove(source, neighbour.page, neighbour.distance)
        }
    }
    /// How many neighbours there have been so far.
    var newest: Int { firstNews + news.count }
    /// The same for all pages of an address space, of which it was true when there had been so many neighbours.
    func keep(since: Int, _ place: (UInt) -> UInt64?) {
        for (source, page, distance) in news.dropFirst(max(since - firstNews, 0)) {
            guard let linear = place(source), place(UInt(bitPattern: page)) != linear &+ UInt64(bitPattern: distance) else { continue }
            remove(source, page, distance)
        }
    }
    private func remove(_ source: UInt, _ page: Int, _ distance: Int64) {
        guard let number = userCrossing[source]?.firstIndex(where: { $0.page == page && $0.distance == distance }),
            let neighbour = userCrossing[source]?.remove(at: number)
        else { return }
        // Others are in another list by now.
        for edge in neighbour.edges where edges[edge].crossingPage == page { unlist(edge) }
    }
    private func forgetNews() {
        firstNews += news.count
        news.removeAll(keepingCapacity: true)
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
            first.pointee.imm = UInt64(untranslated)
            return true
        }
        if !list.isEmpty { blocks[page] = list }
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

    // MARK: shared code

    private func makeSharedCode() {
        var code = open()
        exitWithFlags = makeExit(&code) { code in
            code.bytes(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
            tableLookup(&code)
        }
        exitWithMemory = makeExit(&code) { code in
            code.op(0xB7, reg: Host.rax, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, map: 1)  // movzx eax, word
            code.bytes(0x3D)  // cmp eax, 0xFFFF
            code.int32(0xFFFF)
            let valid = code.jump(if: 4)
            tableLookup(&code)
            code.patch(valid)
        }
        exitWithout = makeExit(&code) { _ in }

        makeEntry(&code)

        // RIP in r11, flags in memory: back to the run loop.
        exitToLoop = code.here
        code.store(Host.address, Host.cell(Int(X86_RIP_OFFSET)))
        code.leaRIP(Host.scratch, code.here + 7 + 5)
        code.jump(to: exitWithMemory.withHandler)
        code.bytes(0x31, 0xC0, 0xC3)  // xor eax, eax; ret

        // A block that has no translation yet, its first operation in r9.
        // What the interpreter asks at a block's start: its version, and whether somebody wants something.
        untranslated = code.here
        code.store(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.load(Host.address, .memory(base: Host.scratch, displacement: -32))
        code.load32(Host.rax, .memory(base: Host.address))
        code.load(Host.address, .memory(base: Host.scratch, displacement: -24))
        code.op(0x03, reg: Host.rax, .memory(base: Host.address), wide: false)
        code.op(0x3B, reg: Host.rax, .memory(base: Host.scratch, displacement: -4), wide: false)
        code.load(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        let stale = code.jump(if: 5)
        code.op(0x83, reg: 7, Host.cell(Int(X86_PENDING_OFFSET)), wide: false)
        code.byte(0)
        let wanted = code.jump(if: 5)
        code.move(Host.address, Host.scratch)
        code.load(Host.scratch, .memory(base: Host.scratch))
        code.jump(to: exitWithMemory.withHandler)
        code.patch(stale)
        code.patch(wanted)
        code.op(0xB7, reg: Host.address, .memory(base: Host.scratch, displacement: 32), wide: false, map: 1)  // movzx r11d, its offset
        code.op(0x03, reg: Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.jump(to: exitToLoop)
        makeConversion(&code)
        makeReturns(&code)
        zeroUpper = code.here
        code.bytes(0x0F, 0x57, 0xC0)  // xorps xmm0, xmm0
        for n in 0..<16 { code.op(0x11, reg: 0, Host.cell(vectorOffset(n) + 16), wide: false, map: 1) }
        code.op(0xC6, reg: 0, Host.cell(Int(X86_UPPER_IN_USE_OFFSET)), wide: false)
        code.bytes(0, 0xC3)  // ret
        lookUp = (0..<2 * Int(X86_BASE_CACHES)).map { cache in
            let read = code.here
            makeLookUp(&code, cache, write: false)
            let write = code.here
            makeLookUp(&code, cache, write: true)
            return (read, write)
        }
        operandCaches.makeLookUps(&code)
        commit(code)
    }
    private func makeEntry(_ code: inout Assembler) {
        enter = code.here
        for register in Host.calleeSaved { code.push(register) }
        code.lea(Host.state, .memory(base: Host.rsi, displacement: Host.bias))
        code.op(0xC7, reg: 0, Host.cell(Int(X86_T1_FLAGS_OFFSET)))
        code.int32(0xFFFF)
        for n in Host.mapped { if let host = Host.register(n) { code.load(host, Host.home(n)) } }
        code.store(4, Host.cell(Int(X86_HOST_STACK_OFFSET)))
        code.load(4, Host.cell(Int(X86_RETURN_STACK_OFFSET)))
        code.bytes(0x41, 0xFF, 0xE1)  // jmp r9
    }
    private func makeExit(_ code: inout Assembler, flags: (inout Assembler) -> Void) -> Exit {
        var exit = Exit(withHandler: code.here)
        spill(&code)
        flags(&code)
        finishLeaving(&code)
        exit.loadingHandler = code.here
        code.load(Host.scratch, .memory(base: Host.address))
        code.jump(to: exit.withHandler)
        return exit
    }
    /// Guest registers to the state, the host's back from the stack. Changes no flags.
    private func spill(_ code: inout Assembler) {
        for n in Host.mapped { if let host = Host.register(n) { code.store(host, Host.home(n)) } }
        code.store(4, Host.cell(Int(X86_RETURN_STACK_OFFSET)))
        code.load(4, Host.cell(Int(X86_HOST_STACK_OFFSET)))
        for register in Host.calleeSaved.reversed() { code.pop(register) }
    }
    /// The jump cache's entry for r11 in r9. EFLAGS are lost.
    private func findTarget(_ code: inout Assembler) {
        code.hashTarget()
        code.bytes(0x41, 0xC1, 0xE1, 0x03)  // shl r9d, 3
        code.op(0x03, reg: Host.scratch, Host.cell(Int(X86_JCACHE_OFFSET)))
    }
    private func makeReturns(_ code: inout Assembler) {
        returnToUnknown = code.here
        code.lea(4, .memory(base: 4, displacement: 8))
        returnElsewhere = code.here
        findTarget(&code)
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        let first = code.jump(if: 4)
        code.bytes(0x49, 0x83, 0xF1, 0x10)  // xor r9, 16
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        let second = code.jump(if: 4)
        code.move(Host.scratch, Host.address)
        code.bytes(0x49, 0xC1, 0xE1, 0x10, 0x49, 0xC1, 0xF9, 0x10)  // shl r9, 16; sar r9, 16
        code.op(0x39, reg: Host.address, .register(Host.scratch))
        code.jump(if: 4, to: exitToLoop)
        code.moveImmediate(Host.scratch, UInt64(unsafeBitCast(TranslatorHandlers.returnFault, to: UInt.self)))
        code.jump(to: exitWithMemory.withHandler)
        code.patch(first)
        code.patch(second)
        let hit = code.here
        code.load(Host.scratch, .memory(base: Host.scratch, displacement: 8))
        code.bytes(0x49, 0x81, 0xE3)  // and r11, ~4095
        code.int32(-4096)
        code.store(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.op(0xFF, reg: 4, .memory(base: Host.scratch, displacement: 8), wide: false)
        lookUpTarget = code.here
        findTarget(&code)
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        code.jump(if: 4, to: hit)
        code.bytes(0x49, 0x83, 0xF1, 0x10)  // xor r9, 16
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        code.jump(if: 4, to: hit)
        code.jump(to: exitToLoop)
        returnWithoutCall = code.here
        code.lea(4, .memory(base: 4, displacement: -8))
        code.jump(to: returnElsewhere)
    }
    /// AX = LAHF's AH over SETO's AL, to fres and faux.
    private func tableLookup(_ code: inout Assembler) {
        code.bytes(0x66, 0xC1, 0xC8, 0x08)  // ror ax, 8
        code.bytes(0x0F, 0xB7, 0xC0)  // movzx eax, ax
        code.bytes(0xC1, 0xE0, 0x04)  // shl eax, 4
        code.op(0x03, reg: Host.rax, Host.cell(Int(X86_FLAG_TABLE_OFFSET)))
        code.load(Host.rcx, .memory(base: Host.rax))
        code.store(Host.rcx, Host.cell(Int(X86_FRES_OFFSET)))
        code.load(Host.rcx, .memory(base: Host.rax, displacement: 8))
        code.store(Host.rcx, Host.cell(Int(X86_FAUX_OFFSET)))
    }
    /// To the handler in r9 with the operation in r11.
    private func finishLeaving(_ code: inout Assembler) {
        code.move(Host.rdi, Host.address)
        code.lea(Host.rsi, .memory(base: Host.state, displacement: -Host.bias))
        code.bytes(0x41, 0xFF, 0xE1)  // jmp r9
    }

    /// fres and faux to EFLAGS; goes on at r11. Uses r9 and, through the stack, RAX, RCX and RDX.
    private func makeConversion(_ code: inout Assembler) {
        convertFlags = code.here
        for register in [0, 1, 2] as [UInt8] { code.push(register) }
        code.load(0, Host.cell(Int(X86_FRES_OFFSET)))
        code.load(1, Host.cell(Int(X86_FAUX_OFFSET)))
        code.bytes(0x31, 0xD2)  // xor edx, edx
        code.bytes(0x48, 0x85, 0xC0, 0x0F, 0x94, 0xC2, 0xC1, 0xE2, 0x06)  // test rax, rax; setz dl; shl edx, 6
        code.bytes(0x49, 0x89, 0xC1, 0x49, 0xC1, 0xE9, 0x3F)  // mov r9, rax; shr r9, 63
        code.bytes(0x41, 0x31, 0xC9, 0x41, 0x83, 0xE1, 0x01, 0x41, 0xC1, 0xE1, 0x07, 0x44, 0x09, 0xCA)  // xor r9d, ecx; and r9d, 1; shl r9d, 7; or edx, r9d
        code.bytes(0x49, 0x89, 0xC9, 0x49, 0xC1, 0xE9, 0x08, 0x41, 0x31, 0xC1)  // mov r9, rcx; shr r9, 8; xor r9d, eax
        code.bytes(0x45, 0x84, 0xC9, 0x41, 0x0F, 0x9A, 0xC1, 0x45, 0x0F, 0xB6, 0xC9)  // test r9b, r9b; setp r9b; movzx r9d, r9b
        code.bytes(0x41, 0xC1, 0xE1, 0x02, 0x44, 0x09, 0xCA)  // shl r9d, 2; or edx, r9d
        code.bytes(0x41, 0x89, 0xC9, 0x41, 0x83, 0xE1, 0x08, 0x45, 0x01, 0xC9, 0x44, 0x09, 0xCA)  // mov r9d, ecx; and r9d, 8; add r9d, r9d; or edx, r9d
        code.bytes(0x49, 0x89, 0xC9, 0x49, 0xC1, 0xE9, 0x3F, 0x44, 0x09, 0xCA)  // mov r9, rcx; shr r9, 63; or edx, r9d
        code.bytes(0x48, 0x8D, 0x04, 0x09, 0x48, 0x31, 0xC8, 0x48, 0xC1, 0xE8, 0x3F)  // lea rax, [rcx + rcx]; xor rax, rcx; shr rax, 63
        code.bytes(0x88, 0xD4, 0x04, 0x7F, 0x9E)  // mov ah, dl; add al, 127; sahf
        for register in [2, 1, 0] as [UInt8] { code.pop(register) }
        code.bytes(0x41, 0xFF, 0xE3)  // jmp r11
    }

    /// Called with a linear address in r11 and 4096 less the operand's size in r9: finds its page in the TLB and puts it into
    /// a base cache. "Above" when the interpreter has to see to it.
    private func makeLookUp(_ code: inout Assembler, _ cache: Int, write: Bool) {
        let cell = BlockTranslator.cell(cache, write: false)
        code.push(0)
        code.push(1)
        let (tag, fails) = code.findPage(entry: 0, scratch: 1, user: cache >= Int(X86_BASE_CACHES), write: write)
        // A page that may be written may be read.
        code.load(1, tag)
        code.store(1, Host.cell(cell))
        if write { code.store(1, Host.cell(cell + 16)) }
        code.load(0, .memory(base: 0, displacement: 2 * Int32(X86_TLB_COLUMN)))
        if cache % Int(X86_BASE_CACHES) >= Int(X86_WINDOW_CACHES) { code.op(0x03, reg: 0, .register(1)) }  // add rax, rcx
        code.store(0, Host.cell(cell + 8))
        if write { code.store(0, Host.cell(cell + 24)) }
        code.bytes(0x31, 0xC0)  // xor eax, eax: not above
        code.patch(fails)
        code.pop(1)
        code.pop(0)
        code.byte(0xC3)
    }
}
