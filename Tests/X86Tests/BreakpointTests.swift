import Testing
import X86

/// Debug registers: breakpoints for data behind the instruction that hits them, for code before it, and none where there is none.
struct BreakpointTests {
    /// - Parameter threshold: executions after which blocks are translated; breakpoints are set when they are, too.
    @Test(arguments: [0, 1, 32] as [UInt32]) func debugRegistersRaiseExceptions(threshold: UInt32) {
        let machine = TestMachine()
        machine.core.translationThreshold = threshold
        let (start, data) = (TestMachine.base + 0x100, TestMachine.base + 0x6000)
        func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
        func code(_ at: Int, _ bytes: [UInt8]) { machine.put(bytes, at: 0x100 + at) }
        // RSI points to the data.
        // mov edi, 200; 1: mov [rsi + 0x12], al; mov [rsi + 0x14], al; mov eax, [rsi + 0x10]; mov rcx, [rsi + 0x20]
        // mov [rsi + 0x24], eax; mov [rsi + 0x1C], rax; inc dword [rsi + 0x11]; nop; dec edi; jnz 1b; hlt
        let body: [UInt8] = [
            0x88, 0x46, 0x12, 0x88, 0x46, 0x14, 0x8B, 0x46, 0x10, 0x48, 0x8B, 0x4E, 0x20, 0x89, 0x46, 0x24, 0x48, 0x89, 0x46, 0x1C, 0xFF, 0x46, 0x11, 0x90, 0xFF, 0xCF,
        ]
        code(0, [0xBF] + little(200, 4) + body + [0x75, UInt8(bitPattern: Int8(-body.count - 2)), 0xF4])
        let nop = start + 5 + UInt64(body.firstIndex(of: 0x90) ?? 0)
        // The handler: push rax; mov rax, dr6; and eax, 0x400F; add r9, rax; inc r8; mov eax, 0xFFFF0FF0; mov dr6, rax; pop rax
        // or dword [rsp + 16], RF; iretq
        code(0x80, [0x50, 0x0F, 0x21, 0xF0, 0x25, 0x0F, 0x40, 0, 0, 0x49, 0x01, 0xC1, 0x49, 0xFF, 0xC0, 0xB8] + little(0xFFFF_0FF0, 4))
        code(0x94, [0x0F, 0x23, 0xF0, 0x58, 0x81, 0x4C, 0x24, 0x10, 0, 0, 1, 0, 0x48, 0xCF])
        machine.memory.noteDeviceWrite(start, 0x100)
        /// Hits, and the sum of what DR6 said.
        func run(_ control: UInt64) -> (hits: UInt64, reasons: UInt64) {
            var state = machine.withExceptions([1: 0x180])
            state.gpr[6] = data
            state.dr = [data + 0x10, data + 0x20, nop, start + 5, 0, 0, 0xFFFF_0FF0, control]
            machine.core.architecturalState = state
            #expect(machine.core.run() == .halt)
            let end = machine.core.architecturalState
            #expect(end.gpr[7] == 0)
            return (end.gpr[8], end.gpr[9])
        }
        #expect(run(0x400) == (0, 0))
        // DR0: four bytes written. The byte at 0x12, and INC of what begins at 0x11.
        #expect(run(0x400 | 1 << 0 | 0b1101 << 16) == (400, 400))
        // DR1: eight bytes read or written.
        #expect(run(0x400 | 1 << 2 | 0b1011 << 20) == (600, 1200))
        // DR2: code; DR3 the first instruction of the loop, to which a jump leads.
        #expect(run(0x400 | 1 << 4) == (200, 800))
        #expect(run(0x400 | 1 << 4 | 1 << 6) == (400, 200 * 12))
        // The handler sets RF behind data, too: the NOP comes right after.
        #expect(run(0x400 | 1 << 0 | 0b1101 << 16 | 1 << 4) == (400, 400))
        // Set up, but not enabled.
        #expect(run(0x400 | 0b1101 << 16 | 0b1011 << 20) == (0, 0))
    }
    /// lock cmpxchg16b [rsi], whose upper half is watched; hlt. The handler: inc r8; iretq.
    @Test func allOfALockedOperandIsWatched() {
        let machine = TestMachine()
        machine.put([0xF0, 0x48, 0x0F, 0xC7, 0x0E, 0xF4], at: 0x100)
        machine.put([0x49, 0xFF, 0xC0, 0x48, 0xCF], at: 0x180)
        var state = machine.withExceptions([1: 0x180])
        state.gpr[6] = TestMachine.base + 0x6000
        state.dr[0] = TestMachine.base + 0x6008
        state.dr[7] = 0x0009_0402
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        #expect(machine.core.architecturalState.gpr[8] == 1)
    }
}
