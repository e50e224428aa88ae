import Testing
import X86

/// XSAVE and its kin where the area lies across two pages, as a kernel's own may: the TLB knows each page for itself.
struct ExtendedStateTests {
    private static let sample: [UInt8] = (0..<512).map { UInt8(truncatingIfNeeded: $0 &* 73 &+ 11) }

    /// Runs `save` with RBX at an area that begins `offset` bytes into a page, then `restore` from there into a state of zeroes.
    /// Both several times: whether the TLB knows the pages or not.
    private static func area(_ offset: Int, save: [UInt8], restore: [UInt8]) -> (area: [UInt8], before: X86State, after: X86State) {
        let machine = TestMachine()
        let first = 0x8000 + offset
        func state(_ vectors: [UInt8]) -> X86State {
            var state = TestMachine.flatState
            state.cr4 |= 0x40000  // OSXSAVE
            state.xcr0 = 7
            state.rip = TestMachine.base + 0x100
            state.gpr[0] = 7
            state.gpr[3] = TestMachine.base + UInt64(first)
            state.xmm = Array(vectors[..<256])
            state.ymmHigh = Array(vectors[256...])
            return state
        }
        func run(_ code: [UInt8], _ start: X86State) -> X86State {
            let code = code + code + code + [0xF4]
            for (n, byte) in code.enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: 0x100 + n, as: UInt8.self) }
            machine.memory.noteDeviceWrite(TestMachine.base + 0x100, code.count)
            machine.core.architecturalState = start
            #expect(machine.core.run() == .halt)
            return machine.core.architecturalState
        }
        let before = run(save, state(Self.sample))
        let area = (0..<832).map { machine.bytes.load(fromByteOffset: first + $0, as: UInt8.self) }
        return (area, before, run(restore, state([UInt8](repeating: 0, count: 512))))
    }

    @Test func savedAcrossPages() {
        let (save, restore): ([UInt8], [UInt8]) = ([0x48, 0x0F, 0xAE, 0x23], [0x48, 0x0F, 0xAE, 0x2B])  // xsave64, xrstor64 [rbx]
        let inOnePage = Self.area(0, save: save, restore: restore)
        #expect(Array(inOnePage.area[160..<416]) == Array(Self.sample[..<256]))
        for offset in stride(from: 4096 - 896, through: 4096, by: 64) {
            let result = Self.area(offset, save: save, restore: restore)
            #expect(result.area == inOnePage.area, "\(offset)")
            #expect(result.after.xmm == result.before.xmm && result.after.ymmHigh == result.before.ymmHigh, "\(offset)")
            #expect(result.after.x87 == result.before.x87 && result.after.mxcsr == result.before.mxcsr, "\(offset)")
        }
    }
    @Test func savedTheOldWayAcrossPages() {
        let (save, restore): ([UInt8], [UInt8]) = ([0x48, 0x0F, 0xAE, 0x03], [0x48, 0x0F, 0xAE, 0x0B])  // fxsave64, fxrstor64 [rbx]
        let inOnePage = Self.area(0, save: save, restore: restore)
        for offset in stride(from: 4096 - 544, through: 4096, by: 16) {
            let result = Self.area(offset, save: save, restore: restore)
            #expect(result.area == inOnePage.area, "\(offset)")
            #expect(result.after.xmm == result.before.xmm, "\(offset)")
        }
    }
    /// What is as FNINIT leaves it is not said to be in use, and comes back so: registers that were loaded since are not seen again.
    @Test func anUnusedUnitIsTold() {
        let machine = TestMachine()
        var state = TestMachine.flatState
        state.cr4 |= 0x40000  // OSXSAVE
        (state.xcr0, state.rip) = (7, TestMachine.base + 0x100)
        (state.gpr[0], state.gpr[3], state.gpr[6]) = (7, TestMachine.base + 0x8000, TestMachine.base + 0x9000)
        let (save, saveSecond, restore): ([UInt8], [UInt8], [UInt8]) = ([0x48, 0x0F, 0xAE, 0x23], [0x48, 0x0F, 0xAE, 0x26], [0x48, 0x0F, 0xAE, 0x2B])
        // xsave64 [rbx]; fldpi; xsave64 [rsi]; xrstor64 [rbx]; xsave64 [rbx + 0x2000]
        machine.put(save + [0xD9, 0xEB] + saveSecond + restore + [0x48, 0x0F, 0xAE, 0xA3, 0, 0x20, 0, 0] + [0xF4], at: 0x100)
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        func area(_ offset: Int) -> [UInt8] { (0..<832).map { machine.bytes.load(fromByteOffset: offset + $0, as: UInt8.self) } }
        let (unused, used, after) = (area(0x8000), area(0x9000), area(0xA000))
        #expect(used[512] & 1 == 1 && used[4] == 0x80 && used[32..<42].contains { $0 != 0 })
        #expect(unused[0] == 0x7F && unused[1] == 3 && unused[32..<160].allSatisfy { $0 == 0 })
        #expect(after == unused)
        #expect(machine.core.architecturalState.x87[32..<160].allSatisfy { $0 == 0 })
    }
}
