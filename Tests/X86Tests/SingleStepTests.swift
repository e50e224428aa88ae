import Testing
import X86

/// The trap flag: an exception behind each instruction that began with it, and behind none other.
struct SingleStepTests {
    /// One handler counts traps, and adds up where they were.
    @Test(arguments: [0, 1, 32] as [UInt32]) func eachInstructionIsFollowedByATrap(threshold: UInt32) {
        let machine = TestMachine()
        machine.core.translationThreshold = threshold
        let start = TestMachine.base + 0x100
        // 0x00: push 0x302; popfq          TF from the next instruction on
        // 0x06: mov ecx, 3                 1
        // 0x0B: call 0x20                  3 times this and five there
        // 0x10: dec ecx; jnz 0x0B          6
        // 0x14: push 2; popfq; hlt         2, as POPF begins with TF
        // 0x20: inc rax; jmp 0x28; 0x28: nop; lea rdx, [rdx]; ret
        func code(_ at: Int, _ bytes: [UInt8]) { machine.put(bytes, at: 0x100 + at) }
        code(0x20, [0x48, 0xFF, 0xC0, 0xEB, 0x03, 0, 0, 0, 0x90, 0x48, 0x8D, 0x12, 0xC3])
        // The handler: inc r8; add r9, [rsp]; iretq
        code(0x80, [0x49, 0xFF, 0xC0, 0x4C, 0x03, 0x0C, 0x24, 0x48, 0xCF])
        let program: [UInt8] = [
            0x68, 0x02, 0x03, 0, 0, 0x9D, 0xB9, 3, 0, 0, 0, 0xE8, 0x10, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0x6A, 0x02, 0x9D, 0xF4,
        ]
        code(0, program)
        machine.memory.noteDeviceWrite(TestMachine.base + 0x100, 0x100)
        let state = machine.withExceptions([1: 0x180])
        for _ in 0..<3 {
            machine.core.architecturalState = state
            #expect(machine.core.run() == .halt)
            let end = machine.core.architecturalState
            #expect(end.gpr[0] == 3)
            let turn: [UInt64] = [0x20, 0x23, 0x28, 0x29, 0x2C, 0x10, 0x12]
            let traps: [UInt64] = [0x0B] + turn + [0x0B] + turn + [0x0B] + turn + [0x14, 0x16, 0x17]
            #expect(end.gpr[8] == UInt64(traps.count))
            #expect(end.gpr[9] == traps.reduce(0) { $0 &+ start &+ $1 })
            #expect(end.dr[6] >> 14 & 1 == 1)
        }
    }
}
