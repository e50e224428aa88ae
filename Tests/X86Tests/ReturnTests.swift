import Testing
import X86

/// What IRET and far returns ask of the segments they load: a fault leaves everything as it was. And exceptions around loads of SS.
struct ReturnTests {
    private static let base = TestMachine.base
    private enum Selector {
        static let kernelCode: UInt64 = 0x08, kernelData: UInt64 = 0x10, userData: UInt64 = 0x1B, userCode: UInt64 = 0x23, readOnly: UInt64 = 0x2B, absent: UInt64 = 0x33
        static let absentCode: UInt64 = 0x3B
    }
    /// Handlers of #DB, #BP, #NP, #SS, #GP: the vector, and what the frame says, into registers.
    private func machine() -> (TestMachine, X86State) {
        let machine = TestMachine()
        for vector in [1, 3, 11, 12, 13] {
            // mov r8d, vector; pop r9 (what has an error code: that first, into r10); pop r11; hlt
            let code: [UInt8] = [0x41, 0xB8, UInt8(vector), 0, 0, 0] + (vector > 10 ? [0x41, 0x5A] : []) + [0x41, 0x59, 0x41, 0x5B, 0xF4]
            machine.put(code, at: Self.handler(vector))
        }
        let others: [UInt64] = [0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F100_0000_FFFF, 0x00CF_7300_0000_FFFF, 0x00AF_7B00_0000_FFFF]
        let handlers = Dictionary(uniqueKeysWithValues: [1, 3, 11, 12, 13].map { ($0, Self.handler($0)) })
        return (machine, machine.withExceptions(handlers, descriptors: others))
    }
    private static func handler(_ vector: Int) -> Int { 0x800 + 16 * vector }
    private func run(_ machine: TestMachine, _ state: X86State, _ code: [UInt8]) -> X86State {
        machine.put(code, at: 0x100)
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        return machine.core.architecturalState
    }

    struct BadReturn: Sendable {
        var cs: UInt64, ss: UInt64, vector: UInt64, error: UInt64
    }
    @Test(arguments: [
        BadReturn(cs: Selector.userCode, ss: Selector.readOnly, vector: 13, error: 0x28),
        BadReturn(cs: Selector.userCode, ss: Selector.absent, vector: 12, error: 0x30),
        BadReturn(cs: Selector.userCode, ss: Selector.kernelData, vector: 13, error: 0x10),
        BadReturn(cs: Selector.userCode, ss: Selector.userCode, vector: 13, error: 0x20),
        BadReturn(cs: Selector.userCode, ss: 0, vector: 13, error: 0),
        BadReturn(cs: Selector.userCode, ss: 0x1003, vector: 13, error: 0x1000),
        BadReturn(cs: Selector.absentCode, ss: Selector.userData, vector: 11, error: 0x38),
        BadReturn(cs: Selector.userData, ss: Selector.userData, vector: 13, error: 0x18),
        BadReturn(cs: Selector.kernelCode, ss: Selector.userData, vector: 13, error: 0x18),
        BadReturn(cs: 0, ss: Selector.userData, vector: 13, error: 0),
    ]) func whatCannotBeLoadedFaultsBeforeAnythingChanges(bad: BadReturn) {
        for isFar in [false, true] where !isFar || bad.cs & 3 == 3 {
            let (machine, start) = machine()
            var state = start
            let frame = isFar ? [Self.base + 0x200, bad.cs, Self.base + 0x7000, bad.ss] : [Self.base + 0x200, bad.cs, 2, Self.base + 0x7000, bad.ss]
            state.gpr[4] -= 64
            for (n, value) in frame.enumerated() { machine.put(value, at: 0x8000 - 64 + 8 * n) }
            let end = run(machine, state, [0x48, isFar ? 0xCB : 0xCF])
            #expect(end.gpr[8] == bad.vector)
            #expect(end.gpr[10] == bad.error)
            #expect(end.gpr[9] == state.rip)
            #expect(end.gpr[11] == Selector.kernelCode)
            #expect(end.segments[2].selector == UInt16(Selector.kernelData))
            // Error code, RIP and CS popped: what is left is the frame's rest below the old stack pointer.
            #expect(end.gpr[4] == (state.gpr[4] & ~15) - 48 + 24)
        }
    }
    @Test func nestedTasksDoNotReturn() {
        let (machine, start) = machine()
        var state = start
        state.rflags |= 1 << 14
        #expect(run(machine, state, [0x48, 0xCF]).gpr[8] == 13)
    }
    @Test func kernelsReturnToThemselvesWithoutAStackSegment() {
        let (machine, start) = machine()
        var state = start
        state.gpr[4] -= 64
        for (n, value) in [Self.base + 0x200, Selector.kernelCode, 2, Self.base + 0x7000, 0].enumerated() {
            machine.put(value, at: 0x8000 - 64 + 8 * n)
        }
        machine.put([0xF4], at: 0x200)
        let end = run(machine, state, [0x48, 0xCF])
        #expect(end.gpr[8] == 0)
        #expect(end.gpr[4] == Self.base + 0x7000)
        #expect(end.rip == Self.base + 0x201)
    }

    // MARK: loads of SS

    /// INT1 raises its exception whatever the gate's privilege, and tells no reason.
    @Test func int1IsADebugException() {
        let (machine, state) = machine()
        let end = run(machine, state, [0xF1])
        #expect(end.gpr[8] == 1)
        #expect(end.gpr[9] == state.rip + 1)
        #expect(end.dr[6] & 0xE00F == 0)
    }
    /// push 0x302; popfq; mov ss, eax; nop; nop: one trap, behind the first NOP.
    @Test func noTrapFollowsALoadOfSS() {
        let (machine, start) = machine()
        var state = start
        state.gpr[0] = Selector.kernelData
        let end = run(machine, state, [0x68, 0x02, 0x03, 0, 0, 0x9D, 0x8E, 0xD0, 0x90, 0x90, 0xF4])
        #expect(end.gpr[8] == 1)
        #expect(end.gpr[9] == state.rip + 9)
        #expect(end.dr[6] & 0xE00F == 1 << 14)
    }
    /// mov ss, [rdi], which is watched; then a NOP, INT3, INT1: the exception waits for their end.
    @Test(arguments: [(0x90, 3, 1), (0xCC, 0x800 + 0x30 - 0x100, 1), (0xF1, 3, 1)] as [(UInt8, Int64, UInt64)])
    func aBreakpointAtALoadOfSSWaits(next: UInt8, at: Int64, vector: UInt64) {
        let (machine, start) = machine()
        var state = start
        machine.put(Selector.kernelData, at: 0x3000)
        state.gpr[7] = Self.base + 0x3000
        state.dr[0] = Self.base + 0x3000
        state.dr[7] = 0x0007_0402
        let end = run(machine, state, [0x8E, 0x17, next, 0x90, 0xF4])
        #expect(end.gpr[8] == vector)
        #expect(end.gpr[9] == state.rip &+ UInt64(bitPattern: at))
        #expect(end.dr[6] & 0xE00F == 1)
    }
}
