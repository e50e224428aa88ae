import TestSupport
import Testing
import X86

/// A kernel and its programs in two address spaces: what they run is what the page tables said when the TLB was last emptied, whatever
/// the core keeps over that.
struct AddressSpaceTests {
    private static let base: UInt64 = 0x1340_0000
    /// Where the kernel runs: global pages of the upper half. The page behind the first holds its function.
    private static let kernel: UInt64 = 0xFFFF_FFFF_8000_0000
    /// The program's code, and behind it the page whose function it calls.
    private static let program = base + 0x1F_0000
    private static let (roots, kernelTables) = ((base + 0x1000, base + 0x5000), base + 0x9000)
    private static let (kernelPage, programPage, onePage, thousandPage) = (base + 0x1_0000, base + 0x2_0000, base + 0x2_1000, base + 0x2_2000)

    private static let (large, directory) = (UInt64(1 << 30), base + 0xC000)

    private static func little(_ value: UInt64) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    private static func machine(_ code: [UInt8]) -> TestMachine {
        let machine = TestMachine(base: base)
        func put(_ address: UInt64, _ value: UInt64) { (machine.bytes + Int(address - base)).storeBytes(of: value, as: UInt64.self) }
        func put(_ address: UInt64, _ code: [UInt8]) {
            for (n, byte) in code.enumerated() { machine.bytes.storeBytes(of: byte, toByteOffset: Int(address - base) + n, as: UInt8.self) }
        }
        for root in [roots.0, roots.1] {
            put(root, root + 0x1000 | 7)
            put(root + 511 * 8, kernelTables | 3)
            put(root + 0x1000, root + 0x2000 | 7)
            put(root + 0x2000 + (base >> 21) * 8, root + 0x3000 | 7)
            for page in 0..<256 as Range<UInt64> { put(root + 0x3000 + page * 8, base + page << 12 | 7) }
            put(root + 0x3000 + (program - base) >> 12 * 8, programPage | 7)
            put(root + 0x3000 + (program + 0x1000 - base) >> 12 * 8, (root == roots.0 ? onePage : thousandPage) | 7)
        }
        // The same pages once more, in one large page, and page by page with another function behind the program.
        put(roots.0 + 0x1000 + large >> 30 * 8, directory | 7)
        put(directory, base | 0x87)
        for page in 0..<256 as Range<UInt64> { put(directory + 0x1000 + page * 8, base + page << 12 | 7) }
        put(directory + 0x1000 + (onePage - base) >> 12 * 8, thousandPage | 7)
        put(kernelTables + 510 * 8, kernelTables + 0x1000 | 3)
        put(kernelTables + 0x1000, kernelTables + 0x2000 | 3)
        put(kernelTables + 0x2000, kernelPage | 0x103)
        put(kernelTables + 0x2008, onePage | 0x103)
        // mov ecx, 600; 1: call the next page, at 0x10; call it at 0x40; call 0xFFD; dec ecx; jnz 1b; syscall
        put(
            programPage,
            [0xB9, 0x58, 2, 0, 0, 0x90, 0x90, 0xE8, 4, 0x10, 0, 0, 0xE8, 0x2F, 0x10, 0, 0, 0xE8, 0xE7, 0xF, 0, 0, 0xFF, 0xC9, 0x75, 0xED, 0x0F, 0x05])
        // At 0xFFD: add rax, 2 or 0x102, which lies in both pages; ret
        put(programPage + 0xFFD, [0x48, 0x05, 2])
        // At 0x200: writes BL into what the function at 0x40 of the page with the thousands adds; syscall
        put(programPage + 0x200, [0x88, 0x1C, 0x25] + little(thousandPage + 0x42) + [0x0F, 0x05])
        put(onePage, [0, 0, 0, 0xC3])
        put(thousandPage, [1, 0, 0, 0xC3])
        for place in [0x10, 0x40] as [UInt64] {
            put(onePage + place, [0x48, 0xFF, 0xC0, 0xC3])  // inc rax; ret
            put(thousandPage + place, [0x48, 0x05, 0xE8, 3, 0, 0, 0xC3])  // add rax, 1000; ret
        }
        put(kernelPage, code)
        return machine
    }

    /// The kernel's code, and what it makes of RAX.
    private struct Script {
        var code: [UInt8] = [0xEB, 2, 0xFF, 0xE2]  // jmp over: jmp rdx, where SYSCALL goes
        var sum: UInt64 = 0
        var isSecond = false
        /// Of the page with the thousands, at 0x10 and 0x40.
        var thousands: (UInt64, UInt64) = (1000, 1000)
        /// Whether it lies behind the program in the first space, and behind the kernel.
        var programHasThousands = false
        var kernelHasThousands = false
        /// Whether the spaces have process-context identifiers, 1 and 2.
        var isIdentified = false
        /// What is known of the first space is not so any more, and the processor has not been told.
        private var firstIsStale = false

        mutating func runProgram() {
            // lea rdx, [rip + 12]; mov rcx, r8; mov r11d, 2; sysretq
            code += [0x48, 0x8D, 0x15, 12, 0, 0, 0, 0x4C, 0x89, 0xC1, 0x41, 0xBB, 2, 0, 0, 0, 0x48, 0x0F, 0x07]
            sum &+= 600 * (isSecond || programHasThousands ? thousands.0 + thousands.1 + 0x102 : 4)
        }
        mutating func runKernel() {
            code += [0xBB, 0x58, 2, 0, 0]  // mov ebx, 600; 1: call the next page, at 0x10; dec ebx; jnz 1b
            let distance = 0x1010 - (code.count + 5)
            code += [0xE8, UInt8(distance & 0xFF), UInt8(distance >> 8), 0, 0, 0xFF, 0xCB, 0x75, 0xF7]
            sum &+= 600 * (kernelHasThousands ? thousands.0 : 1)
        }
        mutating func use(second: Bool) {
            code += [0x41, 0x0F, 0x22, second ? 0xDD : 0xD9]  // mov cr3, r13 or r9
            isSecond = second
            if !second { firstIsStale = false }
        }
        /// What is known of the other space stays.
        mutating func come(second: Bool) {
            guard isIdentified, second || !firstIsStale else { return use(second: second) }
            code += [0x4C, 0x89, second ? 0xEB : 0xCB, 0x48, 0x0F, 0xBA, 0xEB, 63, 0x0F, 0x22, 0xDB]  // mov rbx, r13 or r9; bts rbx, 63; mov cr3, rbx
            isSecond = second
        }
        /// INVPCID of one of four kinds, for the first space, and the page behind the program.
        private mutating func invalidate(_ kind: UInt8) {
            let descriptor = AddressSpaceTests.base + 0x4_0100
            code += [0x48, 0xC7, 0x04, 0x25] + AddressSpaceTests.little(descriptor) + [1, 0, 0, 0]  // mov qword [descriptor], 1
            code += [0x4C, 0x89, 0x14, 0x25] + AddressSpaceTests.little(descriptor + 8)  // mov [descriptor + 8], r10
            code += [0xBB, kind, 0, 0, 0, 0x66, 0x0F, 0x38, 0x82, 0x1C, 0x25] + AddressSpaceTests.little(descriptor)  // mov ebx, kind; invpcid rbx, [descriptor]
        }
        mutating func togglePGE() {
            // mov rbx, cr4; and bl, 0x7F; mov cr4, rbx; or bl, 0x80; mov cr4, rbx
            code += [0x0F, 0x20, 0xE3, 0x80, 0xE3, 0x7F, 0x0F, 0x22, 0xE3, 0x80, 0xCB, 0x80, 0x0F, 0x22, 0xE3]
        }
        /// The program's function is another in the first space, and the TLB is told in one of the ways there are.
        mutating func remapProgram(_ generator: inout Generator) {
            programHasThousands.toggle()
            code += [0x4C, 0x89, programHasThousands ? 0x27 : 0x3F]  // mov [rdi], r15 or r12
            if isSecond, !isIdentified { return }  // told by the way back
            let way = generator.next() % 8
            if isIdentified, way < 4 { return invalidate(UInt8(way)) }
            if isSecond { return firstIsStale = true }
            switch generator.next() % 3 {
            case 0: code += [0x41, 0x0F, 0x01, 0x3A]  // invlpg [r10]
            case 1: use(second: false)
            default: togglePGE()
            }
        }
        mutating func remapKernel(_ generator: inout Generator) {
            kernelHasThousands.toggle()
            code += [0x49, 0x8D, 0x9E, 0, kernelHasThousands ? 0x10 : 0, 0, 0, 0x48, 0x89, 0x5D, 0]  // lea rbx, [r14 + …]; mov [rbp], rbx
            if generator.next() % 2 == 0 { code += [0x0F, 0x01, 0x3E] } else { togglePGE() }  // invlpg [rsi]
        }
        /// The function at 0x10 or 0x40 of the page with the thousands adds something else.
        mutating func rewrite(_ generator: inout Generator) {
            let (isFirst, value) = (generator.next() % 2 == 0, UInt8(truncatingIfNeeded: generator.next()))
            if isFirst { thousands.0 = 3 << 8 | UInt64(value) } else { thousands.1 = 3 << 8 | UInt64(value) }
            code += [0xC6, 0x04, 0x25] + AddressSpaceTests.little(AddressSpaceTests.thousandPage + (isFirst ? 0x12 : 0x42)) + [value]  // mov byte […], value
        }
        /// A program writes the one at 0x40.
        mutating func rewriteAsProgram(_ generator: inout Generator) {
            let value = UInt8(truncatingIfNeeded: generator.next())
            thousands.1 = 3 << 8 | UInt64(value)
            // mov bl, value; lea rdx, [rip + 16]; lea rcx, [r8 + 0x200]; mov r11d, 2; sysretq
            code += [0xB3, value, 0x48, 0x8D, 0x15, 16, 0, 0, 0, 0x49, 0x8D, 0x88, 0, 2, 0, 0, 0x41, 0xBB, 2, 0, 0, 0, 0x48, 0x0F, 0x07]
        }
    }
    private static func run(_ script: Script, inLargePage: Bool = false) -> UInt64? {
        let machine = machine(script.code + [0xF4])
        var state = state(kernel)
        if script.isIdentified {
            state.cr4 |= 0x2_0000
            (state.gpr[9], state.gpr[13], state.cr3) = (roots.0 | 1, roots.1 | 2, roots.0 | 1)
        }
        if inLargePage {
            (state.gpr[8], state.gpr[10]) = (large + programPage - base, large)
            (state.gpr[7], state.gpr[12]) = (directory, directory + 0x1000 | 7)
        }
        machine.core.architecturalState = state
        guard case .halt = machine.core.run() else { return nil }
        return machine.core.architecturalState.gpr[0]
    }
    private static func state(_ rip: UInt64) -> X86State {
        var state = TestMachine.flatState
        state.cr0 |= 0x8000_0000
        state.cr4 |= 0x80
        state.cr3 = roots.0
        (state.star, state.lstar) = (0x10_0008 << 32, kernel + 2)
        state.rip = rip
        (state.gpr[4], state.gpr[8], state.gpr[10]) = (base + 0x4_0000, program, program + 0x1000)
        (state.gpr[9], state.gpr[13]) = (roots.0, roots.1)
        (state.gpr[7], state.gpr[12], state.gpr[15]) = (roots.0 + 0x3000 + (program + 0x1000 - base) >> 12 * 8, thousandPage | 7, onePage | 7)
        (state.gpr[6], state.gpr[5], state.gpr[14]) = (kernel + 0x1000, kernelTables + 0x2008, onePage | 0x103)
        return state
    }

    /// An operand of a block that runs often has a base cache of its own, which knows the page until the TLB is told.
    @Test(arguments: [[0x41, 0x0F, 0x01, 0x3A], [0x41, 0x0F, 0x22, 0xD9], [0x0F, 0x20, 0xE0, 0x34, 0x80, 0x0F, 0x22, 0xE0]] as [[UInt8]])
    func whatAnOperandRemembersIsForgotten(tell: [UInt8]) {  // invlpg [r10]; mov cr3, r9; mov rax, cr4; xor al, 0x80; mov cr4, rax
        // lea rbx, [r10 + 0x800]; mov edx, 4; 1: mov ecx, 400000; 2: add rbp, [rbx]; dec ecx; jnz 2b; mov [rdi], r12; …; dec edx; jnz 1b
        var code: [UInt8] = [0x49, 0x8D, 0x9A, 0, 8, 0, 0, 0xBA, 4, 0, 0, 0]
        let loop = [0xB9, 0x80, 0x1A, 6, 0, 0x48, 0x03, 0x2B, 0xFF, 0xC9, 0x75, 0xF9, 0x4C, 0x89, 0x27] + tell + [0xFF, 0xCA]
        code += loop + [0x75, UInt8(truncatingIfNeeded: -(loop.count + 2)), 0xF4]
        let machine = Self.machine(code)
        machine.core.watchesSupervisor = true
        for (page, value) in [(Self.onePage, 3), (Self.thousandPage, 5)] as [(UInt64, UInt64)] {
            machine.bytes.storeBytes(of: value, toByteOffset: Int(page + 0x800 - Self.base), as: UInt64.self)
        }
        var state = Self.state(Self.kernel)
        state.gpr[5] = 0
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        #expect(machine.core.architecturalState.gpr[5] == 400_000 * (3 + 3 * 5))
    }
    @Test func programsTakeTurns() {
        var script = Script()
        for _ in 0..<40 {
            script.runProgram()
            script.runKernel()
            script.use(second: true)
            script.runProgram()
            script.use(second: false)
        }
        #expect(Self.run(script) == script.sum)
    }
    @Test func aProgramsPagesChangeWhileAnotherRuns() {
        var generator = Generator(state: 1)
        var script = Script()
        for _ in 0..<8 {
            script.runProgram()
            script.use(second: true)
            script.remapProgram(&generator)
            script.runProgram()
            script.use(second: false)
            script.runProgram()
        }
        #expect(Self.run(script) == script.sum)
    }
    /// INVLPG anywhere in a large page drops all of it.
    @Test(arguments: 0..<4) func aLargePageIsTakenApart(before: Int) {
        var script = Script()
        script.runProgram()
        switch before {
        case 0: break
        case 1: script.togglePGE()
        case 2: script.use(second: false)
        default: for second in [true, false] { script.use(second: second) }
        }
        script.code += [0x4C, 0x89, 0x27, 0x41, 0x0F, 0x01, 0x3A]  // mov [rdi], r12; invlpg [r10]
        script.programHasThousands = true
        script.runProgram()
        #expect(Self.run(script, inLargePage: true) == script.sum)
    }
    /// The same where no code runs: data of a page that INVLPG does not name.
    @Test func aLargePageOfDataIsTakenApart() {
        // mov rcx, [rbx]; mov [rdi], r12; invlpg [r10]; mov rdx, [rbx]; hlt
        let machine = Self.machine([0x48, 0x8B, 0x0B, 0x4C, 0x89, 0x27, 0x41, 0x0F, 0x01, 0x3A, 0x48, 0x8B, 0x13, 0xF4])
        for (page, value) in [(Self.onePage, 3), (Self.thousandPage, 5)] as [(UInt64, UInt64)] {
            machine.bytes.storeBytes(of: value, toByteOffset: Int(page + 0x800 - Self.base), as: UInt64.self)
        }
        var state = Self.state(Self.kernel)
        (state.gpr[3], state.gpr[10]) = (Self.large + Self.onePage - Self.base + 0x800, Self.large + 0x1F_0000)
        (state.gpr[7], state.gpr[12]) = (Self.directory, Self.directory + 0x1000 | 7)
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        #expect((machine.core.architecturalState.gpr[1], machine.core.architecturalState.gpr[2]) == (3, 5))
    }
    /// More address spaces than the jump cache has salts for, one after the other.
    @Test func addressSpacesComeAndGo() {
        // mov ebp, 21000; 1: mov [rdi], r12; xchg r12, r15; xchg rbx, r15; mov cr3, r9; run the program; dec ebp; jnz 1b; hlt
        var code: [UInt8] = [0xBD, 0x08, 0x52, 0, 0, 0x4C, 0x89, 0x27, 0x4D, 0x87, 0xFC, 0x4C, 0x87, 0xFB, 0x41, 0x0F, 0x22, 0xD9]
        var script = Script()
        let start = script.code.count
        script.runProgram()
        code += script.code[start...]
        code += [0xFF, 0xCD, 0x75, UInt8(truncatingIfNeeded: 5 - (code.count + 4)), 0xF4]
        let machine = Self.machine(script.code[..<start] + code)
        // A third page, which adds 2000 to what the thousands do.
        let thousands = machine.bytes + Int(Self.thousandPage - Self.base)
        (thousands + 4096).copyMemory(from: thousands, byteCount: 4096)
        for place in [0x12, 0x42] { thousands.storeBytes(of: 2000, toByteOffset: 4096 + place, as: UInt32.self) }
        var state = Self.state(Self.kernel)
        state.gpr[3] = Self.thousandPage + 4096 | 7
        machine.core.architecturalState = state
        #expect(machine.core.run() == .halt)
        #expect(machine.core.architecturalState.gpr[0] == 7000 * 600 * (4 + 2 * 1000 + 2 * 2000 + 2 * 0x102))
    }
    @Test(arguments: [false, true]) func anythingInAnyOrder(isIdentified: Bool) {
        for seed in 0..<400 as Range<UInt64> {
            var generator = Generator(state: seed)
            var script = Script()
            script.isIdentified = isIdentified
            for _ in 0..<40 {
                switch generator.next() % 12 {
                case 0, 1: script.runProgram()
                case 2: script.runKernel()
                case 3: script.use(second: !script.isSecond)
                case 4, 5: script.come(second: !script.isSecond)
                case 6: script.use(second: script.isSecond)
                case 7, 8: script.remapProgram(&generator)
                case 9: script.rewrite(&generator)
                case 10: script.rewriteAsProgram(&generator)
                default: script.remapKernel(&generator)
                }
            }
            script.runProgram()
            script.runKernel()
            #expect(Self.run(script) == script.sum, "seed \(seed)")
        }
    }
    /// What SDM vol. 2 and 3 (§ 2.5) say of CR4.PCIDE, bit 63 of CR3 and INVPCID: a general protection fault, of which there is no return here.
    @Test func wrongIdentifiersAreRefused() {
        let descriptor = Self.base + 0x4_0100
        let invalidate: [UInt8] = [0x66, 0x0F, 0x38, 0x82, 0x1C, 0x25] + Self.little(descriptor)  // invpcid rbx, [descriptor]
        let setKeeping: [UInt8] = [0x48, 0x0F, 0xBA, 0xEB, 63, 0x0F, 0x22, 0xDB]  // bts rbx, 63; mov cr3, rbx
        func isRefused(
            _ code: [UInt8], rbx: UInt64 = 0, hasIdentifiers: Bool = true, root: UInt64 = Self.roots.0, _ words: (UInt64, UInt64) = (0, 0),
            features: X86Features = .host
        ) -> Bool {
            let machine = Self.machine(code + [0xF4])
            machine.core.features = features
            machine.bytes.storeBytes(of: words.0, toByteOffset: 0x4_0100, as: UInt64.self)
            machine.bytes.storeBytes(of: words.1, toByteOffset: 0x4_0108, as: UInt64.self)
            var state = Self.state(Self.kernel)
            (state.gpr[3], state.cr3) = (rbx, root)
            if hasIdentifiers { state.cr4 |= 0x2_0000 }
            machine.core.architecturalState = state
            return machine.core.run() != .halt
        }
        #expect(!isRefused(setKeeping, rbx: Self.roots.1 | 5))
        #expect(isRefused(setKeeping, rbx: Self.roots.1, hasIdentifiers: false))
        let enable: [UInt8] = [0x0F, 0x20, 0xE3, 0x0F, 0xBA, 0xEB, 17, 0x0F, 0x22, 0xE3]  // mov rbx, cr4; bts ebx, 17; mov cr4, rbx
        #expect(!isRefused(enable, hasIdentifiers: false))
        #expect(isRefused(enable, hasIdentifiers: false, root: Self.roots.0 | 1))
        #expect(isRefused(enable, hasIdentifiers: false, features: .v1))
        #expect(isRefused(invalidate, hasIdentifiers: false, features: .v1))
        for kind in 0..<4 as Range<UInt64> { #expect(!isRefused(invalidate, rbx: kind, (7, Self.program))) }
        #expect(isRefused(invalidate, rbx: 4))
        #expect(isRefused(invalidate, rbx: 1, (4096, 0)))
        #expect(isRefused(invalidate, rbx: 0, (1, 1 << 60)))
        #expect(!isRefused(invalidate, rbx: 1, (1, 1 << 60)))
        #expect(isRefused(invalidate, rbx: 1, hasIdentifiers: false, (1, 0)))
        #expect(!isRefused(invalidate, rbx: 2, hasIdentifiers: false, (1, 0)))
    }
}
