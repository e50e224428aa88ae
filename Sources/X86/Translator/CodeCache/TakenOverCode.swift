import CX86

// A block's code for other processors, and theirs for this one.
extension TranslationCache {
    var extent: TranslationImage.Extent {
        func short(_ value: Int) -> Int32 { Int32(truncatingIfNeeded: value) }
        return TranslationImage.Extent(
            code: short(used), cold: short(coldUsed), slots: short(slots), executions: short(counters.executions), crossings: short(counters.crossings),
            edges: short(edgeCount))
    }

    // MARK: offered

    /// What is translated in `body` for the first time is offered to others, unless there is something in it that only this processor has.
    func offer(_ first: Op, _ key: UInt64, _ body: () -> Int) -> Int {
        let begin = extent
        fixups.pointee.removeAll()
        isOffering = true
        let instructions = body()
        isOffering = false
        offer(first, key, begin)
        return instructions
    }
    private func offer(_ first: Op, _ key: UInt64, _ begin: TranslationImage.Extent) {
        let end = extent
        guard end.code > begin.code, end.executions - begin.executions < 2 else { return }
        words.removeAll(keepingCapacity: true)
        let operations = Self.operations(first)
        for number in 1..<operations {
            if let entry = entry(first + number, begin, end) { words.append(TranslationImage.Head(operation: number, entry: Int(entry - begin.cold)).word) }
        }
        let heads = words.count
        guard collectFixups(begin, end) else { return }
        let entry = entry(first, begin, end)
        let image = TranslationImage(
            owner: member, entry: entry ?? 0, checked: entry == nil ? 0 : codeOffset(Int(first.pointee.imm)), flags: entry == nil ? 0 : codeOffset(Int(first.pointee.disp)),
            begin: begin, end: end, first: first.pointee, firstOffset: offset(of: first), operations: Int16(truncatingIfNeeded: operations),
            executions: end.executions > begin.executions ? counter(executionsOffset(Int(begin.executions))).pointee : 0, heads: UInt16(truncatingIfNeeded: heads),
            fixups: UInt16(truncatingIfNeeded: words.count - heads))
        words.withUnsafeBufferPointer { others.add(key, (first - 1).pointee.extra, image, $0) }
    }
    /// Of a block, the first one included.
    private static func operations(_ first: Op) -> Int {
        var end = first + 1
        while end.pointee.len > 0 { end += 1 }
        return end - first
    }
    /// To `words`. False if there is a place that names what only this processor has.
    private func collectFixups(_ begin: TranslationImage.Extent, _ end: TranslationImage.Extent) -> Bool {
        guard let log = fixups.pointee.all else { return false }
        for entry in log {
            let place = codeOffset(writable: entry.place)
            let isCold = place >= begin.cold
            guard let target = target(entry.target, begin, end) else { return false }
            // Both ends in one piece: it moves as a whole.
            if target == (isCold ? .cold : .code) { continue }
            words.append(TranslationImage.Fixup(Int(place - (isCold ? begin.cold : begin.code)), isCold: isCold, target).word)
        }
        return true
    }
    private func target(_ target: FixupLog.Target, _ begin: TranslationImage.Extent, _ end: TranslationImage.Extent) -> TranslationImage.Target? {
        let address: Int
        switch target {
        case .edge: return .edge
        case .operation: return .operation
        case .exit: return .exit
        case .address(let named): address = named
        }
        let place = address - Int(bitPattern: executable)
        guard (0..<Self.size).contains(place) else { return counter(CodeOffset(truncatingIfNeeded: address - Int(bitPattern: writable)), begin, end) }
        let offset = CodeOffset(truncatingIfNeeded: place)
        if offset >= begin.cold { return offset < end.cold ? .cold : nil }
        if offset >= begin.code { return offset < end.code ? .code : nil }
        if place >= Self.codeStart { return place < start ? .shared : nil }
        return offset >= begin.slots * 16 && offset < end.slots * 16 ? .slots : nil
    }
    /// Counters are named where they are written.
    private func counter(_ offset: CodeOffset, _ begin: TranslationImage.Extent, _ end: TranslationImage.Extent) -> TranslationImage.Target? {
        if offset >= executionsOffset(Int(begin.executions)), offset < executionsOffset(Int(end.executions)) { return .executions }
        if offset >= crossingsOffset(Int(begin.crossings)), offset < crossingsOffset(Int(end.crossings)) { return .crossings }
        return nil
    }
    /// Where the interpreter enters translated code with an operation.
    private func entry(_ op: Op, _ begin: TranslationImage.Extent, _ end: TranslationImage.Extent) -> CodeOffset? {
        let distance = Int(bitPattern: unsafeBitCast(op.pointee.fn, to: UInt.self)) &- Int(bitPattern: executable)
        guard distance >= Int(begin.cold), distance < Int(end.cold) else { return nil }
        return CodeOffset(truncatingIfNeeded: distance)
    }

    // MARK: taken over

    /// How far the parts of a block move from its owner's cache to this one.
    private struct Move {
        let from, to: TranslationImage.Extent
        func code(_ offset: CodeOffset) -> CodeOffset { offset >= from.cold ? offset + to.cold - from.cold : offset + to.code - from.code }
        func slot(_ offset: CodeOffset) -> CodeOffset { offset + (to.slots - from.slots) * 16 }
        func crossing(_ offset: CodeOffset) -> CodeOffset { offset + (to.crossings - from.crossings) * 2 }
    }
    /// Makes another processor's code that of a block here, if there is any for the same operations (or this one's own, of a block that the block
    /// cache had no room for any more). There must be room.
    func takeOver(_ first: Op, _ key: UInt64) -> Bool {
        let before = (used, coldUsed)
        others.take(key, (first - 1).pointee.extra) { image, words, owner in
            // While a write is on its way to change the version, one of them may have decoded what was there before.
            if Int(image.operations) == Self.operations(first) { takeOver(image, words, owner, first) }
        }
        guard used > before.0 else { return false }
        // Large pages may take the host a while, and others wait for what was locked.
        grown(from: before)
        return true
    }
    private func takeOver(_ image: TranslationImage, _ words: UnsafePointer<UInt32>, _ owner: SharedTranslations.Member, _ first: Op) {
        let (begin, end, to) = (image.begin, image.end, extent)
        let move = Move(from: begin, to: to)
        (writable + used).copyMemory(from: owner.writable + Int(begin.code), byteCount: Int(end.code - begin.code))
        (writable + coldUsed).copyMemory(from: owner.writable + Int(begin.cold), byteCount: Int(end.cold - begin.cold))
        apply(words + Int(image.heads), Int(image.fixups), move, owner, operations: Int(offset(of: first)) - Int(image.firstOffset))
        for edge in begin.edges..<end.edges { takeOver(owner.edges + Int(edge), move, owner) }
        slots += Int(end.slots - begin.slots)
        counters.crossings += Int(end.crossings - begin.crossings)
        let counter = end.executions > begin.executions ? makeCounter(image.executions) : 0
        used += Int(end.code - begin.code)
        coldUsed += Int(end.cold - begin.cold)
        for number in 0..<Int(image.heads) {
            let head = TranslationImage.Head(word: words[number])
            (first + head.operation).pointee.fn = handler(to.cold + CodeOffset(truncatingIfNeeded: head.entry))
        }
        enter(image, move, first, counter)
    }
    private func apply(_ words: UnsafePointer<UInt32>, _ count: Int, _ move: Move, _ owner: SharedTranslations.Member, operations: Int) {
        let data = (writable - executable) - (owner.writable - owner.executable)
        let (code, cold) = (Int(move.to.code - move.from.code), Int(move.to.cold - move.from.cold))
        let distances: InlineArray<6, Int> = [
            0, code, cold, Int(move.slot(0)), Int(move.to.executions - move.from.executions) * 2 + data, Int(move.crossing(0)) + data,
        ]
        for number in 0..<count {
            let fixup = TranslationImage.Fixup(word: words[number])
            let place = writable + Int(fixup.isCold ? move.to.cold : move.to.code) + fixup.place
            let moved = fixup.isCold ? cold : code
            guard fixup.target > Int(TranslationImage.Target.crossings.rawValue) else {
                add(distances[fixup.target] - moved, at: place)
                continue
            }
            guard fixup.target > Int(TranslationImage.Target.edge.rawValue) else {
                add(Int(move.to.edges - move.from.edges) << 12, at: place)
                continue
            }
            add(operations, at: place)
            if fixup.target == Int(TranslationImage.Target.exit.rawValue) { add(-moved, at: place + Assembler.exitDistance) }
        }
    }
    private func add(_ distance: Int, at place: UnsafeMutableRawPointer) {
        place.storeBytes(of: place.loadUnaligned(as: Int32.self) &+ Int32(truncatingIfNeeded: distance), as: Int32.self)
    }
    private func takeOver(_ edge: UnsafeMutablePointer<Edge>, _ move: Move, _ owner: SharedTranslations.Member) {
        var crossing = edge.pointee.crossing
        if let count = crossing?.count { crossing?.count = move.crossing(count) }
        let stub = Int(bitPattern: executable) + Int(move.code(edge.pointee.stub))
        let (kind, isBackward) = (edge.pointee.kind, edge.pointee.isBackward)
        switch edge.pointee.way {
        case .direct(let end): _ = makeEdge(.direct(end: move.code(end)), kind: kind, isBackward: isBackward, stub: stub, crossing: crossing)
        case .polled(let slot, let room):
            _ = makeEdge(.polled(slot: move.slot(slot), room: move.code(room)), kind: kind, isBackward: isBackward, stub: stub, crossing: crossing)
        case .cells(let slot): _ = makeEdge(.cells(slot: move.slot(slot)), kind: kind, isBackward: isBackward, stub: stub, crossing: crossing)
        }
    }
    private func handler(_ entry: CodeOffset) -> Handler { unsafeBitCast(UInt(bitPattern: executable) + UInt(entry), to: Handler.self) }
    private func enter(_ image: TranslationImage, _ move: Move, _ first: Op, _ counter: CodeOffset) {
        let (place, untranslated) = (first.pointee.disp, first.pointee.imm)
        first.pointee = image.first
        first.counters = counter
        guard image.first.aux == 1 else {
            (first.pointee.disp, first.pointee.imm) = (place, untranslated)
            return
        }
        // Its owner may have led that elsewhere.
        var entry = assembler(at: Int(move.code(image.checked)))
        entry.comparePending()
        first.pointee.fn = handler(move.code(image.entry))
        first.pointee.imm = UInt64(UInt(bitPattern: executable) + UInt(move.code(image.checked)))
        first.pointee.disp = Int64(Int(bitPattern: executable) + Int(move.code(image.flags)))
    }
}
