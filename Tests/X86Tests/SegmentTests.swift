import Testing
import X86

/// Segment registers and their bases, as an operating system reads and changes them between programs; interpreted and translated.
@Suite struct SegmentTests {
    private static let code = 0x100
    private static let stopped: [UInt8] = [0xF4]

    private static func machine(_ threshold: UInt32) -> TestMachine {
        let machine = TestMachine()
        machine.core.translationThreshold = threshold
        return machine
    }
    private static func run(_ machine: TestMachine, _ bytes: [UInt8], _ state: X86State) -> X86State {
        machine.put(bytes + stopped, at: code)
        machine.memory.noteDeviceWrite(TestMachine.base + UInt64(code), bytes.count + 1)
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        return machine.core.architecturalState
    }
    private static var start: X86State {
        var state = TestMachine.flatState
        state.rip = TestMachine.base + UInt64(code)
        return state
    }

    /// MOV of each segment register to each general one, 16, 32 and 64 bits wide. SDM vol. 2, MOV: the wider forms clear what is above.
    @Test(arguments: [0, 1] as [UInt32]) func selectorsAreRead(threshold: UInt32) {
        let machine = Self.machine(threshold)
        let selectors: [UInt16] = [0x1110, 8, 0x2220, 0xF338, 0x4440, 0x5550]
        for width in [2, 4, 8] {
            for segment in 0..<6 {
                var (bytes, state): ([UInt8], X86State) = ([], Self.start)
                for n in 0..<6 { state.segments[n].selector = selectors[n] }
                for n in 0..<16 {
                    state.gpr[n] = 0xAAAA_BBBB_CCCC_0000 | UInt64(n)
                    let rex: UInt8 = 0x40 | (width == 8 ? 8 : 0) | (n > 7 ? 1 : 0)
                    bytes += (width == 2 ? [0x66] : []) + [rex, 0x8C, 0xC0 | UInt8(segment) << 3 | UInt8(n & 7)]
                }
                state.rflags = 0x8D7
                let after = Self.run(machine, bytes, state)
                let selector = UInt64(selectors[segment])
                for n in 0..<16 { #expect(after.gpr[n] == (width == 2 ? 0xAAAA_BBBB_CCCC_0000 | selector : selector), "\(width) \(segment) \(n)") }
                #expect(after.rflags == state.rflags)
            }
        }
    }

    /// SWAPGS, with accesses through both bases around it.
    @Test(arguments: [0, 1] as [UInt32]) func basesAreSwapped(threshold: UInt32) {
        let machine = Self.machine(threshold)
        var state = Self.start
        (state.segments[5].base, state.kernelGSBase) = (TestMachine.base + 0x2000, TestMachine.base + 0x3000)
        machine.put(0x1111, at: 0x2010)
        machine.put(0x2222, at: 0x3010)
        func load(_ n: UInt8) -> [UInt8] { [0x65, 0x48, 0x8B, 0x04 | n << 3, 0x25, 0x10, 0, 0, 0] }  // mov r, gs:[16]
        let swap: [UInt8] = [0x0F, 0x01, 0xF8]
        // cmp eax, eax in front: flags go through it.
        let after = Self.run(machine, load(1) + [0x39, 0xC0] + swap + load(2) + swap + load(3) + swap + [0x0F, 0x94, 0xC0], state)
        #expect(after.gpr[1] == 0x1111 && after.gpr[2] == 0x2222 && after.gpr[3] == 0x1111 && after.gpr[0] & 0xFF == 1)
        #expect(after.segments[5].base == TestMachine.base + 0x3000 && after.kernelGSBase == TestMachine.base + 0x2000)
    }
    /// It belongs to the kernel.
    @Test(arguments: [0, 1] as [UInt32]) func programsDoNotSwapBases(threshold: UInt32) {
        let machine = Self.machine(threshold)
        var state = machine.withExceptions([13: 0x800])
        machine.put(Self.stopped, at: 0x800)
        // A task segment with a stack for the kernel, and code that a program runs: the handler is met with CPL 0.
        machine.put(TestMachine.base + 0x7000, at: 0x6004)
        state.tr = X86Segment(selector: 0x28, base: TestMachine.base + 0x6000, limit: 0x67, attributes: 0x8B)
        state.segments[1] = X86Segment(selector: 0x33, base: 0, limit: .max, attributes: 0xAFB)
        state.segments[2] = X86Segment(selector: 0x2B, base: 0, limit: .max, attributes: 0xCF3)
        (state.cpl, state.kernelGSBase) = (3, 0x1234)
        let after = Self.run(machine, [0x90, 0x0F, 0x01, 0xF8], state)
        #expect(after.rip == TestMachine.base + 0x801 && after.cpl == 0 && after.kernelGSBase == 0x1234)
        #expect(machine.bytes.load(fromByteOffset: 0x7000 - 40, as: UInt64.self) == state.rip + 1)
    }

    /// A base that WRMSR sets, and MOV of a null selector takes away: what follows in the same code sees each.
    @Test(arguments: [0, 1] as [UInt32]) func basesChangeOnTheWay(threshold: UInt32) {
        let machine = Self.machine(threshold)
        var state = Self.start
        for n in 0..<3 { machine.put(UInt64(n + 1) * 0x1111, at: 0x2010 + n * 0x1000) }
        state.segments[4].base = TestMachine.base + 0x2000
        (state.gpr[0], state.gpr[1], state.gpr[2]) = (TestMachine.base + 0x3000, 0xC000_0100, 0)
        state.gpr[7] = TestMachine.base + 0x4000
        func load(_ n: UInt8) -> [UInt8] { [0x64, 0x48, 0x8B, 0x04 | n << 3, 0x25, 0x10, 0, 0, 0] }  // mov r, fs:[16]
        let throughZero: [UInt8] = [0x64, 0x48, 0x8B, 0x47, 0x10]  // mov rax, fs:[rdi + 16]
        let after = Self.run(machine, load(3) + [0x0F, 0x30] + load(5) + [0x8E, 0xE2] + throughZero, state)
        #expect(after.gpr[3] == 0x1111 && after.gpr[5] == 0x2222 && after.gpr[0] == 0x3333)
        #expect(after.segments[4].base == 0)
    }
}
