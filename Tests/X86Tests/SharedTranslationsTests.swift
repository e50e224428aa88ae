import Foundation
import Testing
import X86

/// What one processor has translated, another takes over.
struct SharedTranslationsTests {
    /// Blocks that each add their number to RAX, go through memory at RDI and jump to the next one, a page of eight; then HLT.
    private static func chain(_ machine: TestMachine, blocks: Int) -> (state: X86State, sum: UInt64) {
        var (state, sum) = (TestMachine.flatState, UInt64(0))
        for number in 0..<blocks {
            let (place, next) = (place(number), number + 1 < blocks ? Self.place(number + 1) : 0xFF0)
            func immediate(_ value: Int) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
            // add rax, number; mov [rdi], rax; cmp byte [rdi], 1; adc rax, [rdi + 8]; jmp next
            let code: [UInt8] = [0x48, 0x05] + immediate(number) + [0x48, 0x89, 0x07, 0x80, 0x3F, 0x01, 0x48, 0x13, 0x47, 0x08]
            machine.put(code + [0xE9] + immediate(next - place - code.count - 5), at: place)
            sum &+= UInt64(number)
            if UInt8(truncatingIfNeeded: sum) < 1 { sum &+= 1 }
        }
        machine.put([0xF4], at: 0xFF0)
        state.rip = TestMachine.base + UInt64(place(0))
        return (state, sum)
    }
    private static func place(_ number: Int) -> Int { 0x4000 + number / 8 * 4096 + number % 8 * 0x110 }
    private static func run(_ core: X86Core, _ state: X86State, data: Int) -> UInt64 {
        var state = state
        state.gpr[7] = TestMachine.base + UInt64(data)
        core.architecturalState = state
        _ = core.run()
        return core.architecturalState.gpr[0]
    }
    private func pair() -> (machine: TestMachine, one: X86Core, two: X86Core)? {
        let machine = TestMachine()
        let two = X86Core(memory: machine.memory, environment: machine)
        guard let one = machine.core else { return nil }
        (one.translationThreshold, two.translationThreshold) = (1, 1)
        return (machine, one, two)
    }

    @Test func blocksAreTakenOverAtFirstSight() throws {
        let (machine, one, two) = try #require(pair())
        let (state, sum) = Self.chain(machine, blocks: 100)
        #expect(Self.run(one, state, data: 0x1000) == sum && one.takenOver == 0)
        #expect(Self.run(two, state, data: 0x2000) == sum)
        #expect(two.takenOver >= 100)
        // And they are linked with each other, as before.
        for _ in 0..<200 { #expect(Self.run(two, state, data: 0x2000) == sum) }
    }
    @Test func changedCodeIsNot() throws {
        let (machine, one, two) = try #require(pair())
        let (state, sum) = Self.chain(machine, blocks: 16)
        #expect(Self.run(one, state, data: 0x1000) == sum)
        // The first page's: one block adds another number.
        machine.put([7], at: Self.place(3) + 2)
        machine.memory.noteDeviceWrite(TestMachine.base + UInt64(Self.place(3)), 8)
        #expect(Self.run(two, state, data: 0x2000) == sum + 4)
        #expect((8..<16).contains(two.takenOver))
    }
    /// Whoever goes to a block through the jump cache is led from its first translation to the second: there, not where that was copied.
    @Test func codeThatItsOwnerHasTranslatedAgainIs() throws {
        let (machine, one, two) = try #require(pair())
        (one.watchesSupervisor, two.watchesSupervisor) = (true, true)
        // mov ecx, 1000; 1: call rbx; dec ecx; jnz 1b; mov eax, [rdi]; hlt
        machine.put([0xB9, 0xE8, 3, 0, 0, 0xFF, 0xD3, 0xFF, 0xC9, 0x75, 0xFA, 0x8B, 0x07, 0xF4], at: 0x4000)
        // add dword [rdi], 1; ret
        machine.put([0x83, 0x07, 1, 0xC3], at: 0x5000)
        var state = TestMachine.flatState
        (state.rip, state.gpr[3], state.gpr[4]) = (TestMachine.base + 0x4000, TestMachine.base + 0x5000, TestMachine.base + 0x3000)
        for turn in 1...3 {
            #expect(Self.run(one, state, data: 0x1000) == UInt64(1000 * turn))
            #expect(Self.run(two, state, data: 0x2000) == UInt64(1000 * turn))
        }
        #expect(two.takenOver > 0)
    }
    @Test func codeOfACacheThatWasEmptiedIsNot() throws {
        let (machine, one, two) = try #require(pair())
        let (state, sum) = Self.chain(machine, blocks: 16)
        #expect(Self.run(one, state, data: 0x1000) == sum)
        one.releaseCode()
        #expect(Self.run(two, state, data: 0x2000) == sum && two.takenOver == 0)
        // Now it is the other way round.
        #expect(Self.run(one, state, data: 0x1000) == sum && one.takenOver >= 16)
    }
    /// A third processor comes and goes, and takes what it has with it.
    @Test func codeOfAProcessorThatIsGoneIsNot() throws {
        let (machine, one, two) = try #require(pair())
        let (state, sum) = Self.chain(machine, blocks: 16)
        do {
            let third = X86Core(memory: machine.memory, environment: machine)
            third.translationThreshold = 1
            #expect(Self.run(third, state, data: 0x3000) == sum)
        }
        #expect(Self.run(one, state, data: 0x1000) == sum && one.takenOver == 0)
        #expect(Self.run(two, state, data: 0x2000) == sum && two.takenOver >= 16)
    }
    /// Processors take code over while others translate, empty their caches and rewrite code.
    @Test func allAtOnce() throws {
        let (machine, one, two) = try #require(pair())
        two.translationThreshold = 2
        let (state, sum) = Self.chain(machine, blocks: 800)
        let (wrong, memory) = (Counter(), machine.memory)
        DispatchQueue.concurrentPerform(iterations: 3) { n in
            guard n < 2 else {
                for turn in 0..<3000 {
                    memory.noteDeviceWrite(TestMachine.base + UInt64(Self.place(turn % 800)), 16)
                    usleep(100)
                }
                return
            }
            let core = [one, two][n]
            for turn in 0..<150 {
                if Self.run(core, state, data: 0x1000 * (n + 1)) != sum { wrong.add() }
                if turn % 7 == n { core.releaseCode() }
            }
        }
        #expect(wrong.value == 0)
        #expect(one.takenOver + two.takenOver > 1000)
    }
    private final class Counter: @unchecked Sendable {  // all behind the lock
        private let lock = NSLock()
        private var count = 0
        func add() { lock.withLock { count += 1 } }
        var value: Int { lock.withLock { count } }
    }
}
