import Testing
import X86

/// Short loops over arrays, in 64-bit user mode on our processor and on the host's: turns of one loop share checks of what they
/// access, which ends at the edges of pages.
@Suite(.serialized) struct LoopTests {
    @Test(arguments: [0, 1] as [UInt32]) func randomLoopsAgreeWithHost(threshold: UInt32) throws {
        let harness = try SequenceHarness(seed: DifferentialTests.seed, threshold: threshold)
        var generator = LoopGenerator(seed: DifferentialTests.seed)
        var mismatches = 0
        for number in 0..<SequenceTests.caseCount / 10 {
            let code = generator.loop()
            guard let problem = harness.run(code) else { continue }
            mismatches += 1
            print("loop \(number): \(problem): \(code.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined())")
            if mismatches > 20 { break }
        }
        #expect(mismatches == 0)
    }
}

/// `mov` of bases, index, stride and count; then a few accesses by them, steps, and a conditional jump back.
struct LoopGenerator {
    private var random: SystemOfOne
    init(seed: UInt64) { random = SystemOfOne(state: seed | 1) }

    private struct SystemOfOne {
        var state: UInt64
        mutating func next() -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state &* 0x2545_F491_4F6C_DD1D
        }
    }
    private mutating func below(_ limit: UInt64) -> UInt64 { (random.next() >> 20) % limit }
    private mutating func pick<T>(_ list: [T]) -> T { list[Int(below(UInt64(list.count)))] }

    /// Registers by role, so that no step changes another's: two bases, an index, a stride, what is loaded, the count.
    private let bases: [UInt8] = [3, 6, 8, 13]
    private let indices: [UInt8] = [1, 7, 0, 9]
    private let values: [UInt8] = [2, 14, 10]
    private static let stride: UInt8 = 5
    private static let count: UInt8 = 15

    private func move(_ register: UInt8, _ value: UInt64) -> [UInt8] {
        [0x48 | (register > 7 ? 1 : 0), 0xB8 | register & 7] + (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }
    mutating func loop() -> [UInt8] {
        let first = pick(bases)
        let second = pick(bases)
        let index = pick(indices)
        let scale = pick([0, 0, 0, 1, 2, 3] as [UInt8])
        // Near the end of a page or its beginning, seldom in the middle.
        func start(_ page: UInt64, _ offset: UInt64) -> UInt64 { SequenceHarness.data + page * 4096 + offset }
        var code = move(first, start(below(6), pick([0, 16, 3900, 4000, 4090]) &+ below(96)))
        code += move(second, start(below(6), pick([0, 16, 3900, 4000, 4090]) &+ below(96)))
        code += move(index, pick([0, 1, 5, 64, UInt64.max - 20, 0]) &+ below(8))
        code += move(Self.stride, pick([1, 2, 3, 8, 24, 100, 512, 600, 5000, UInt64.max, UInt64.max - 7, 1 << 61]))
        code += move(Self.count, 1 + below(40))
        for value in values { code += move(value, random.next()) }
        var body: [UInt8] = [0x85, 0xC0]  // test eax, eax: no flags come in
        for _ in 0..<1 + below(4) { body += access(pick([first, second]), index, scale) }
        for register in [first, second, index] where below(3) > 0 { body += step(register) }
        if below(4) == 0 { body += access(pick([first, second]), index, scale) }
        // sub r15, 1, or cmp eax, eax in front of the jump that DEC decides.
        body += [0x49, 0xFF, 0xCF]  // dec r15
        return code + body + [0x75, UInt8(bitPattern: Int8(-(body.count + 2)))]
    }
    private mutating func access(_ base: UInt8, _ index: UInt8, _ scale: UInt8) -> [UInt8] {
        let value = pick(values)
        let usesIndex = below(2) == 0
        let displacement = UInt8(truncatingIfNeeded: pick([0, 0, 1, 8, -8, -1, 16] as [Int]))
        func modRM(_ reg: UInt8) -> [UInt8] {
            usesIndex ? [0x44 | (reg & 7) << 3, scale << 6 | (index & 7) << 3 | base & 7, displacement] : [0x40 | (reg & 7) << 3 | base & 7, displacement]
        }
        let rex = (value > 7 ? 4 : 0) | (usesIndex && index > 7 ? 2 : 0) | (base > 7 ? 1 : 0) as UInt8
        switch below(7) {
        case 0: return [0x40 | rex, 0x0F, 0xB6] + modRM(value)  // movzx r32, byte
        case 1: return [0x40 | rex, 0x88] + modRM(value)  // mov byte, r8
        case 2: return [0x48 | rex, 0x8B] + modRM(value)
        case 3: return [0x48 | rex, 0x89] + modRM(value)
        case 4: return [0x40 | rex, 0x01] + modRM(value)  // add dword, r32
        case 5: return [0x48 | rex, 0x03] + modRM(value)
        default: return [0x40 | rex & 3, 0x0F, 0x10] + modRM(value & 7)  // movups xmm, [...]
        }
    }
    private mutating func step(_ register: UInt8) -> [UInt8] {
        let high: UInt8 = register > 7 ? 1 : 0
        switch below(5) {
        case 0: return [0x48 | high, 0x83, 0xC0 | register & 7, UInt8(truncatingIfNeeded: pick([1, 4, 8, -1, -8, 16, 100] as [Int]))]  // add
        case 1: return [0x48 | high, 0x83, 0xE8 | register & 7, UInt8(truncatingIfNeeded: pick([1, 4, 8, -1, -8, 16, 100] as [Int]))]  // sub
        case 2: return [0x48 | high, 0x01, 0xC0 | Self.stride << 3 | register & 7]  // add register, rbp
        case 3: return register & 7 == 4 ? [0x90] : [0x48 | high * 5, 0x8D, 0x40 | (register & 7) << 3 | register & 7, 12]  // lea register, [register + 12]
        default: return register == 0 ? [0x48, 0x05, 7, 0, 0, 0] : [0x48 | high, 0xFF, 0xC0 | register & 7]  // add rax, 7; inc
        }
    }
}
