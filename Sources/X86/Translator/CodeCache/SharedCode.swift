import CX86

/// Code that all blocks of a core share: ways in and out, returns that go elsewhere, questions to the TLB. Executable addresses.
struct SharedCode {
    /// Ways into the interpreter, the operation in r11 as its address, or by how far it lies behind the first one (`TranslationCache.offset(of:)`):
    /// with its handler in r9, or taken from the operation.
    struct Exit {
        var withAddress = 0
        var withHandler = 0
        var loadingHandler = 0
    }
    /// What puts a page into a base cache. The linear address in r11, or that less the cache's tag.
    struct LookUp {
        var linear = 0
        var lessTag = 0
    }
    private(set) var exitWithFlags = Exit()
    private(set) var exitWithMemory = Exit()
    private(set) var exitWithout = Exit()
    private(set) var exitToLoop = 0
    /// To the interpreter, which links the edge in r11: with flags in EFLAGS or in the state.
    private(set) var linkWithFlags = 0
    private(set) var linkWithMemory = 0
    /// The same of an edge to another page, with flags in the state: when EFLAGS say that it has gone through the jump cache often enough, and through that
    /// otherwise.
    private(set) var crossing = 0
    /// The block in r11 has been watched long enough: with flags in the state, or of no use.
    private(set) var judge = (memory: 0, dead: 0)
    /// From the interpreter to the code at r9: the host's registers to its stack, the guest's from the state.
    private(set) var enter = 0
    /// The same to narrow code, where the upper halves of registers are zero.
    private(set) var enterNarrow = 0
    private(set) var untranslated = 0
    private(set) var convertFlags = 0
    /// Called: clears the upper halves of all vector registers in the state. XMM0 is lost.
    private(set) var zeroUpper = 0
    /// Where returns go that do not find their call, see ReturnStack: the target in r11, flags in memory.
    private(set) var returnElsewhere = 0
    private(set) var returnWithoutCall = 0
    private(set) var returnToUnknown = 0
    /// To the target in r11, flags in memory, through the jump cache.
    private(set) var lookUpTarget = 0
    /// By base cache, for reading and for writing.
    private(set) var lookUp: [OperandCaches.Pair] = []

    mutating func make(_ code: inout Assembler) {
        exitWithFlags = makeExit(&code) { code in
            code.bytes(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
            tableLookup(&code)
        }
        exitWithMemory = makeExit(&code) { code in
            code.op(0xB7, reg: Host.rax, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, map: 1)  // movzx eax, word
            code.bytes(0x3D)  // cmp eax, 0xFFFF
            code.int32(0xFFFF)
            let valid = code.jump(if: 4)
            tableLookup(&code)
            code.patch(valid)
        }
        exitWithout = makeExit(&code) { _ in }

        enter = makeEntry(&code, isNarrow: false)
        enterNarrow = makeEntry(&code, isNarrow: true)

        // RIP in r11, flags in memory: back to the run loop.
        exitToLoop = code.here
        code.store(Host.address, Host.cell(Int(X86_RIP_OFFSET)))
        code.leaRIP(Host.scratch, code.here + 7 + 5)
        code.jump(to: exitWithMemory.withAddress)
        code.bytes(0x31, 0xC0, 0xC3)  // xor eax, eax; ret

        // A block that had no translation when the jump cache's place was filled that r9 tells, or lost it.
        // What the interpreter asks at a block's start: its version, and whether somebody wants something.
        untranslated = code.here
        code.store(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.load(Host.rax, Host.cell(Int(X86_JCACHE_OFFSET)))
        code.lea(Host.address, .memory(base: Host.rax, index: Host.scratch, scale: 3, displacement: 8))
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        code.load(Host.scratch, .memory(base: Host.rax, index: Host.scratch, scale: 2, displacement: Int32(X86_JCACHE_OPERATIONS)))
        code.load(Host.address, .memory(base: Host.scratch, displacement: -32))
        code.load32(Host.rax, .memory(base: Host.address))
        code.load(Host.address, .memory(base: Host.scratch, displacement: -24))
        code.op(0x03, reg: Host.rax, .memory(base: Host.address), wide: false)
        code.op(0x3B, reg: Host.rax, .memory(base: Host.scratch, displacement: -4), wide: false)
        code.load(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        let stale = code.jump(if: 5)
        code.comparePending()
        let wanted = code.jump(if: 5)
        code.op(0x80, reg: 7, .memory(base: Host.scratch, displacement: 35), wide: false)  // cmp …, 1: aux
        code.byte(1)
        let translated = code.jump(if: 4)
        code.move(Host.address, Host.scratch)
        code.load(Host.scratch, .memory(base: Host.scratch))
        code.jump(to: exitWithMemory.withAddress)
        code.patch(stale)
        code.patch(wanted)
        code.op(0xB7, reg: Host.address, .memory(base: Host.scratch, displacement: 32), wide: false, map: 1)  // movzx r11d, its offset
        code.op(0x03, reg: Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.jump(to: exitToLoop)
        // It has one now: from here on, who comes this way goes there.
        code.patch(translated)
        code.load(Host.scratch, .memory(base: Host.scratch, displacement: 8))
        code.load(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
        code.store(Host.scratch, .memory(base: Host.address))
        code.bytes(0x41, 0xFF, 0xE1)  // jmp r9
        makeConversion(&code)
        makeReturns(&code)
        makeLinks(&code)
        zeroUpper = code.here
        code.bytes(0x0F, 0x57, 0xC0)  // xorps xmm0, xmm0
        for n in 0..<16 { code.op(0x11, reg: 0, Host.cell(vectorOffset(n) + 16), wide: false, map: 1) }
        code.op(0xC6, reg: 0, Host.cell(Int(X86_UPPER_IN_USE_OFFSET)), wide: false)
        code.bytes(0, 0xC3)  // ret
        lookUp = (0..<3 * Int(X86_BASE_CACHES)).map { cache in
            OperandCaches.Pair(read: makeLookUp(&code, cache, write: false), write: makeLookUp(&code, cache, write: true))
        }
    }
    private func makeEntry(_ code: inout Assembler, isNarrow: Bool) -> Int {
        let entry = code.here
        for register in Host.calleeSaved { code.push(register) }
        code.lea(Host.state, .memory(base: Host.rsi, displacement: Host.bias))
        code.op(0xC7, reg: 0, Host.cell(Int(X86_T1_FLAGS_OFFSET)))
        code.int32(0xFFFF)
        for n in Host.mapped { if let host = Host.register(n) { code.op(0x8B, reg: host, Host.home(n), wide: !isNarrow || n > 7) } }
        code.store(4, Host.cell(Int(X86_HOST_STACK_OFFSET)))
        code.load(4, Host.cell(Int(X86_RETURN_STACK_OFFSET)))
        code.bytes(0x41, 0xFF, 0xE1)  // jmp r9
        return entry
    }
    private func makeExit(_ code: inout Assembler, flags: (inout Assembler) -> Void) -> Exit {
        var exit = Exit(withAddress: code.here)
        spill(&code)
        flags(&code)
        finishLeaving(&code)
        exit.withHandler = code.here
        code.store(Host.scratch, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.load(Host.scratch, Host.cell(Int(X86_OPERATIONS_OFFSET)))
        code.lea(Host.address, .memory(base: Host.address, index: Host.scratch))
        code.load(Host.scratch, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.jump(to: exit.withAddress)
        exit.loadingHandler = code.here
        code.load(Host.scratch, Host.cell(Int(X86_OPERATIONS_OFFSET)))
        code.lea(Host.address, .memory(base: Host.address, index: Host.scratch))
        code.load(Host.scratch, .memory(base: Host.address))
        code.jump(to: exit.withAddress)
        return exit
    }
    /// Guest registers to the state, the host's back from the stack. Changes no flags.
    private func spill(_ code: inout Assembler) {
        for n in Host.mapped { if let host = Host.register(n) { code.store(host, Host.home(n)) } }
        code.store(4, Host.cell(Int(X86_RETURN_STACK_OFFSET)))
        code.load(4, Host.cell(Int(X86_HOST_STACK_OFFSET)))
        for register in Host.calleeSaved.reversed() { code.pop(register) }
    }
    /// The address of the jump cache's place for r11 in r9. EFLAGS are lost.
    private func findTarget(_ code: inout Assembler) {
        code.hashTarget()
        code.bytes(0x41, 0xC1, 0xE1, 0x03)  // shl r9d, 3
        code.op(0x03, reg: Host.scratch, Host.cell(Int(X86_JCACHE_OFFSET)))
    }
    private mutating func makeReturns(_ code: inout Assembler) {
        returnToUnknown = code.here
        code.lea(4, .memory(base: 4, displacement: 8))
        returnElsewhere = code.here
        findTarget(&code)
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        let first = code.jump(if: 4)
        code.bytes(0x49, 0x83, 0xF1, 0x10)  // xor r9, 16
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        let second = code.jump(if: 4)
        code.move(Host.scratch, Host.address)
        code.bytes(0x49, 0xC1, 0xE1, 0x10, 0x49, 0xC1, 0xF9, 0x10)  // shl r9, 16; sar r9, 16
        code.op(0x39, reg: Host.address, .register(Host.scratch))
        code.jump(if: 4, to: exitToLoop)
        code.moveHandler(TranslatorHandlers.returnFault)
        code.jump(to: exitWithMemory.withAddress)
        code.patch(first)
        code.patch(second)
        let hit = code.here
        code.bytes(0x49, 0x81, 0xE3)  // and r11, ~4095
        code.int32(-4096)
        code.store(Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.load(Host.address, .memory(base: Host.scratch, displacement: 8))
        code.op(0x2B, reg: Host.scratch, Host.cell(Int(X86_JCACHE_OFFSET)))
        code.bytes(0x49, 0xC1, 0xE9, 0x03)  // shr r9, 3
        code.bytes(0x41, 0xFF, 0xE3)  // jmp r11
        lookUpTarget = code.here
        findTarget(&code)
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        code.jump(if: 4, to: hit)
        code.bytes(0x49, 0x83, 0xF1, 0x10)  // xor r9, 16
        code.op(0x39, reg: Host.address, .memory(base: Host.scratch))
        code.jump(if: 4, to: hit)
        code.jump(to: exitToLoop)
        returnWithoutCall = code.here
        code.lea(4, .memory(base: 4, displacement: -8))
        code.jump(to: returnElsewhere)
    }
    private mutating func makeLinks(_ code: inout Assembler) {
        func link(_ exit: Exit) -> Int {
            let start = code.here
            code.store(Host.address, Host.cell(Int(X86_T1_EDGE_OFFSET)))
            code.moveHandler(TranslatorHandlers.linkEdge)
            code.jump(to: exit.withAddress)
            return start
        }
        (linkWithFlags, linkWithMemory) = (link(exitWithFlags), link(exitWithMemory))
        crossing = code.here
        code.jump(if: 8, to: linkWithMemory)
        code.bytes(0x41, 0x81, 0xE3)  // and r11d, 4095
        code.int32(4095)
        code.op(0x03, reg: Host.address, Host.cell(Int(X86_BLOCK_BASE_OFFSET)))
        code.jump(to: lookUpTarget)
        judge.memory = code.here
        code.moveHandler(TranslatorHandlers.judge)
        code.jump(to: exitWithMemory.withHandler)
        judge.dead = code.here
        code.moveHandler(TranslatorHandlers.judge)
        code.jump(to: exitWithout.withHandler)
    }
    /// AX = LAHF's AH over SETO's AL, to fres and faux.
    private func tableLookup(_ code: inout Assembler) {
        code.bytes(0x66, 0xC1, 0xC8, 0x08)  // ror ax, 8
        code.bytes(0x0F, 0xB7, 0xC0)  // movzx eax, ax
        code.bytes(0xC1, 0xE0, 0x04)  // shl eax, 4
        code.op(0x03, reg: Host.rax, Host.cell(Int(X86_FLAG_TABLE_OFFSET)))
        code.load(Host.rcx, .memory(base: Host.rax))
        code.store(Host.rcx, Host.cell(Int(X86_FRES_OFFSET)))
        code.load(Host.rcx, .memory(base: Host.rax, displacement: 8))
        code.store(Host.rcx, Host.cell(Int(X86_FAUX_OFFSET)))
    }
    /// To the handler in r9 with the operation in r11.
    private func finishLeaving(_ code: inout Assembler) {
        code.move(Host.rdi, Host.address)
        code.lea(Host.rsi, .memory(base: Host.state, displacement: -Host.bias))
        code.bytes(0x41, 0xFF, 0xE1)  // jmp r9
    }

    /// fres and faux to EFLAGS; goes on at r11. Uses r9 and, through the stack, RAX, RCX and RDX.
    private mutating func makeConversion(_ code: inout Assembler) {
        convertFlags = code.here
        for register in [0, 1, 2] as [UInt8] { code.push(register) }
        code.load(0, Host.cell(Int(X86_FRES_OFFSET)))
        code.load(1, Host.cell(Int(X86_FAUX_OFFSET)))
        code.bytes(0x31, 0xD2)  // xor edx, edx
        code.bytes(0x48, 0x85, 0xC0, 0x0F, 0x94, 0xC2, 0xC1, 0xE2, 0x06)  // test rax, rax; setz dl; shl edx, 6
        code.bytes(0x49, 0x89, 0xC1, 0x49, 0xC1, 0xE9, 0x3F)  // mov r9, rax; shr r9, 63
        code.bytes(0x41, 0x31, 0xC9, 0x41, 0x83, 0xE1, 0x01, 0x41, 0xC1, 0xE1, 0x07, 0x44, 0x09, 0xCA)  // xor r9d, ecx; and r9d, 1; shl r9d, 7; or edx, r9d
        code.bytes(0x49, 0x89, 0xC9, 0x49, 0xC1, 0xE9, 0x08, 0x41, 0x31, 0xC1)  // mov r9, rcx; shr r9, 8; xor r9d, eax
        code.bytes(0x45, 0x84, 0xC9, 0x41, 0x0F, 0x9A, 0xC1, 0x45, 0x0F, 0xB6, 0xC9)  // test r9b, r9b; setp r9b; movzx r9d, r9b
        code.bytes(0x41, 0xC1, 0xE1, 0x02, 0x44, 0x09, 0xCA)  // shl r9d, 2; or edx, r9d
        code.bytes(0x41, 0x89, 0xC9, 0x41, 0x83, 0xE1, 0x08, 0x45, 0x01, 0xC9, 0x44, 0x09, 0xCA)  // mov r9d, ecx; and r9d, 8; add r9d, r9d; or edx, r9d
        code.bytes(0x49, 0x89, 0xC9, 0x49, 0xC1, 0xE9, 0x3F, 0x44, 0x09, 0xCA)  // mov r9, rcx; shr r9, 63; or edx, r9d
        code.bytes(0x48, 0x8D, 0x04, 0x09, 0x48, 0x31, 0xC8, 0x48, 0xC1, 0xE8, 0x3F)  // lea rax, [rcx + rcx]; xor rax, rcx; shr rax, 63
        code.bytes(0x88, 0xD4, 0x04, 0x7F, 0x9E)  // mov ah, dl; add al, 127; sahf
        for register in [2, 1, 0] as [UInt8] { code.pop(register) }
        code.bytes(0x41, 0xFF, 0xE3)  // jmp r11
    }

    /// Called with 4096 less the operand's size in r9: finds the address' page in the TLB and puts it into a base cache. "Above" when the interpreter has
    /// to see to it.
    private func makeLookUp(_ code: inout Assembler, _ cache: Int, write: Bool) -> LookUp {
        let cell = BlockTranslator.cell(cache, write: false)
        var lookUp = LookUp(lessTag: code.here)
        code.op(0x03, reg: Host.address, Host.cell(write ? cell + 16 : cell))
        lookUp.linear = code.here
        code.push(0)
        code.push(1)
        let isWide = cache >= 2 * Int(X86_BASE_CACHES) ? code.compareWithNarrow(scratch: 1) : nil
        let (tag, fails) = code.findPage(entry: 0, scratch: 1, user: cache >= Int(X86_BASE_CACHES), write: write)
        // A page that may be written may be read.
        code.load(1, tag)
        code.store(1, Host.cell(cell))
        if write { code.store(1, Host.cell(cell + 16)) }
        code.load(0, .memory(base: 0, displacement: 2 * Int32(X86_TLB_COLUMN)))
        if cache % Int(X86_BASE_CACHES) >= Int(X86_WINDOW_CACHES) { code.op(0x03, reg: 0, .register(1)) }  // add rax, rcx
        code.store(0, Host.cell(cell + 8))
        if write { code.store(0, Host.cell(cell + 24)) }
        code.bytes(0x31, 0xC0)  // xor eax, eax: not above
        code.patch(fails)
        if let isWide { code.patch(isWide) }
        code.pop(1)
        code.pop(0)
        code.byte(0xC3)
        return lookUp
    }
}
