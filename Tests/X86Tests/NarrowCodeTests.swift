import Foundation
import Testing
import X86

/// 32-bit programs in long mode, interpreted and translated: addresses and registers that wrap at 4 GiB, segments, and changes between code of
/// 32 and 64 bits.
@Suite(.serialized) struct NarrowCodeTests {
    /// What is added to registers, pushed and popped leads over the ends of the address space, both of which have pages. Behind 4 GiB there is
    /// another, which no 32-bit code may reach, and around the guest's memory nothing for 16 GiB.
    @Test func registersWrapAlike() throws {
        var generator = NarrowGenerator(random: Generator(state: DifferentialTests.seed))
        let (interpreted, translated) = (try NarrowMachine(threshold: 0), try NarrowMachine(threshold: 1))
        var ends: [UInt8: Int] = [:]
        for number in 0..<SequenceTests.caseCount / 10 {
            translated.core.trials = [.usual, .immediate, .skipped][number % 3]
            let code = generator.sequence()
            let registers = (0..<8).map { _ in generator.register() }
            for machine in [interpreted, translated] { machine.place(code) }
            for _ in 0..<3 {
                let (expected, end) = (interpreted.run(registers, prelude: true), translated.run(registers, prelude: true))
                ends[expected.vector, default: 0] += 1
                if expected.vector == 255 || end.vector == 255 { continue }
                let difference = expected.difference(end, flagsAt: NarrowMachine.code + UInt64(code.count - 2)) ?? (interpreted.hasSameMemory(as: translated) ? nil : "memory")
                guard let difference else { continue }
                Issue.record("sequence \(number): \(difference): \(code.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()), \(registers)")
                return
            }
        }
        print("narrow code: ended with \(ends.sorted { $0.key < $1.key })")
        let through = ends[6] ?? 0
        #expect(through > SequenceTests.caseCount / 10)
    }

    /// Operands through a segment that begins elsewhere, between others through one that begins at 0.
    @Test(arguments: [0, 1] as [UInt32]) func segmentsThatDoNotBeginAtZero(threshold: UInt32) throws {
        let machine = try NarrowMachine(threshold: threshold)
        machine.put(0x1100, 1000)
        machine.put(0x2100, 1_000_000)
        // mov edi, 200; 1: add eax, [0x1100]; mov ds, ecx; add eax, [0x1100]; mov ds, edx; dec edi; jnz 1b; ud2
        let code: [UInt8] = [
            0xBF, 200, 0, 0, 0, 0x03, 0x05, 0x00, 0x11, 0, 0, 0x8E, 0xD9, 0x03, 0x05, 0x00, 0x11, 0, 0, 0x8E, 0xDA, 0x4F, 0x75, 0xED, 0x0F, 0x0B,
        ]
        machine.place(code)
        let end = machine.run([0, UInt64(NarrowMachine.based), 0x2B, 0, 0x1800, 0, 0, 0])
        #expect(end.vector == 6)
        #expect(end.state.gpr[0] == 200 * 1_001_000)
    }

    /// A program of both widths. The function that both call is `inc rax` in one and `dec eax; inc eax` in the other.
    @Test(arguments: [0, 1] as [UInt32]) func codeOfBothWidthsIsNotMixed(threshold: UInt32) throws {
        let machine = try NarrowMachine(threshold: threshold)
        let start = NarrowMachine.code
        // 0x00: mov edi, 300
        // 0x05: (32) call 0x80; call 0x80; jmp 0x33:0x20
        // 0x20: (64) call 0x80; add rbx, rax; jmp far [0x1100] to 0x23:0x40
        // 0x40: (32) call 0x80; dec edi; jnz 0x05; ud2
        // 0x80: inc rax; ret
        func call(from offset: Int) -> [UInt8] { [0xE8, UInt8(truncatingIfNeeded: 0x80 - offset - 5), 0, 0, 0] }
        func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
        machine.place([0xBF] + little(300, 4) + call(from: 5) + call(from: 10) + [0xEA] + little(start + 0x20, 4) + [0x33, 0])
        machine.place(call(from: 0x20) + [0x48, 0x01, 0xC3, 0xFF, 0x2C, 0x25] + little(0x1100, 4), at: 0x20)
        machine.put(0x1100, 0x23 << 32 | start + 0x40)
        machine.place(call(from: 0x40) + [0x4F, 0x75, UInt8(truncatingIfNeeded: 5 - 0x48), 0x0F, 0x0B], at: 0x40)
        machine.place([0x48, 0xFF, 0xC0, 0xC3], at: 0x80)
        let end = machine.run([0, 0, 0, 0, 0x1800, 0, 0, 0])
        #expect(end.vector == 6)
        #expect(end.state.rip == start + 0x48)
        #expect(end.state.gpr[0] == 300)
        #expect(end.state.gpr[3] == 300 * 301 / 2)
    }

    /// What 64-bit code leaves in the upper halves is gone, in addresses, too.
    @Test(arguments: [0, 1] as [UInt32]) func upperHalvesDoNotOutlastTheChange(threshold: UInt32) throws {
        let machine = try NarrowMachine(threshold: threshold)
        machine.put(0x1200, 77)
        machine.put(NarrowMachine.behind + 0x1200 - 0x1000, 99)
        let start = NarrowMachine.code
        func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
        // 0x00: (64) mov rsi, 1 << 32 | 0x1200; jmp far [0x1100] to 0x23:0x40
        machine.place([0x48, 0xBE] + little(1 << 32 | 0x1200, 8) + [0xFF, 0x2C, 0x25] + little(0x1100, 4))
        machine.put(0x1100, 0x23 << 32 | start + 0x40)
        // 0x40: (32) mov eax, [esi]; add eax, [esi + 4]; sub esi, 4; add ebx, [esi + 4]; jmp 0x33:0x60
        machine.place([0x8B, 0x06, 0x03, 0x46, 4, 0x83, 0xEE, 4, 0x03, 0x5E, 4, 0xEA] + little(start + 0x60, 4) + [0x33, 0], at: 0x40)
        // 0x60: (64) ud2
        machine.place([0x0F, 0x0B], at: 0x60)
        let end = machine.run([0, 0, 0, 0, 0x1800, 0, 0, 0], wide: true)
        #expect(end.vector == 6)
        #expect(end.state.gpr[0] == 77)
        #expect(end.state.gpr[3] == 77)
        #expect(end.state.gpr[6] == 0x11FC)
    }
}

/// A processor in user mode with pages at both ends of 32-bit addresses, and one behind them.
final class NarrowMachine: X86Environment {
    /// How a run ended: its first exception.
    struct End {
        var vector: UInt8
        var error: UInt64
        var state: X86State

        /// - Parameter flagsAt: flags count where all is done; translated code may lose those that nobody could read any more.
        func difference(_ other: End, flagsAt end: UInt64) -> String? {
            if (vector, error, state.rip) != (other.vector, other.error, other.state.rip) {
                return "vector \(vector) at \(String(state.rip, radix: 16)), translated \(other.vector) at \(String(other.state.rip, radix: 16))"
            }
            for n in 0..<16 where state.gpr[n] != other.state.gpr[n] { return "r\(n) \(String(state.gpr[n], radix: 16)), translated \(String(other.state.gpr[n], radix: 16))" }
            if vector == 14, state.cr2 != other.state.cr2 { return "CR2 \(String(state.cr2, radix: 16)), translated \(String(other.state.cr2, radix: 16))" }
            if state.rip == end, (state.rflags ^ other.state.rflags) & 0x8D5 != 0 {
                return "flags \(String(state.rflags, radix: 16)), translated \(String(other.state.rflags, radix: 16))"
            }
            return nil
        }
    }
    static let code: UInt64 = 0x1_0000
    /// A data segment that begins at 0x1000.
    static let based: UInt16 = 0x3B
    static let gsBase: UInt64 = 0x1800
    /// Of a loop, out of reach of what it does.
    static let counter: UInt32 = 0x1F_3450
    private static let size = 64 * 4096
    /// Physical: the first four pages, the last four of 4 GiB, two behind them, code.
    private static let (low, high, codePage) = (16, 20, 28)
    static let behind = UInt64(24 * 4096)
    private let guarded: GuardedMemory
    private var ram: UnsafeMutableRawPointer { guarded.bytes }
    private let memory: PhysicalMemory
    private(set) var core: X86Core!
    private var ticks = 0

    init(threshold: UInt32) throws {
        guarded = try GuardedMemory(size: Self.size)
        memory = PhysicalMemory(regions: [(0, UInt64(Self.size), guarded.bytes)])
        core = X86Core(memory: memory, environment: self)
        core.translationThreshold = threshold
        makePageTables()
        core.interruptRuns(every: 200_000)
        placePrelude()
        let descriptors: [UInt64] = [0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_1000_FFFF]
        for (n, raw) in descriptors.enumerated() { put(0x1_E000 + UInt64(0x20 + n * 8), raw) }
    }

    /// Physical; but what is below 0x4000 is the linear page of that address.
    func put(_ address: UInt64, _ value: UInt64) { ram.storeBytes(of: value, toByteOffset: Int(address) + (address < 0x4000 ? Self.low * 4096 : 0), as: UInt64.self) }
    private func makePageTables() {
        func table(_ at: Int, _ index: Int, _ value: Int) { ram.storeBytes(of: UInt64(value), toByteOffset: at + index * 8, as: UInt64.self) }
        table(0x1000, 0, 0x2007)
        for (gigabyte, directory) in [(0, 0x3000), (3, 0x4000), (4, 0x5000)] { table(0x2000, gigabyte, directory | 7) }
        table(0x3000, 0, 0x6007)
        table(0x4000, 511, 0x7007)
        table(0x5000, 0, 0x8007)
        for n in 0..<4 {
            table(0x6000, n, (Self.low + n) * 4096 | 7)
            table(0x7000, 508 + n, (Self.high + n) * 4096 | 7)
        }
        for n in 0..<2 { table(0x8000, n, Int(Self.behind) + n * 4096 | 7) }
        table(0x6000, 16, Self.codePage * 4096 | 5)
        table(0x6000, 30, 30 * 4096 | 3)
        table(0x6000, Int(Self.counter >> 12), 31 * 4096 | 7)
    }
    func place(_ code: [UInt8], at offset: Int = 0) {
        let start = Self.codePage * 4096 + offset
        for (n, byte) in code.enumerated() { ram.storeBytes(of: byte, toByteOffset: start + n, as: UInt8.self) }
        memory.noteDeviceWrite(UInt64(start), code.count)
    }
    /// 64-bit code that has the TLB know the pages behind 4 GiB, and goes on at the start.
    private func placePrelude() {
        func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
        // mov r8, 1 << 32; mov r9, [r8]; mov [r8], r9; mov r9, [r8 + 4096]; mov [r8 + 4096], r9; jmp far […]
        let touch = [0x4D, 0x8B, 0x08, 0x4D, 0x89, 0x08, 0x4D, 0x8B, 0x88, 0, 0x10, 0, 0, 0x4D, 0x89, 0x88, 0, 0x10, 0, 0] as [UInt8]
        place([0x49, 0xB8] + little(1 << 32, 8) + touch + [0xFF, 0x2C, 0x25] + little(UInt64(Self.counter) + 8, 4), at: Self.prelude)
    }
    private static let prelude = 0xC00

    /// - Parameter wide: begins as 64-bit code.
    func run(_ registers: [UInt64], wide: Bool = false, prelude: Bool = false) -> End {
        let wide = wide || prelude
        var state = X86State()
        (state.cr0, state.cr3, state.cr4, state.efer) = (0x8005_0033, 0x1000, 0x620, 0xD01)
        state.segments = (0..<6).map { index in
            let attributes: UInt16 = index == 1 ? (wide ? 0xAFB : 0xCFB) : 0xCF3
            return X86Segment(selector: index == 1 ? (wide ? 0x33 : 0x23) : 0x2B, base: index == 5 ? Self.gsBase : 0, limit: .max, attributes: attributes)
        }
        state.gdt = (0x1_E000, 0x3F)
        state.cpl = 3
        for n in 0..<8 { state.gpr[n] = registers[n] }
        for n in 8..<16 { state.gpr[n] = 0x1234_5678_9ABC_DEF0 &* UInt64(n) }
        state.rip = Self.code + UInt64(prelude ? Self.prelude : 0)
        var end: End?
        core.trace = { [unowned self] vector, rip, error in
            guard end == nil else { return }
            end = End(vector: vector, error: error, state: core.architecturalState)
            end?.state.rip = rip
        }
        core.architecturalState = state
        // What a sequence has hit all the same: the way into the next, and its counter.
        put(31 * 4096 + UInt64(Self.counter & 4095) + 8, 0x23 << 32 | Self.code)
        ticks = 0
        while core.run() == .cancelled, ticks < 3 { ticks += 1 }
        return end ?? End(vector: 255, error: 0, state: core.architecturalState)
    }
    func hasSameMemory(as other: NarrowMachine) -> Bool { memcmp(ram + Self.low * 4096, other.ram + Self.low * 4096, (Self.codePage - Self.low) * 4096) == 0 }
}

/// Code that goes through memory near the ends of addresses.
private struct NarrowGenerator {
    var random: Generator

    mutating func below(_ n: UInt64) -> UInt64 { random.next() % n }
    mutating func register() -> UInt64 {
        switch below(6) {
        case 0: return below(0x40)
        case 1: return 0xFFFF_FFFF - below(0x40)
        case 2: return 0xFFFF_F800 + below(0x800)
        case 3: return below(8)
        default: return below(0x3F00)
        }
    }
    private mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: random.next()) }
    private mutating func small() -> UInt8 { UInt8(bitPattern: Int8(truncatingIfNeeded: Int(below(49)) - 24)) }
    private func little(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }

    mutating func sequence() -> [UInt8] {
        // Few registers, so that operands share windows.
        let bases = [4, UInt8(below(8)), [3, 5, 6, 7][Int(below(4))]] as [UInt8]
        var code: [UInt8] = [0xC7, 0x05] + little(NarrowMachine.counter) + little(UInt32(1 + below(12)))
        let start = code.count
        for _ in 0..<2 + below(16) { code += instruction(bases) }
        if below(3) > 0 {
            code += [0xFF, 0x0D] + little(NarrowMachine.counter)  // dec dword […]
            code += [0x0F, 0x85] + little(UInt32(truncatingIfNeeded: start - code.count - 6))
        }
        return code + [0x0F, 0x0B]
    }
    private mutating func instruction(_ bases: [UInt8]) -> [UInt8] {
        let (base, register) = (bases[Int(below(3))], byte() & 7)
        switch below(16) {
        case 0, 1: return [0x50 | byte() & 7]
        case 2, 3: return register == 4 ? [0x5B] : [0x58 | register]
        case 4: return [0x6A, byte()]
        case 5: return [0x83, 0xC0 | base, small()]  // add
        case 6: return [0x83, 0xE8 | base, small()]  // sub
        case 7: return [below(2) == 0 ? 0x40 | base : 0x48 | base]  // inc, dec
        case 8: return base == 4 ? [0x8D, 0x64, 0x24, small()] : [0x8D, 0x40 | base << 3 | base, small()]  // lea of itself
        case 9:
            // With an index.
            let index = bases[Int(below(3))]
            if index == 4 || register == 4 { return [0x90] }
            return [below(2) == 0 ? 0x89 : 0x8B, 0x44 | register << 3, byte() & 0xC0 | index << 3 | base, small()]
        case 10: return [0x65, 0x03, 0x05 | register << 3] + little([0xFFFF_FFF8, 0x10, 0xFFFF_E800, 0xFFFF_FFFC][Int(below(4))])  // add register, gs:…
        case 11: return [below(2) == 0 ? 0xA1 : 0xA3] + little(below(2) == 0 ? 0xFFFF_F000 + UInt32(below(0xFFF)) : UInt32(below(0x3E00)))
        case 12: return below(2) == 0 ? [0xE8, 0, 0, 0, 0] : [0xE8, 2, 0, 0, 0, 0xEB, 1, 0xC3]  // call on; call a RET
        default:
            let opcode = [0x89, 0x8B, 0x01, 0x03, 0x88, 0x39, 0x31][Int(below(7))] as UInt8
            let written = register == 4 ? 0 : register
            return base == 4 ? [opcode, 0x44 | written << 3, 0x24, small()] : [opcode, 0x40 | written << 3 | base, small()]
        }
    }
}
