import Foundation
import Testing
import X86

/// Edges of translated code: whoever goes round in a circle of them can be stopped, and whoever changes what lies behind one is obeyed.
struct EdgeTests {
    /// Where the code lies in the machine's memory.
    private static let start = 0x8000

    private static func put(_ machine: TestMachine, _ code: [UInt8], at offset: Int) {
        for (n, byte) in code.enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: offset + n, as: UInt8.self) }
        machine.memory.noteDeviceWrite(TestMachine.base + UInt64(offset), code.count)
    }
    private static func jump(from: Int, to: Int, opcode: UInt8 = 0xE9) -> [UInt8] {
        let distance = UInt32(truncatingIfNeeded: to - from - 5)
        return [opcode] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> ($0 * 8)) }
    }
    private static func begin(_ machine: TestMachine, at offset: Int) {
        var state = TestMachine.flatState
        state.rip = TestMachine.base + UInt64(offset)
        state.gpr[4] = TestMachine.base + 0x4_0000
        state.gpr[3] = TestMachine.base + 0x5_0000
        machine.core.architecturalState = state
    }

    /// What the two halves of a circle do: with flags that the other needs or not, in the host's register or not.
    static let halves: [(String, first: [UInt8], second: [UInt8])] = [
        ("flags that nobody needs", [0x48, 0x83, 0xC0, 1], [0x48, 0x83, 0xC2, 1]),  // add rax, 1; add rdx, 1
        ("flags that are needed", [0x48, 0xFF, 0xC0], [0x48, 0x83, 0xC2, 1]),  // inc rax; add rdx, 1
        ("flags in memory", [0x48, 0xFF, 0xC0], [0x48, 0x83, 0xC2, 1, 0x48, 0x8B, 0x33]),  // inc rax; add rdx, 1; mov rsi, [rbx]
        ("what is not translated", [0x48, 0xFF, 0xC0], [0x9D, 0x9C]),  // inc rax; popfq; pushfq
    ]
    /// No block leads to itself, and one edge of the circle goes backward: a jump, or a call whose return address is dropped.
    @Test(arguments: [0x40, 0x1040, 0x9040], [0, 1, 2, 3]) func aCircleIsLeft(distance: Int, kind: Int) async {
        // Edges of judged blocks to other pages name their targets, and within a page such blocks go on where they jump.
        for (isCall, judged) in [(false, false), (true, false), (false, true), (true, true)] {
            let machine = TestMachine()
            machine.core.watchesSupervisor = judged
            let (first, second) = (Self.start, Self.start + distance)
            let drop: [UInt8] = isCall ? [0x48, 0x8D, 0x64, 0x24, 8] : []  // lea rsp, [rsp + 8]
            let head = drop + Self.halves[kind].first
            Self.put(machine, head + Self.jump(from: first + head.count, to: second), at: first)
            let tail = Self.halves[kind].second
            Self.put(machine, tail + Self.jump(from: second + tail.count, to: first, opcode: isCall ? 0xE8 : 0xE9), at: second)
            Self.begin(machine, at: second)
            // Once while nothing is translated, then with everything linked.
            for wait in [0.0, 0.05, 0.05] {
                let stopper = Thread { [core = machine.core] in
                    Thread.sleep(forTimeInterval: wait)
                    core?.requestExit()
                }
                stopper.start()
                #expect(machine.core.run() == .cancelled)
            }
            #expect(machine.core.architecturalState.gpr[0] > 10_000)
        }
    }
    /// The function that is called rewrites what its caller does next, every fourth time.
    @Test(arguments: [0x100, 0x2000]) func aCalleeRewritesItsCaller(distance: Int) {
        let machine = TestMachine()
        // mov ecx, 4000; 1: call f; inc rax; nop; jmp 2f; nop; 2: dec ecx; jnz 1b; hlt
        let code: [UInt8] = [0xB9, 0xA0, 0x0F, 0, 0] + Self.jump(from: 5, to: distance, opcode: 0xE8) + [0x48, 0xFF, 0xC0, 0x90, 0xEB, 1, 0x90, 0xFF, 0xC9, 0x75, 0xF0, 0xF4]
        Self.put(machine, code, at: Self.start)
        // test cl, 3; jnz 1f; xor byte [rbx], 8 (inc becomes dec, and dec inc); 1: ret
        Self.put(machine, [0xF6, 0xC1, 3, 0x75, 3, 0x80, 0x33, 8, 0xC3], at: Self.start + distance)
        Self.begin(machine, at: Self.start)
        var state = machine.core.architecturalState
        state.gpr[3] = TestMachine.base + UInt64(Self.start) + 12
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        // Of each eight: four down, four up.
        #expect(machine.core.architecturalState.gpr[0] == 0)
        state = machine.core.architecturalState
        (state.rip, state.gpr[0]) = (TestMachine.base + UInt64(Self.start), 0)
        machine.bytes.storeBytes(of: 3, toByteOffset: Self.start + 1, as: UInt8.self)
        machine.bytes.storeBytes(of: 0, toByteOffset: Self.start + 2, as: UInt8.self)
        machine.memory.noteDeviceWrite(TestMachine.base + UInt64(Self.start), 8)
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        // Three times without a change: as it was left.
        #expect(machine.core.architecturalState.gpr[0] == 3)
    }
    /// A conditional jump is an edge of its own: what lies behind it changes between runs.
    @Test func whatABranchLeadsToIsRewritten() {
        let machine = TestMachine()
        // mov ecx, 600; 1: test cl, 1; jz 2f; inc rax; jmp 3f; 2: inc rdx; nop; 3: dec ecx; jnz 1b; hlt
        let code: [UInt8] = [0xB9, 0x58, 2, 0, 0, 0xF6, 0xC1, 1, 0x74, 5, 0x48, 0xFF, 0xC0, 0xEB, 4, 0x48, 0xFF, 0xC2, 0x90, 0xFF, 0xC9, 0x75, 0xEE, 0xF4]
        Self.put(machine, code, at: Self.start)
        Self.begin(machine, at: Self.start)
        for round in 0..<6 {
            var state = machine.core.architecturalState
            state.rip = TestMachine.base + UInt64(Self.start)
            machine.core.architecturalState = state
            #expect(machine.core.run() == .halt)
            state = machine.core.architecturalState
            #expect(state.gpr[0] == UInt64(300 * (round + 1)))
            #expect(state.gpr[2] == (round % 2 == 0 ? 300 : 0))
            // inc rdx becomes dec rdx, and back.
            Self.put(machine, [round % 2 == 0 ? 0xCA : 0xC2], at: Self.start + 17)
        }
    }
}
