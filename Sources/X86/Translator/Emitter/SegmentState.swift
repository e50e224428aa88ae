import CX86

// Flags and vector registers while a segment is written: which are the host's, which are in the state.
extension BlockTranslator {
    mutating func analyseFlags() {
        var live = true
        var anyNeed = false
        for index in lines.indices.reversed() {
            lines[index].liveAfter = live
            let plan = lines[index].plan
            if plan.readsFlags || (plan.mergesFlags && live) { anyNeed = true }
            live = plan.readsFlags || (plan.definesFlags ? false : live)
        }
        startFlags = !live ? .dead : (anyNeed ? .host : .memory)
    }
    mutating func saveFlags() { code.saveFlags() }
    /// The state's flags to EFLAGS. When they may still be in the interpreter's form, r9 and r11 are lost.
    mutating func restoreFlags(mayBeLazy: Bool) {
        var lazy: UnsafeMutablePointer<UInt8>?
        if mayBeLazy {
            // As wide as they are saved: a wider load would wait until that is in the cache.
            code.op(0x83, reg: 7, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, operand16: true)  // cmp word …, -1
            code.byte(0xFF)
            lazy = code.jump(if: 4)
        }
        code.store(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        code.op(0xB7, reg: Host.rax, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, map: 1)  // movzx eax, word
        code.bytes(0x04, 0x7F, 0x9E)  // add al, 127; sahf
        code.load(Host.rax, Host.cell(Int(X86_T1_SAVE_OFFSET)))
        if let lazy { conversions.append((lazy, code.here)) }
    }
    /// Before code that changes EFLAGS.
    mutating func aboutToClobber(_ line: Line) {
        let plan = line.plan
        guard flags == .host else { return }
        if plan.readsFlags || (!plan.definesFlags && line.liveAfter) {
            saveFlags()
            flags = .memory
        } else {
            flags = .dead
        }
    }
    /// Before the instruction itself.
    mutating func needFlags(_ line: Line) {
        guard flags == .memory, line.plan.readsFlags || (line.plan.mergesFlags && line.liveAfter) else { return }
        restoreFlags(mayBeLazy: false)
        flags = .host
    }

    // MARK: vector registers

    mutating func flushVectors() {
        vectors.store(&code)
        vectors.clean()
    }
    mutating func useVector(_ n: UInt8, reads: Bool, writes: Bool, _ line: Line) {
        let width: VectorRegisters.Width = !line.plan.isVEX ? .legacy : (line.instruction.vexL ? .vex256 : .vex128)
        vectors.use(n, reads: reads, writes: writes, width, &code)
    }
    /// CR0.EM and TS, and exceptions that the guest wants: the interpreter's business. Once a segment.
    mutating func checkVectors(_ line: Line) {
        let wanted = line.plan.isVEX ? Checked.avx : .vectors
        guard checked == .nothing || (wanted == .avx && checked == .vectors) else { return }
        aboutToClobber(line)
        code.op(0xF6, reg: 0, Host.cell(Int(X86_VECTOR_OFF_OFFSET)), wide: false)  // test byte …, …
        code.byte(wanted == .avx ? 0xFF : ~VectorOff.avx)
        checked = wanted
        slowPath(Jumps(code.jump(if: 5)), line)
    }
    mutating func zeroUpper(_ line: Line) {
        flushVectors()
        vectors = VectorRegisters()
        aboutToClobber(line)
        code.op(0x80, reg: 7, Host.cell(Int(X86_UPPER_IN_USE_OFFSET)), wide: false)
        code.byte(0)
        let clean = code.jump(if: 4)
        code.call(shared.zeroUpper)
        code.patch(clean)
    }
}
