import Testing
import X86

/// A guest that waits in a loop gives the host's processor away now and then, and notices nothing of that.
struct PauseTests {
    @Test(arguments: [0, 1] as [UInt32]) func flagsOutliveIt(threshold: UInt32) {
        let machine = TestMachine()
        machine.core.translationThreshold = threshold
        // mov ecx, 20000; 1: cmp ecx, 10000; pause; adc eax, 0; dec ecx; jnz 1b; hlt
        let code: [UInt8] = [0xB9, 0x20, 0x4E, 0, 0, 0x81, 0xF9, 0x10, 0x27, 0, 0, 0xF3, 0x90, 0x83, 0xD0, 0, 0xFF, 0xC9, 0x75, 0xF1, 0xF4]
        #expect(machine.run(code) == .halt)
        #expect(machine.core.architecturalState.gpr[0] == 9999)
    }
}
