import Testing
import X86

/// Translated code that goes from page to page, while what is behind an address changes.
struct CrossingEdgeTests {
    private static let base: UInt64 = 0x1340_0000
    /// Where the tests' page table has pages beyond the memory's own.
    private static let first = base + 0x1F_0000
    private static let second = base + 0x1E_0000
    private static let (adderPage, onePage, thousandPage) = (base + 0x2_0000, base + 0x2_1000, base + 0x2_2000)
    private static let pageTable = base + 0x4000

    /// Two address spaces: `first` is the adder, and the page behind it counts ones in one of them and thousands in the other;
    /// `second` is the adder, too, with thousands behind it.
    private static func machine(global: Bool) -> TestMachine {
        let machine = TestMachine(base: base)
        func put(_ address: UInt64, _ value: UInt64) { (machine.bytes + Int(address - base)).storeBytes(of: value, as: UInt64.self) }
        func put(_ address: UInt64, _ code: [UInt8]) {
            for (n, byte) in code.enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: Int(address - base) + n, as: UInt8.self) }
        }
        let bits: UInt64 = global ? 0x103 : 3
        for (root, behind) in [(base + 0x1000, onePage), (base + 0x5000, thousandPage)] {
            put(root, root + 0x1000 | 3)
            put(root + 0x1000, root + 0x2000 | 3)
            put(root + 0x2000 + (base >> 21) * 8, root + 0x3000 | 3)
            for page in 0..<256 as Range<UInt64> { put(root + 0x3000 + page * 8, base + page << 12 | bits) }
            for (linear, physical) in [(first, adderPage), (first + 0x1000, behind), (second, adderPage), (second + 0x1000, thousandPage)] {
                put(root + 0x3000 + (linear - base) >> 12 * 8, physical | bits)
            }
        }
        // mov ecx, 1000; 1: mov rdx, [rbx] (to be judged by); call +0x1003 (the next page, at 0x10); sub ecx, 1; jnz 1b; ret
        put(adderPage, [0xB9, 0xE8, 3, 0, 0, 0x48, 0x8B, 0x13, 0xE8, 3, 0x10, 0, 0, 0x83, 0xE9, 1, 0x75, 0xF3, 0xC3])
        // mov ecx, 1000; at 0xFFC: 1: nop; add rax, 1 or 0x301, which lies in both pages; dec ecx; jnz 1b; ret
        put(adderPage + 0xFF0, [0xB9, 0xE8, 3, 0, 0] + [UInt8](repeating: 0x90, count: 8) + [0x48, 0x05, 1])
        for (page, part) in [(onePage, 0), (thousandPage, 3)] { put(page, [UInt8(part), 0, 0, 0xFF, 0xC9, 0x75, 0xF5, 0xC3]) }
        put(onePage + 0x10, [0x48, 0xFF, 0xC0, 0xC3])  // inc rax; ret
        put(thousandPage + 0x10, [0x48, 0x05, 0xE8, 3, 0, 0, 0xC3])  // add rax, 1000; ret
        return machine
    }
    /// With edges that go through cells, and with those of judged blocks, which name their targets; nil where that makes a difference.
    private static func run(_ code: [UInt8], global: Bool) -> UInt64? {
        let result = run(code, global: global, judged: false)
        return run(code, global: global, judged: true) == result ? result : nil
    }
    private static func run(_ code: [UInt8], global: Bool, judged: Bool) -> UInt64? {
        let machine = machine(global: global)
        machine.core.watchesSupervisor = judged
        if judged { machine.core.translationThreshold = 1 }
        for (n, byte) in (code + [0xF4]).enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: 0x1_0000 + n, as: UInt8.self) }
        var state = TestMachine.flatState
        state.cr0 |= 0x8000_0000
        state.cr4 |= 0x80
        state.cr3 = base + 0x1000
        state.rip = base + 0x1_0000
        (state.gpr[4], state.gpr[8], state.gpr[14], state.gpr[10]) = (base + 0x4_0000, first, second, first + 0x1000)
        (state.gpr[9], state.gpr[13]) = (base + 0x1000, base + 0x5000)
        (state.gpr[11], state.gpr[12], state.gpr[15]) = (pageTable + 497 * 8, thousandPage | 3, onePage | 3)
        (state.gpr[3], state.gpr[5]) = (first + 0xFF0, second + 0xFF0)
        machine.core.architecturalState = state
        guard case .halt = machine.core.run() else { return nil }
        return machine.core.architecturalState.gpr[0]
    }
    private static let callFirst: [UInt8] = [0x41, 0xFF, 0xD0]  // call r8
    private static let callSecond: [UInt8] = [0x41, 0xFF, 0xD6]  // call r14
    private static let useFirstSpace: [UInt8] = [0x41, 0x0F, 0x22, 0xD9]  // mov cr3, r9
    private static let useSecondSpace: [UInt8] = [0x41, 0x0F, 0x22, 0xDD]  // mov cr3, r13
    private static let mapThousands: [UInt8] = [0x4D, 0x89, 0x23, 0x41, 0x0F, 0x01, 0x3A]  // mov [r11], r12; invlpg [r10]
    private static let mapOnes: [UInt8] = [0x4D, 0x89, 0x3B, 0x41, 0x0F, 0x01, 0x3A]  // mov [r11], r15; invlpg [r10]

    private static let callFirstEnd: [UInt8] = [0xFF, 0xD3]  // call rbx
    private static let callSecondEnd: [UInt8] = [0xFF, 0xD5]  // call rbp

    /// An instruction lies in two pages, and the second is another, mapped or written anew.
    @Test(arguments: [false, true]) func anInstructionsSecondHalfChanges(global: Bool) {
        var code: [UInt8] = []
        for _ in 0..<3 { code += Self.callFirstEnd + Self.mapThousands + Self.callFirstEnd + Self.callFirstEnd + Self.mapOnes }
        #expect(Self.run(code, global: global) == 3 * (1000 + 2 * 0x301 * 1000))
        code = []
        for _ in 0..<4 { code += Self.callFirstEnd + Self.callFirstEnd + Self.callSecondEnd }
        #expect(Self.run(code, global: global) == 4 * (2 * 1000 + 0x301 * 1000))
        // mov byte [r10], 1: adds 0x101; and back
        code = []
        for _ in 0..<3 { code += Self.callFirstEnd + Self.callFirstEnd + [0x41, 0xC6, 0x02, 1] + Self.callFirstEnd + [0x41, 0xC6, 0x02, 0] }
        #expect(Self.run(code, global: global) == 3 * (2 * 1000 + 0x101 * 1000))
        guard !global else { return }
        code = []
        for _ in 0..<4 { code += Self.callFirstEnd + Self.useSecondSpace + Self.callFirstEnd + Self.callFirstEnd + Self.useFirstSpace }
        #expect(Self.run(code, global: false) == 4 * (1000 + 2 * 0x301 * 1000))
    }

    @Test(arguments: [false, true]) func aMappingChanges(global: Bool) {
        var code: [UInt8] = []
        for _ in 0..<3 { code += Self.callFirst + Self.mapThousands + Self.callFirst + Self.callFirst + Self.mapOnes }
        #expect(Self.run(code, global: global) == 3 * (1000 + 2 * 1_000_000))
    }
    @Test func addressSpacesTakeTurns() {
        var code: [UInt8] = []
        for _ in 0..<4 { code += Self.callFirst + Self.useSecondSpace + Self.callFirst + Self.callFirst + Self.useFirstSpace }
        #expect(Self.run(code, global: false) == 4 * (1000 + 2 * 1_000_000))
    }
    @Test(arguments: [false, true]) func aPageIsInTwoPlaces(global: Bool) {
        var code: [UInt8] = []
        for _ in 0..<4 { code += Self.callFirst + Self.callFirst + Self.callSecond }
        #expect(Self.run(code, global: global) == 4 * (2 * 1000 + 1_000_000))
    }
    /// The code behind the edge is written anew between the calls.
    @Test(arguments: [false, true]) func theTargetIsRewritten(global: Bool) {
        // mov byte [r10 + 0x12], 0xC8 makes it dec eax's twin: inc rax becomes dec rax; and back to 0xC0
        let rewrite: [UInt8] = [0x41, 0xC6, 0x42, 0x12, 0xC8]
        let restore: [UInt8] = [0x41, 0xC6, 0x42, 0x12, 0xC0]
        var code: [UInt8] = []
        for _ in 0..<3 { code += Self.callFirst + Self.callFirst + rewrite + Self.callFirst + restore }
        #expect(Self.run(code, global: global) == 3 * 1000)
    }
    /// The same behind an indirect call, whose way in asks nothing about versions: 40 calls up, 20 down, 30 times.
    @Test(arguments: [false, true]) func anIndirectTargetIsRewritten(global: Bool) {
        // lea rdx, [r10 + 0x10]; mov esi, 30; 2: mov ecx, 40; 1: call rdx; dec ecx; jnz 1b
        var code: [UInt8] = [0x49, 0x8D, 0x52, 0x10, 0xBE, 30, 0, 0, 0, 0xB9, 40, 0, 0, 0, 0xFF, 0xD2, 0xFF, 0xC9, 0x75, 0xFA]
        // mov byte [r10 + 0x12], 0xC8 (dec rax); mov ecx, 20; 3: call rdx; dec ecx; jnz 3b
        code += [0x41, 0xC6, 0x42, 0x12, 0xC8, 0xB9, 20, 0, 0, 0, 0xFF, 0xD2, 0xFF, 0xC9, 0x75, 0xFA]
        // mov byte [r10 + 0x12], 0xC0 (inc rax); dec esi; jnz 2b
        code += [0x41, 0xC6, 0x42, 0x12, 0xC0, 0xFF, 0xCE, 0x75, 0xDC]
        #expect(Self.run(code, global: global) == 30 * 20)
    }
    /// A device rewrites more pages of code than are told apart, one of them not.
    @Test func aDeviceRewritesManyPages() {
        let machine = Self.machine(global: true)
        let pages = 0x5_0000..<0x5_0000 + 80 * 4096
        for page in stride(from: pages.lowerBound, to: pages.upperBound, by: 4096) {
            for (n, byte) in ([0x48, 0xFF, 0xC0, 0xC3] as [UInt8]).enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: page + n, as: UInt8.self) }
        }
        // mov esi, 40; 2: mov rdx, rbx; mov ecx, 80; 1: call rdx; add rdx, 4096; dec ecx; jnz 1b; dec esi; jnz 2b; hlt; and once more
        let code: [UInt8] = [
            0xBE, 40, 0, 0, 0, 0x48, 0x89, 0xDA, 0xB9, 80, 0, 0, 0, 0xFF, 0xD2, 0x48, 0x81, 0xC2, 0, 0x10, 0, 0, 0xFF, 0xC9, 0x75, 0xF3, 0xFF, 0xCE, 0x75, 0xE7, 0xF4, 0xEB, 0xDF,
        ]
        for (n, byte) in code.enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: 0x1_0000 + n, as: UInt8.self) }
        var state = TestMachine.flatState
        state.cr0 |= 0x8000_0000
        state.cr4 |= 0x80
        state.cr3 = Self.base + 0x1000
        (state.rip, state.gpr[4], state.gpr[3]) = (Self.base + 0x1_0000, Self.base + 0x4_0000, Self.base + 0x5_0000)
        machine.core.architecturalState = state
        for round in 0..<3 {
            guard case .halt = machine.core.run() else {
                Issue.record("the guest did not halt")
                return
            }
            // Up at first, then down but for one page, then up.
            #expect(machine.core.architecturalState.gpr[0] == [80 * 40, 2 * 40, 82 * 40][round])
            for page in stride(from: pages.lowerBound, to: pages.upperBound, by: 4096) where page != 0x6_0000 {
                machine.bytes.storeBytes(of: round == 0 ? 0xC8 : 0xC0, toByteOffset: page + 2, as: UInt8.self)
                machine.memory.noteDeviceWrite(Self.base + UInt64(page) + 2, 1)
            }
        }
    }
}
