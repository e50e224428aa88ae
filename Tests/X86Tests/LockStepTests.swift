import Testing
import X86

/// Lock-step: each translated block runs twice, and nothing differs.
struct LockStepTests {
    @Test func aLoopComparesAlikeAndComputesOnce() {
        let machine = TestMachine()
        var differences: [String] = []
        machine.core.runInLockStep { differences.append($0) }
        // 1: inc qword [rbx]; add rax, [rbx]; push rax; pop rdx; dec ecx; jnz 1b; hlt
        let code: [UInt8] = [0x48, 0xFF, 0x03, 0x48, 0x03, 0x03, 0x50, 0x5A, 0xFF, 0xC9, 0x75, 0xF4, 0xF4]
        let exit = machine.run(code, registers: [1: 1000, 3: TestMachine.base + 0x4000, 4: TestMachine.base + 0x8000])
        guard case .halt = exit else {
            Issue.record("ended with \(exit)")
            return
        }
        #expect(differences == [])
        #expect(machine.core.blocksCompared > 900)
        #expect(machine.bytes.load(fromByteOffset: 0x4000, as: UInt64.self) == 1000)
        #expect(machine.core.architecturalState.gpr[0] == 500_500)
        #expect(machine.core.architecturalState.gpr[2] == 500_500)
    }
}
