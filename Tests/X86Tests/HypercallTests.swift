import Testing
import X86

/// VMCALL and VMMCALL: the kernel's reach the board, a program's do not.
struct HypercallTests {
    @Test(arguments: [[0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9]] as [[UInt8]], [false, true]) func hypercallsAreTheKernels(code: [UInt8], isProgram: Bool) {
        let machine = TestMachine()
        // A program's HLT ends in the handler of #GP.
        machine.put([0xF4], at: 0x800)
        var state = machine.withExceptions([13: 0x800])
        (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2], state.gpr[6]) = (9, 1 << 40, 2, 3, 4)
        if isProgram {
            state.cpl = 3
            state.segments[1] = X86Segment(selector: 0x23, base: 0, limit: .max, attributes: 0xAFB)
            state.segments[2] = X86Segment(selector: 0x1B, base: 0, limit: .max, attributes: 0xCF3)
        }
        machine.put(code + [0xF4], at: 0x100)
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        let end = machine.core.architecturalState
        #expect(end.rip == TestMachine.base + (isProgram ? 0x801 : 0x104))
        #expect(end.gpr[0] == 0 &- (isProgram ? 1 : 95))
        #expect(machine.hypercalls == (isProgram ? [] : [[9, 1 << 40, 2, 3, 4]]))
    }
}
