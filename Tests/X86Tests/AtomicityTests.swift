import Foundation
import Testing
import X86

/// Locked instructions of two processors on one operand, wherever that lies.
struct AtomicityTests {
    /// Where the TLB shows the operand as writable, and where it does not.
    enum Place: CaseIterable { case plain, besideCode, inTwoPages, watched }

    @Test(arguments: Place.allCases, [0, 32] as [UInt32]) func noUpdateIsLost(place: Place, threshold: UInt32) throws {
        let machine = TestMachine()
        let turns: UInt64 = 20_000
        // turn: lock inc qword [rdi]; mov eax, 2; lock xadd [rdi], rax
        // mov rax, [rdi]; again: lea rdx, [rax + 4]; lock cmpxchg [rdi], rdx; jnz again; dec rcx; jnz turn; hlt
        let code: [UInt8] = [
            0xF0, 0x48, 0xFF, 0x07, 0xB8, 2, 0, 0, 0, 0xF0, 0x48, 0x0F, 0xC1, 0x07, 0x48, 0x8B, 0x07, 0x48, 0x8D, 0x50, 0x04, 0xF0, 0x48, 0x0F, 0xB1, 0x17, 0x75, 0xF5,
            0x48, 0xFF, 0xC9, 0x75, 0xDF, 0xF4,
        ]
        machine.put(code, at: 0x100)
        let operand =
            switch place {
            case .plain, .watched: 0x3008
            case .besideCode: 0x808
            case .inTwoPages: 0x3FFD
            }
        var state = TestMachine.flatState
        state.gpr[1] = turns
        state.gpr[7] = TestMachine.base + UInt64(operand)
        state.rip = TestMachine.base + 0x100
        if place == .watched {
            // A breakpoint on another word of the page.
            state.dr[0] = TestMachine.base + 0x3100
            state.dr[7] = 0x000D_0403
        }
        let cores = [machine.core, X86Core(memory: machine.memory, environment: machine)].compactMap { $0 }
        let start = state
        DispatchQueue.concurrentPerform(iterations: cores.count) { n in
            cores[n].translationThreshold = threshold
            cores[n].architecturalState = start
            _ = cores[n].run()
        }
        #expect(cores.allSatisfy { $0.architecturalState.gpr[1] == 0 })
        #expect(machine.bytes.loadUnaligned(fromByteOffset: operand, as: UInt64.self) == 2 * 7 * turns)
    }
}
