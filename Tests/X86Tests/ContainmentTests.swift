import Foundation
import Testing
import X86

/// Guests that mean harm: garbage as code, wild pointers, arbitrary page tables, segment bases and privileges, interpreted
/// and translated, in `GuardedMemory`.
@Suite(.serialized) struct ContainmentTests {
    /// Seconds for each way of running; VZ_CONTAINMENT_SECONDS for a long run.
    private static var seconds: Double { ProcessInfo.processInfo.environment["VZ_CONTAINMENT_SECONDS"].flatMap { Double($0) } ?? 3 }

    /// With several processors, each guest runs on one after the other, which take each other's code over.
    @Test(arguments: [(0, 1), (1, 1), (3, 1), (1, 3)] as [(UInt32, Int)]) func garbageStaysInItsMemory(threshold: UInt32, processors: Int) throws {
        let machine = try HostileMachine(seed: DifferentialTests.seed &+ UInt64(threshold), threshold: threshold, processors: processors)
        let end = Date().addingTimeInterval(Self.seconds)
        var rounds = 0
        while Date() < end {
            machine.round()
            rounds += 1
        }
        print(
            "containment, threshold \(threshold), \(processors) processors: \(rounds) guests, \(machine.takenOver) blocks taken over, ended by \(machine.ends.sorted { $0.key < $1.key })"
        )
        #expect(rounds > 10)
    }
}

private final class HostileMachine: X86Environment {
    private static let size = 64 * 4096
    private let guarded: GuardedMemory
    private var ram: UnsafeMutableRawPointer { guarded.bytes }
    private let memory: PhysicalMemory
    private var cores: [X86Core] = []
    var takenOver: Int { cores.reduce(0) { $0 + $1.takenOver } }
    private var random: Generator
    private var generator: SequenceGenerator
    /// Of 32-bit code.
    private var narrow: SequenceGenerator
    private(set) var ends: [String: Int] = [:]

    init(seed: UInt64, threshold: UInt32, processors: Int) throws {
        guarded = try GuardedMemory(size: Self.size)
        memory = PhysicalMemory(regions: [(0, UInt64(Self.size), guarded.bytes)])
        random = Generator(state: seed)
        generator = SequenceGenerator(seed: seed, data: 0x8000, code: 0x4000)
        narrow = SequenceGenerator(seed: seed &+ 1, data: 0x8000, code: 0x4000, size: .bits32)
        for _ in 0..<processors {
            let core = X86Core(memory: memory, environment: self)
            core.translationThreshold = threshold
            core.interruptRuns(every: 500)
            cores.append(core)
        }
    }

    func round() {
        let isNarrow = random.next() & 3 == 0
        fill(isNarrow)
        memory.noteDeviceWrite(0, Self.size)
        let state = isNarrow ? narrowState() : state()
        for core in cores {
            core.architecturalState = state
            run(core)
        }
    }
    private func run(_ core: X86Core) {
        for _ in 0..<Int(random.next() % 4) + 1 {
            switch core.run() {
            case .halt: ends["halt", default: 0] += 1
            case .shutdown: ends["shutdown", default: 0] += 1
            case .cancelled: ends["cancelled", default: 0] += 1
            case .internalError: ends["not RAM", default: 0] += 1
            }
        }
    }

    private func fill(_ isNarrow: Bool) {
        for at in stride(from: 0, to: Self.size, by: 8) { ram.storeBytes(of: random.next(), toByteOffset: at, as: UInt64.self) }
        // Half of the pages hold what is at least code.
        for page in 16..<64 where random.next() & 1 == 0 {
            var at = page * 4096
            while at < (page + 1) * 4096 - 600 {
                var code = isNarrow ? narrow.sequence(count: 6) : generator.sequence(count: 6)
                if random.next() & 3 == 0 { code += changeOfSpace() }
                code.prefix(512).withUnsafeBytes { (ram + at).copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
                at += min(code.count, 512)
            }
        }
        // Page tables in pages 1 to 8: entries that mostly lead somewhere, in memory or out of it.
        for at in stride(from: 4096, to: 9 * 4096, by: 8) {
            let value = random.next()
            var entry = (value & 63) << 12 | value >> 20 & 7 | 1
            if value >> 60 == 0 { entry = value }
            if value >> 56 & 15 != 0, at < 4 * 4096 { entry = UInt64(1 + value % 8) << 12 | 7 }
            if value >> 52 & 63 == 0 { entry |= 0x80 }
            ram.storeBytes(of: entry, toByteOffset: at, as: UInt64.self)
        }
    }

    /// What kernels with process-context identifiers do, and for debuggers.
    private func changeOfSpace() -> [UInt8] {
        func little(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
        let value = random.next()
        if value >> 8 & 3 == 0 {
            // mov eax, kind; invpcid rax, […]
            return [0xB8, UInt8(value & 3), 0, 0, 0, 0x66, 0x0F, 0x38, 0x82, 0x04, 0x25] + little(value >> 16 & 0x3FFF0).prefix(4)
        }
        if value >> 8 & 15 == 1 {
            // mov rax, …; mov dr0, rax; mov eax, …; mov dr7, rax
            return [0x48, 0xB8] + little(wild()) + [0x0F, 0x23, 0xC0, 0xB8] + little(value >> 16 & 0xF03FF).prefix(4) + [0x0F, 0x23, 0xF8]
        }
        let root = (1 + (value >> 16) % 8) << 12
        return [0x48, 0xB8] + little(root | value & 3 | value & 1 << 63) + [0x0F, 0x22, 0xD8]  // mov rax, …; mov cr3, rax
    }
    private func wild() -> UInt64 {
        let value = random.next()
        switch value % 6 {
        case 0: return value
        case 1: return value & 0x3FFFF
        case 2: return UInt64(Self.size) &- (value >> 40 & 31)
        case 3: return value & 0x7FFF_FFFF_FFFF
        case 4: return UInt64(UInt(bitPattern: ram)) &+ (value >> 20 & 0xFFFFF) &- 0x4_0000
        default: return 1 << (value >> 8 & 63)
        }
    }
    /// A 32-bit program whose segments begin at 0: mostly, as its code may load others.
    private func narrowState() -> X86State {
        var state = state()
        (state.cr0, state.efer, state.cpl) = (0x8005_0033, 0xD01, 3)
        for n in 0..<8 { state.gpr[n] = random.next() & 1 == 0 ? state.gpr[n] & 0x3FFFF : UInt64(UInt32(truncatingIfNeeded: state.gpr[n])) }
        for n in 0..<4 { (state.segments[n].base, state.segments[n].attributes) = (0, n == 1 ? 0xCFB : 0xCF3) }
        state.rip = random.next() & 0x3FFFF
        return state
    }
    private func state() -> X86State {
        var state = X86State()
        for n in 0..<16 { state.gpr[n] = wild() }
        let mode = random.next() % 8
        let user = random.next() & 1 == 0
        state.cr0 = mode < 6 ? 0x8005_0033 : (mode == 6 ? 0x11 : 0x10)
        state.cr3 = UInt64(1 + random.next() % 8) << 12
        state.cr4 = 0x620 | random.next() & (mode < 6 ? 0x2_0090 : 0x90)
        state.efer = mode < 6 ? 0xD01 : 0
        state.cpl = mode < 6 && user ? 3 : 0
        let dpl: UInt16 = state.cpl == 3 ? 0x60 : 0
        state.segments = (0..<6).map { index in
            X86Segment(
                selector: index == 1 ? 0x30 | UInt16(state.cpl) : UInt16(truncatingIfNeeded: random.next()), base: index > 3 || mode > 5 ? wild() : 0, limit: .max,
                attributes: (index == 1 ? (mode < 6 ? 0xA9B : (mode == 6 ? 0xC9B : 0x09B)) : 0xC93) | dpl)
        }
        state.idtBase = random.next() & 0x3FFFF
        state.idtLimit = UInt32(random.next() & 0xFFF)
        state.gdt = (random.next() & 0x3FFFF, UInt32(random.next() & 0xFFFF))
        state.tr = X86Segment(selector: 0x40, base: wild(), limit: 0x67, attributes: 0x8B)
        state.rflags = 2 | random.next() & 0x4_0ED5 | (random.next() & 15 == 0 ? 0x100 : 0)
        state.lstar = wild() & 0x7FFF_FFFF_FFFF
        state.rip = mode < 6 ? (random.next() & 3 == 0 ? wild() : random.next() & 0x7FFF_FFFF_FFFF) : random.next() & 0x3FFFF
        if mode < 6, state.rip >> 47 != 0 { state.rip &= 0x7FFF_FFFF_FFFF }
        state.x87[0] = 0x7F
        state.x87[1] = 0x03
        return state
    }

    // MARK: doors

    func portRead(_ port: UInt16, size: Int) -> UInt32 { UInt32(truncatingIfNeeded: random.next()) }
    func memoryRead(_ address: UInt64, size: Int) -> UInt64 { random.next() }
    func readMSR(_ index: UInt32) -> UInt64? { random.next() & 1 == 0 ? nil : random.next() }
    func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool { value & 1 == 0 }
    func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) { (leaf, subleaf, 0, 0) }
}
