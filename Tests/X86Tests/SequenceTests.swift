import CHostRunner
import Foundation
import Testing
import X86

/// Sequences of user-mode instructions on our processor and on the host's, in equal address spaces, until their end or
/// their first exception: registers, flags, x87, SSE, memory and the exception itself must agree.
@Suite(.serialized) struct SequenceTests {
    /// Sequences in one run: 300,000 for CI, more with VZ_SEQUENCE_CASES, seed by VZ_SEED.
    static var caseCount: Int { ProcessInfo.processInfo.environment["VZ_SEQUENCE_CASES"].flatMap { Int($0) } ?? 300_000 }

    /// Interpreted, and with each block translated at once; VZ_SEQUENCE_THRESHOLD=1 leaves out the former.
    static var thresholds: [UInt32] { ProcessInfo.processInfo.environment["VZ_SEQUENCE_THRESHOLD"].flatMap { UInt32($0) }.map { [$0] } ?? [0, 1] }

    /// VZ_SEQUENCE_BITS=32 leaves out code of 64 bits, and the other way round.
    static var sizes: [CodeSize] {
        switch ProcessInfo.processInfo.environment["VZ_SEQUENCE_BITS"] {
        case "64": [.bits64]
        case "32": [.bits32]
        default: [.bits64, .bits32]
        }
    }

    @Test(arguments: thresholds, sizes) func randomSequencesAgreeWithHost(threshold: UInt32, size: CodeSize) throws {
        let harness = try SequenceHarness(seed: DifferentialTests.seed, threshold: threshold, size: size)
        let report = harness.run(cases: Self.caseCount)
        for line in report.mismatches.prefix(20) { print(line) }
        print(
            "sequences, \(size), threshold \(threshold): \(report.completed) completed, \(report.faulted) faulted alike \(report.vectors.sorted { $0.key < $1.key }), \(report.endless) endless, \(report.astray) astray, \(report.forms) opcodes, \(report.mismatches.count) mismatches"
        )
        #expect(report.mismatches.count == 0)
        let completed = report.completed
        #expect(completed > Self.caseCount / 4)
    }

    /// The same code, but translated by another processor, which has run it before.
    @Test(arguments: [CodeSize.bits64, .bits32]) func codeThatIsTakenOverAgreesWithHost(size: CodeSize) throws {
        let harness = try SequenceHarness(seed: DifferentialTests.seed &+ 1, threshold: 1, size: size, takesOver: true)
        let report = harness.run(cases: Self.caseCount / 3)
        for line in report.mismatches.prefix(20) { print(line) }
        print("sequences taken over, \(size): \(report.completed) completed, \(report.faulted) faulted alike, \(harness.takenOver) blocks, \(report.mismatches.count) mismatches")
        #expect(report.mismatches.count == 0)
        #expect(harness.takenOver > report.completed)
    }

    /// A base register reads a page that is not writable, then writes the page beside it. (What translated code knew of the
    /// first page was once taken for the second.)
    @Test(arguments: [0, 1] as [UInt32]) func aNeighbourIsNotTheSamePage(threshold: UInt32) throws {
        let harness = try SequenceHarness(seed: DifferentialTests.seed, threshold: threshold)
        let readOnly = SequenceHarness.data + UInt64(SequenceGenerator.readOnlyPage * 4096)
        let address = (0..<8).map { UInt8(truncatingIfNeeded: readOnly >> UInt64(8 * $0)) }
        // mov rbx, readOnly; mov rax, [rbx]; add rbx, 4096; add [rbx + 8], rax; add [rbx + 8], rbx; three times over
        let body = [0x48, 0xBB] + address + [0x48, 0x8B, 0x03, 0x48, 0x81, 0xC3, 0, 0x10, 0, 0, 0x48, 0x01, 0x43, 0x08, 0x48, 0x01, 0x5B, 0x08]
        let code = [0xBE, 3, 0, 0, 0] + body + [0xFF, 0xCE, 0x75, UInt8(bitPattern: Int8(-body.count - 4))]
        #expect(harness.run(code) == nil)
    }
}

/// A processor in 64-bit user mode whose page tables map the data and code pages at the addresses they have on the host.
final class SequenceHarness: X86Environment {
    struct Report {
        var completed = 0
        var faulted = 0
        var endless = 0
        var astray = 0
        var vectors: [UInt8: Int] = [:]
        var forms = 0
        var mismatches: [String] = []
    }
    static let data: UInt64 = 0x1800_0000
    /// Near enough for operands relative to an instruction.
    static let code: UInt64 = 0x4B3A_7000
    private static let pages = SequenceGenerator.pageCount
    private static let dataPhysical = 0x10000
    private static let codePhysical = 0x20000

    private let bytes: UnsafeMutableRawPointer
    private let memory: PhysicalMemory
    private var core: X86Core!
    /// Another processor, which runs each sequence before.
    private var other: X86Core?
    var takenOver: Int { core.takenOver }
    private var generator: SequenceGenerator
    private let hostData = UnsafeMutableRawPointer(bitPattern: UInt(SequenceHarness.data))!
    /// No two neighbours lie together, and none in order: an access that takes one page for another shows.
    private static func physical(_ page: Int) -> Int { dataPhysical + (page * 5 + 3) % pages * 4096 }
    private func guestData(_ offset: Int) -> UnsafeMutableRawPointer { bytes + Self.physical(offset / 4096) + offset % 4096 }
    private let hostCode = UnsafeMutableRawPointer(bitPattern: UInt(SequenceHarness.code))!
    private var guestCode: UnsafeMutableRawPointer { bytes + Self.codePhysical }
    private var base = X86State()

    private let translates: Bool
    private let size: CodeSize
    /// Where our processor's exception was, from the sequence's start.
    private var lastPlace: Int?

    init(seed: UInt64, threshold: UInt32, size: CodeSize = .bits64, takesOver: Bool = false) throws {
        translates = threshold > 0
        self.size = size
        try #require(host_sequence_init(Self.code, Self.data, UInt64(Self.pages * 4096)) == 0)
        generator = SequenceGenerator(seed: seed, data: Self.data, code: Self.code + UInt64(HOST_SEQUENCE_CODE), size: size)
        bytes = .allocate(byteCount: 0x40000, alignment: 4096)
        bytes.initializeMemory(as: UInt8.self, repeating: 0, count: 0x40000)
        memory = PhysicalMemory(regions: [(0, 0x40000, bytes)])
        core = X86Core(memory: memory, environment: self)
        core.translationThreshold = threshold
        if takesOver {
            other = X86Core(memory: memory, environment: self)
            other?.translationThreshold = threshold
        }
        makePageTables()
        makeState()
    }
    deinit {
        host_sequence_finish()
        bytes.deallocate()
    }

    /// From the code on.
    private var exit: Int { Int(size == .bits64 ? HOST_SEQUENCE_EXIT : HOST_SEQUENCE_EXIT_NARROW) }
    private func put(_ address: Int, _ value: UInt64) { bytes.storeBytes(of: value, toByteOffset: address, as: UInt64.self) }
    private func makePageTables() {
        put(0x1000, 0x2007)
        put(0x2000, 0x3007)
        put(0x3000 + Int(Self.data >> 21) * 8, 0x4007)
        for page in 0..<Self.pages where !SequenceGenerator.missingPages.contains(page) {
            put(0x4000 + page * 8, UInt64(Self.physical(page)) | (page == SequenceGenerator.readOnlyPage ? 5 : 7) | 1 << 63)
        }
        let (code, exit) = (Int(Self.code), Int(Self.code) + Int(HOST_SEQUENCE_EXIT))
        put(0x2000 + (code >> 30) * 8, 0x6007)
        put(0x6000 + (code >> 21 & 511) * 8, 0x7007)
        put(0x7000 + (code >> 12 & 511) * 8, UInt64(Self.codePhysical) | 7)
        put(0x6000 + (exit >> 21 & 511) * 8, 0x8007)
        put(0x8000 + (exit >> 12 & 511) * 8, UInt64(Self.codePhysical + 4096) | 5)
        bytes.storeBytes(of: 0x0B0F, toByteOffset: Self.codePhysical + 4096 + self.exit - Int(HOST_SEQUENCE_EXIT), as: UInt16.self)
        for page in SequenceGenerator.missingPages { host_sequence_protect(Self.data + UInt64(page * 4096), 4096, 0) }
        host_sequence_protect(Self.data + UInt64(SequenceGenerator.readOnlyPage * 4096), 4096, 1)
    }
    private func makeState() {
        base.cr0 = 0x8005_0033
        base.cr3 = 0x1000
        base.cr4 = 0x620 | (host_has_avx() != 0 ? 1 << 18 : 0)
        base.xcr0 = host_has_avx() != 0 ? 7 : 1
        base.efer = 0xD01
        base.segments = (0..<6).map { index in
            index == 1
                ? X86Segment(selector: size == .bits64 ? 0x33 : 0x23, base: 0, limit: .max, attributes: size == .bits64 ? 0xAFB : 0xCFB)
                : X86Segment(selector: index == 2 || size == .bits32 && index < 4 ? 0x2B : 0, base: 0, limit: .max, attributes: 0xCF3)
        }
        base.cpl = 3
        base.dr[6] = 0xFFFF_0FF0
        base.dr[7] = 0x400
    }

    /// What differs after one given sequence.
    func run(_ code: [UInt8]) -> String? {
        refill()
        var report = Report()
        return one(code, &report)
    }
    func run(cases: Int) -> Report {
        var report = Report()
        for number in 0..<cases {
            if number % 256 == 0 { refill() }
            core.trials = [.usual, .immediate, .skipped][number % 3]
            other?.trials = core.trials
            let code = generator.sequence(count: 1 + Int(generator.below(14)))
            if code.count > Int(HOST_SEQUENCE_CODE_SIZE) - 16 { continue }
            if let problem = one(code, &report) {
                if strayed(code) {
                    report.astray += 1
                    refill()
                    continue
                }
                report.mismatches.append("case \(number): \(problem): \(code.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined())")
                if report.mismatches.count > 100 { break }
                refill()
            }
        }
        report.forms = generator.forms.count
        return report
    }
    private func refill() {
        for page in 0..<Self.pages where !SequenceGenerator.missingPages.contains(page) && page != SequenceGenerator.readOnlyPage {
            for at in stride(from: page * 4096, to: (page + 1) * 4096, by: 8) { hostData.storeBytes(of: generator.value(), toByteOffset: at, as: UInt64.self) }
            guestData(page * 4096).copyMemory(from: hostData + page * 4096, byteCount: 4096)
        }
        guestCode.copyMemory(from: hostCode, byteCount: 4096)
        memory.noteDeviceWrite(UInt64(Self.codePhysical), 4096)
        let page = SequenceGenerator.readOnlyPage
        guestData(page * 4096).copyMemory(from: hostData + page * 4096, byteCount: 4096)
    }

    /// Runs one sequence on both; a description of the difference, or nil.
    private func one(_ code: [UInt8], _ report: inout Report) -> String? {
        for at in stride(from: SequenceGenerator.counterRange.lowerBound, to: SequenceGenerator.counterRange.upperBound, by: 4) {
            for memory in [hostData + at, guestData(at)] { memory.storeBytes(of: 1, as: UInt32.self) }
        }
        var state = base
        for n in 0..<16 { state.gpr[n] = n < 8 ? generator.register() : generator.value() }
        state.gpr[4] = Self.data + 0x1800 + generator.below(0x80) * 8
        // No return addresses of earlier sequences: they lead into this one's middle.
        for at in stride(from: Int(state.gpr[4] - Self.data) - 512, to: Int(state.gpr[4] - Self.data) + 512, by: 8) {
            let value = generator.value()
            for memory in [hostData + at, guestData(at)] { memory.storeBytes(of: value, as: UInt64.self) }
        }
        state.rflags = 0x202 | generator.next() & 0x8D5 | (generator.chance(30) ? 0x400 : 0)
        state.mxcsr = 0x1F80 | UInt32(generator.below(4)) << 13
        // Not overflow and underflow: whether such a result is exact shows to nobody who has them masked.
        if generator.chance(8), !generator.sumsProducts { state.mxcsr &= ~UInt32((generator.below(64) & ~0x18) << 7) }
        state.x87Control = [0x37F, 0x27F, 0x07F, 0xF7F, 0x77F, 0xB7F][Int(generator.below(6))]
        if generator.chance(8) { state.x87Control &= ~UInt16(generator.below(64)) }
        for n in 0..<32 {
            let value = generator.value()
            for b in 0..<8 { state.xmm[n * 8 + b] = UInt8(truncatingIfNeeded: value >> UInt64(8 * b)) }
        }
        for n in 0..<32 {
            let value = generator.value()
            for b in 0..<8 { state.ymmHigh[n * 8 + b] = UInt8(truncatingIfNeeded: value >> UInt64(8 * b)) }
        }
        fillX87(&state)
        state.rip = Self.code + UInt64(HOST_SEQUENCE_CODE)
        place(code)
        var host = hostState(state)
        let hostVector = host_sequence_run(&host, size == .bits64 ? 1 : 0)
        if hostVector == Int32(HOST_SEQUENCE_ENDLESS) {
            report.endless += 1
            refill()
            return nil
        }
        if let other { warmUp(state, other, turns: 1) }
        if core.trials == .immediate { warmUp(state, core, turns: 3) }
        var guest: (vector: UInt8, rip: UInt64, error: UInt64, state: X86State)?
        core.trace = { [unowned self] vector, rip, error in if guest == nil { guest = (vector, rip, error, core.architecturalState) } }
        core.architecturalState = state
        let exit = core.run()
        // x87 and MXCSR live in the host's registers until `run` returns.
        let floating = core.architecturalState
        guest?.state.x87 = floating.x87
        guest?.state.x87Control = floating.x87Control
        guest?.state.mxcsr = floating.mxcsr
        guard let guest else { return "our processor ended with \(exit)" }
        let end = state.rip + UInt64(code.count)
        // One address in half a million is the harness's own on the host.
        if guest.vector == 14, guest.state.cr2 &- Self.code &- UInt64(HOST_SEQUENCE_FAR) < UInt64(HOST_SEQUENCE_FAR_SIZE) {
            report.astray += 1
            refill()
            return nil
        }
        if guest.vector == 6, guest.rip == Self.code + UInt64(self.exit) {
            guard hostVector == -1 else { return "host vector \(hostVector) at +\(Int64(bitPattern: host.rip &- state.rip)), ours went through" }
            report.completed += 1
        } else {
            guard hostVector >= 0 else {
                let place = Int64(bitPattern: guest.rip &- state.rip)
                return "vector \(guest.vector) at +\(place) error \(guest.error) cr2 \(String(guest.state.cr2, radix: 16)), the host went through"
            }
            // An environment at the end of what addresses there are: which of its bytes is looked at first, again.
            if generator.loadsEnvironment, host.rip == guest.rip, (12...14).contains(hostVector), (12...14).contains(guest.vector), hostVector != Int32(guest.vector) {
                return nil
            }
            // An operand of 32-bit code that goes on behind the last address: its segment's limit, or the page, is the processor's choice.
            if size == .bits32, host.rip == guest.rip, hostVector == 12 || hostVector == 13, guest.vector == 14, (guest.state.cr2 &+ 512) & 0xFFFF_FFFF < 1024 { return nil }
            lastPlace = Int(truncatingIfNeeded: guest.rip &- state.rip)
            guard hostVector == Int32(guest.vector), host.rip == guest.rip else {
                let (ours, theirs) = (Int64(bitPattern: guest.rip &- state.rip), Int64(bitPattern: host.rip &- state.rip))
                let registers = guest.state.gpr.map { String($0, radix: 16) }
                return "vector \(guest.vector) at +\(ours), host \(hostVector) at +\(theirs)\(bytes(at: guest.rip)), registers \(registers)"
            }
            let anywhere: UInt64 = generator.loadsEnvironment ? 12 : 0
            if guest.vector == 14, (guest.state.cr2 ^ host.cr2) >> anywhere != 0 { return "CR2 \(String(guest.state.cr2, radix: 16)), host \(String(host.cr2, radix: 16))" }
            if guest.vector == 14, (guest.error ^ host.error) & 2 != 0 { return "error code \(guest.error), host \(host.error)" }
            report.faulted += 1
            if guest.vector == 6, guest.rip >= state.rip, guest.rip < end { generator.noteInvalid(code[Int(guest.rip - state.rip)...]) }
            report.vectors[guest.vector, default: 0] += 1
        }
        // Translated code may lose flags that nobody could read any more: seen in an exception's image only.
        let undefined = hostVector == -1 ? generator.undefinedFlags : (translates ? SequenceGenerator.allFlags : generator.everUndefined)
        return difference(guest.state, &host, undefined: undefined)
    }

    /// Has the blocks that a sequence runs known, watched and judged, so that segments go on where jumps lead.
    private func warmUp(_ state: X86State, _ core: X86Core, turns: Int) {
        core.trace = nil
        let places = (0..<Self.pages).map { guestData($0 * 4096) }
        let before = places.map { [UInt8](UnsafeRawBufferPointer(start: $0, count: 4096)) }
        let code = [UInt8](UnsafeRawBufferPointer(start: guestCode, count: 4096))
        for _ in 0..<turns {
            core.architecturalState = state
            _ = core.run()
            for (place, bytes) in zip(places, before) { bytes.withUnsafeBytes { place.copyMemory(from: $0.baseAddress!, byteCount: 4096) } }
        }
        if code.withUnsafeBytes({ memcmp($0.baseAddress!, guestCode, 4096) }) == 0 { return }
        code.withUnsafeBytes { guestCode.copyMemory(from: $0.baseAddress!, byteCount: 4096) }
        memory.noteDeviceWrite(UInt64(Self.codePhysical), 4096)
    }
    /// What stands at an address of the code page.
    private func bytes(at address: UInt64) -> String {
        guard address >> 12 == Self.code >> 12 else { return "" }
        let offset = Int(address & 4095)
        return ": " + (offset..<min(offset + 15, 4096)).map { String(guestCode.load(fromByteOffset: $0, as: UInt8.self), radix: 16) }.joined(separator: " ")
    }
    /// The sequence on both sides, with a jump to the exit page behind it, where we have UD2.
    private func place(_ code: [UInt8]) {
        lastPlace = nil
        let start = Int(HOST_SEQUENCE_CODE)
        var bytes = code + exitJump(behind: code)
        bytes += [UInt8](repeating: 0, count: Int(HOST_SEQUENCE_CODE_SIZE) - bytes.count)
        for page in [hostCode, guestCode] { bytes.withUnsafeBytes { (page + start).copyMemory(from: $0.baseAddress!, byteCount: $0.count) } }
        memory.noteDeviceWrite(UInt64(Self.codePhysical + start), bytes.count)
    }

    /// Whether a sequence wrote over itself, or the jump behind it, such that it says nothing any more.
    private func strayed(_ code: [UInt8]) -> Bool {
        let now = [UInt8](UnsafeRawBufferPointer(start: hostCode + Int(HOST_SEQUENCE_CODE), count: code.count + 5))
        if now.suffix(5) != exitJump(behind: code)[...] || SequenceGenerator.isAstray(code, now: Array(now.dropLast(5)), size) { return true }
        // A return address that was written over leads between instructions.
        return lastPlace.map { !SequenceGenerator.starts(code, size).contains($0) } ?? false
    }
    private func exitJump(behind code: [UInt8]) -> [UInt8] {
        let distance = Int32(exit - Int(HOST_SEQUENCE_CODE) - code.count - 5)
        return [0xE9] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> (8 * $0)) }
    }
    private func fillX87(_ state: inout X86State) {
        let control = state.x87Control
        state.x87[0] = UInt8(truncatingIfNeeded: control)
        state.x87[1] = UInt8(truncatingIfNeeded: control >> 8)
        let top = UInt8(generator.below(8))
        state.x87[3] = top << 3
        if generator.chance(8) { state.x87[2] = UInt8(generator.below(64)) }
        let depth = generator.chance(4) ? 8 : generator.below(8)
        for slot in 0..<8 {
            var value = generator.value()
            var exponent = UInt16(truncatingIfNeeded: 0x3FFF &- 20 &+ generator.below(40)) | UInt16(generator.below(2) << 15)
            if generator.chance(8) { exponent = UInt16(truncatingIfNeeded: generator.next()) }
            if exponent & 0x7FFF != 0 { value |= 1 << 63 }
            for b in 0..<8 { state.x87[32 + slot * 16 + b] = UInt8(truncatingIfNeeded: value >> UInt64(8 * b)) }
            state.x87[32 + slot * 16 + 8] = UInt8(truncatingIfNeeded: exponent)
            state.x87[32 + slot * 16 + 9] = UInt8(truncatingIfNeeded: exponent >> 8)
            if slot < Int(depth) { state.x87[4] |= 1 << ((UInt8(slot) + top) & 7) }
        }
    }
    private func hostState(_ state: X86State) -> host_sequence_state {
        var host = host_sequence_state()
        withUnsafeMutableBytes(of: &host.gpr) { raw in for n in 0..<16 { raw.storeBytes(of: state.gpr[n], toByteOffset: n * 8, as: UInt64.self) } }
        host.rflags = state.rflags
        withUnsafeMutableBytes(of: &host.fx) { raw in
            raw.copyBytes(from: state.x87.prefix(160))
            raw.storeBytes(of: state.mxcsr, toByteOffset: 24, as: UInt32.self)
            raw.storeBytes(of: 0xFFFF, toByteOffset: 28, as: UInt32.self)
            for n in 0..<256 { raw.storeBytes(of: state.xmm[n], toByteOffset: 160 + n, as: UInt8.self) }
        }
        withUnsafeMutableBytes(of: &host.vectors) { raw in
            for n in 0..<256 {
                raw[n / 16 * 32 + n % 16] = state.xmm[n]
                raw[n / 16 * 32 + 16 + n % 16] = state.ymmHigh[n]
            }
        }
        return host
    }

    /// Control, status and tag words as the guest sees them: in the image every exception is masked.
    private func x87Words(_ state: X86State) -> [UInt8] {
        let (control, exceptions) = (state.x87Control, UInt16(state.x87[2]) & 0x3F)
        let summary: UInt8 = exceptions & ~control != 0 ? 0x80 : 0
        return [UInt8(truncatingIfNeeded: control), UInt8(control >> 8), state.x87[2] & 0x7F | summary, state.x87[3] & 0x7F | summary, state.x87[4]]
    }
    private func difference(_ state: X86State, _ host: inout host_sequence_state, undefined: UInt64) -> String? {
        let gpr = withUnsafeBytes(of: &host.gpr) { Array($0.bindMemory(to: UInt64.self)) }
        for n in 0..<16 where gpr[n] != state.gpr[n] { return "r\(n) \(String(state.gpr[n], radix: 16)), host \(String(gpr[n], radix: 16))" }
        let mask = 0xCD5 & ~undefined
        if (state.rflags ^ host.rflags) & mask != 0 { return "flags \(String(state.rflags & mask, radix: 16)), host \(String(host.rflags & mask, radix: 16))" }
        let fx = withUnsafeBytes(of: &host.fx) { Array($0) }
        let words = x87Words(state)
        if Array(fx[160..<416]) != state.xmm { return "xmm" }
        if host_has_avx() != 0 {
            let vectors = withUnsafeBytes(of: &host.vectors) { Array($0) }
            for n in 0..<256 where vectors[n / 16 * 32 + 16 + n % 16] != state.ymmHigh[n] { return "upper half of ymm\(n / 16)" }
        }
        // Control, status and tag words, then the registers: the last instruction's addresses are the processor's own affair.
        if Array(fx[0..<5]) != words { return "x87 words \(words), host \(Array(fx[0..<5]))" }
        for slot in 0..<8 {
            let range = 32 + slot * 16..<42 + slot * 16
            if fx[range] != state.x87[range] { return "st\(slot)" }
        }
        let mxcsr = withUnsafeBytes(of: &host.fx) { $0.load(fromByteOffset: 24, as: UInt32.self) }
        if mxcsr != state.mxcsr { return "MXCSR \(String(state.mxcsr, radix: 16)), host \(String(mxcsr, radix: 16))" }
        for page in 0..<Self.pages where !SequenceGenerator.missingPages.contains(page) {
            if memcmp(hostData + page * 4096, guestData(page * 4096), 4096) != 0 {
                let at =
                    (0..<4096).first { (hostData + page * 4096).load(fromByteOffset: $0, as: UInt8.self) != guestData(page * 4096).load(fromByteOffset: $0, as: UInt8.self) }
                    ?? 0
                return "memory at \(String(page * 4096 + at, radix: 16))"
            }
        }
        if memcmp(hostCode, guestCode, 4096) != 0 { return "the code page" }
        return nil
    }

    // MARK: doors of the core: nothing behind them
}
