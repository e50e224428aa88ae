import CX86

/// Runs each translated block twice, first by the interpreter, then translated, and compares registers, flags, vectors, x87
/// and everything written. For whoever hunts a bug in the translator: slow, for machines with one processor (another one, or
/// a device, may change memory between the two runs).
///
/// The interpreter's stores are undone before the second run. It works with TLBs of its own that know no writable page, so
/// that each store takes the slow path, where the old bytes are noted. Blocks that touch a device, change code or hold an
/// instruction without a translation plan run once, interpreted. When something differs, the interpreter is asked again.
package final class LockStep {
    private struct Store {
        var host: UnsafeMutableRawPointer
        var size: Int
        var old: UInt64
        var new: UInt64 = 0
    }
    private static let stateBytes = MemoryLayout<x86_cpu>.size
    private static let tableBytes = UInt(2 * X86_TLB_BYTES)

    package private(set) var compared = 0
    package private(set) var differing = 0
    /// Called with what differs.
    private let report: (String) -> Void

    let blocks = BlockCache()
    private let tables = cx_map_zeroed(tableBytes).assumingMemoryBound(to: UInt64.self)
    /// Which of their entries the interpreter has filled.
    private var filled: [(table: UnsafeMutablePointer<UInt64>, index: Int)] = []
    private let before = UnsafeMutableRawPointer.allocate(byteCount: stateBytes, alignment: 64)
    private let interpreted = UnsafeMutableRawPointer.allocate(byteCount: stateBytes, alignment: 64)
    private let floatingBefore = UnsafeMutableRawPointer.allocate(byteCount: 512, alignment: 64)
    private let floatingInterpreted = UnsafeMutableRawPointer.allocate(byteCount: 512, alignment: 64)
    private let floatingTranslated = UnsafeMutableRawPointer.allocate(byteCount: 512, alignment: 64)
    private var stores: [Store] = []
    /// The interpreter's half of a block is running.
    private(set) var isRecording = false
    /// The block did something that cannot be done twice.
    private var isOnce = false
    /// The core's TLBs dropped something.
    var tablesAreStale = true

    init(report: @escaping (String) -> Void) {
        self.report = report
        for table in [tables, tables + Int(X86_TLB_BYTES) / 8] { TLBEntry.makeTable(table) }
    }
    deinit {
        cx_unmap(tables, Self.tableBytes)
        for area in [before, interpreted, floatingBefore, floatingInterpreted, floatingTranslated] { area.deallocate() }
    }

    // MARK: what the core tells

    /// A store is coming; nil when it is to a device.
    func note(_ host: UnsafeMutableRawPointer?, _ size: Int) {
        guard isRecording else { return }
        guard let host else { return noteOnce() }
        var old: UInt64 = 0
        withUnsafeMutableBytes(of: &old) { $0.copyMemory(from: UnsafeRawBufferPointer(start: host, count: min(size, 8))) }
        stores.append(Store(host: host, size: min(size, 8), old: old))
    }
    func noteOnce() { isOnce = true }
    /// An entry of the TLB is about to be filled; with each store, see above.
    func noteFill(_ index: Int, _ table: UnsafeMutablePointer<UInt64>) {
        if isRecording, TLBEntry(table, index).isEmpty(index) { filled.append((table, index)) }
    }

    /// Before each block.
    func prepare(_ core: X86Core) { core.holdBlocks() }

    // MARK: one block

    /// Runs the block at `first`, translated, and `reference`, which is the same block interpreted.
    func run(_ core: X86Core, _ first: Op, _ reference: Op, undefined: UInt64) {
        let s = core.state
        before.copyMemory(from: s, byteCount: Self.stateBytes)
        cx_fxsave(floatingBefore)
        let tlb = s.pointee.tlb
        interpret(core, reference)
        s.pointee.tlb = tlb
        if isOnce || (s.pointee.exit_reason != ExitReason.next && s.pointee.exit_reason != ExitReason.fault) { return }
        interpreted.copyMemory(from: s, byteCount: Self.stateBytes)
        cx_fxsave(floatingInterpreted)
        undoStores()
        restore(s)
        cx_fxrstor(floatingBefore)
        _ = first.pointee.fn(first, s)
        cx_fxsave(floatingTranslated)
        compared += 1
        if compared % 10_000_000 == 0 { report("lock-step: \(compared) blocks compared, \(differing) differ") }
        if let difference = difference(s, undefined) {
            if doesTheSameNow(core, reference, undefined) { return }
            differing += 1
            report("lock-step: block at \(Self.hex(before.assumingMemoryBound(to: x86_cpu.self).pointee.rip)): \(difference)")
        }
    }
    /// Whether the interpreter, asked again, does what translated code did: then it was memory that a device had written between
    /// the two. The machine goes on from this run.
    private func doesTheSameNow(_ core: X86Core, _ reference: Op, _ undefined: UInt64) -> Bool {
        let (s, tlb) = (core.state, core.state.pointee.tlb)
        undoStores()
        let expected = stores
        interpreted.copyMemory(from: s, byteCount: Self.stateBytes)
        floatingInterpreted.copyMemory(from: floatingTranslated, byteCount: 512)
        restore(s)
        cx_fxrstor(floatingBefore)
        interpret(core, reference)
        s.pointee.tlb = tlb
        cx_fxsave(floatingTranslated)
        stores = expected
        return difference(s, undefined) == nil
    }
    private func interpret(_ core: X86Core, _ reference: Op) {
        if tablesAreStale {
            for entry in filled { TLBEntry(entry.table, entry.index).clear(entry.index) }
            filled.removeAll(keepingCapacity: true)
            tablesAreStale = false
        }
        let s = core.state
        s.pointee.tlb = tables + (s.pointee.cpl == 3 ? Int(X86_TLB_BYTES) / 8 : 0)
        stores.removeAll(keepingCapacity: true)
        (isRecording, isOnce) = (true, false)
        _ = reference.pointee.fn(reference, s)
        isRecording = false
    }
    private func undoStores() {
        for index in stores.indices {
            var new: UInt64 = 0
            withUnsafeMutableBytes(of: &new) { $0.copyMemory(from: UnsafeRawBufferPointer(start: stores[index].host, count: stores[index].size)) }
            stores[index].new = new
        }
        for store in stores.reversed() { withUnsafeBytes(of: store.old) { store.host.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: store.size) } }
    }
    /// The state as it was, but for the two fields that other threads write.
    private func restore(_ s: CPU) {
        let raw = UnsafeMutableRawPointer(s)
        func copy(_ from: Int, _ to: Int) { (raw + from).copyMemory(from: before + from, byteCount: to - from) }
        copy(0, Int(X86_PENDING_OFFSET))
        copy(Int(X86_PENDING_OFFSET) + 4, Int(X86_POLL_OFFSET))
        copy(Int(X86_POLL_OFFSET) + 8, Self.stateBytes)
    }

    private func difference(_ s: CPU, _ undefined: UInt64) -> String? {
        let other = interpreted.assumingMemoryBound(to: x86_cpu.self)
        for n in 0..<16 where gpr(s, n) != gpr(other, n) { return "r\(n) \(Self.hex(gpr(s, n))), interpreted \(Self.hex(gpr(other, n)))" }
        if s.pointee.exit_reason != other.pointee.exit_reason { return "exit \(s.pointee.exit_reason), interpreted \(other.pointee.exit_reason)" }
        if s.pointee.exit_reason == ExitReason.fault {
            let (mine, theirs) = (s.pointee, other.pointee)
            guard mine.fault_vector == theirs.fault_vector, mine.fault_error == theirs.fault_error, mine.cr2 == theirs.cr2,
                mine.fault_op?.pointee.off == theirs.fault_op?.pointee.off
            else { return "exception \(mine.fault_vector) \(Self.hex(mine.cr2)), interpreted \(theirs.fault_vector) \(Self.hex(theirs.cr2))" }
        } else {
            if s.pointee.rip != other.pointee.rip { return "rip \(Self.hex(s.pointee.rip)), interpreted \(Self.hex(other.pointee.rip))" }
            // At its own start again: flags that the block does not need may be lost.
            let loops = s.pointee.rip == before.assumingMemoryBound(to: x86_cpu.self).pointee.rip
            let undefined = loops ? EFlags.arithmetic : undefined
            let (mine, theirs) = (flagsImage(s) & ~undefined, flagsImage(other) & ~undefined)
            if mine != theirs { return "flags \(Self.hex(mine)), interpreted \(Self.hex(theirs))" }
        }
        for n in 0..<16 where !Self.equal(UnsafeRawPointer(s) + vectorOffset(n), UnsafeRawPointer(other) + vectorOffset(n), 32) { return "vector register \(n)" }
        // Control, status and tag words, MXCSR, registers.
        for (from, count) in [(0, 5), (24, 4)] + (0..<8).map({ (32 + $0 * 16, 10) }) where !Self.equal(floatingTranslated + from, floatingInterpreted + from, count) {
            return "floating-point image at \(from)"
        }
        for store in Dictionary(stores.map { ($0.host, $0) }, uniquingKeysWith: { $1 }).values {
            let same = withUnsafeBytes(of: store.new) { Self.equal(store.host, $0.baseAddress.unsafelyUnwrapped, store.size) }
            if !same { return "memory: interpreted \(Self.hex(store.new)), \(store.size) bytes" }
        }
        return nil
    }
    private static func equal(_ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ count: Int) -> Bool {
        UnsafeRawBufferPointer(start: a, count: count).elementsEqual(UnsafeRawBufferPointer(start: b, count: count))
    }
    private static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
}

extension X86Core {
    /// From now on each translated block runs twice; `report` is called with what differs. Before the first run.
    package func runInLockStep(report: @escaping (String) -> Void) { lockStep = LockStep(report: report) }

    /// Blocks that ran twice so far.
    package var blocksCompared: Int { lockStep?.compared ?? 0 }

    /// Runs one block in lock-step; false when it is not for that.
    func stepLocked(_ first: Op, _ lockStep: LockStep) -> Bool {
        guard CodeKind(state).isTranslated, first.pointee.aux != 0 else { return false }
        guard first.pointee.aux == 1, (first - 1).pointee.reg == 0, let (reference, undefined) = outside({ reference(first, lockStep) }) else {
            // Runs as it is, unchecked.
            return false
        }
        outside { lockStep.run(self, first, reference, undefined: undefined) }
        return true
    }
    /// The same block with nothing translated, and the flags that are nobody's business after it; nil when it holds something
    /// that has no plan.
    private func reference(_ first: Op, _ lockStep: LockStep) -> (Op, UInt64)? {
        let linear = state.pointee.block_base &+ UInt64(first.pointee.off)
        guard case .ok(let translation) = translate(linear, .fetch, user: state.pointee.cpl == 3) else { return nil }
        let gpa = translation.gpa
        let key = BlockCache.key(gpa, user: state.pointee.cpl == 3, CodeKind(state))
        if let known = lockStep.blocks.find(key) { return known.pointee.extra == .max ? nil : (known, UInt64(known.pointee.extra)) }
        guard let page = memory.page(gpa), let host = memory.host(gpa) else { return nil }
        if lockStep.blocks.isFull { lockStep.blocks.flush() }
        let bytes = UnsafeBufferPointer(start: UnsafePointer(host.assumingMemoryBound(to: UInt8.self)), count: 4096 - Int(gpa & 4095))
        let extent = translatedExtent(bytes, gpa)
        var builder = BlockBuilder(cache: lockStep.blocks, code: CodeKind(state), features: features, threshold: 0, untranslated: 0)
        guard let made = builder.build(bytes, gpa: gpa, one: (memory.versionCell(page), memory.version(page)), limit: max(extent?.count ?? 1, 1)) else { return nil }
        lockStep.blocks.insert(key, made)
        made.pointee.extra = extent.map { UInt32($0.undefined) } ?? .max
        return extent.map { (made, $0.undefined) }
    }
    /// How many instructions translated code runs before it leaves, and the flags that are undefined then; nil when one of
    /// them has no plan. (The interpreter's blocks may be longer, but not in lock-step.)
    func translatedExtent(_ bytes: UnsafeBufferPointer<UInt8>, _ gpa: UInt64) -> (count: Int, undefined: UInt64)? {
        var undefined: UInt64 = 0
        var atExits: UInt64 = 0
        var offset = 0
        var extent = TranslationExtent()
        for count in 1...BlockCache.maximumOperations {
            guard offset < BlockCache.maximumBytes else { return (count - 1, undefined | atExits) }
            let rest = UnsafeBufferPointer(rebasing: bytes[min(offset, bytes.count)...])
            switch InstructionDecoder.decode(rest, code: CodeKind(state).size) {
            case .truncated: return count == 1 ? nil : (count - 1, undefined | atExits)
            case .invalid: return nil
            case .instruction(let decoded):
                let i = decoded.inCommonForm
                guard let plan = TranslationPlan.make(i, features) else { return nil }
                if plan.definesFlags || plan.mergesFlags { undefined = plan.isExact(i) ? EFlags.af : EFlags.arithmetic }
                if !extent.goesOn(behind: i, plan, at: Int(gpa & 4095) + offset) { return (count, undefined | atExits) }
                if plan.endsBlock { atExits |= undefined }
                offset += i.length
            }
        }
        return (BlockCache.maximumOperations, undefined | atExits)
    }
}

extension TranslationPlan {
    /// Whether an instruction leaves every flag but AF defined: arithmetic and logic, not multiplication, shifts and bit tests.
    fileprivate func isExact(_ i: Instruction) -> Bool {
        guard i.map == .one, !i.isVEX else { return false }
        switch i.opcode {
        case 0x00...0x3F, 0x80...0x85, 0xA8, 0xA9, 0xFE, 0xFF: return true
        case 0xF6, 0xF7: return i.group < 4
        default: return false
        }
    }
}
