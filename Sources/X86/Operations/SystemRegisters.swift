import CX86

// HLT, CPUID, and whatever reads and writes control, debug, model-specific, descriptor-table and segment registers.
extension SystemHandlers {
    // Processor control
    static let halt: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        s.pointee.rip = followingRIP(op, s)
        s.pointee.exit_reason = ExitReason.halt
        return 0
    }
    /// VMCALL and VMMCALL, each on processors of either maker, as under KVM.
    static let hypercall: Handler = { op, s in
        let mask: UInt64 = s.pointee.mode == 2 ? .max : 0xFFFF_FFFF
        let arguments = (gpr(s, GPR.rbx) & mask, gpr(s, GPR.rcx) & mask, gpr(s, GPR.rdx) & mask, gpr(s, GPR.rsi) & mask)
        let number = gpr(s, GPR.rax) & mask
        let result = isPrivileged(s) ? outside { core(s).environment.hypercall(number, arguments) } : 0 &- 1  // KVM_EPERM
        setGPR(s, GPR.rax, result & mask)
        return finish(op, s)
    }
    static let cpuid: Handler = { op, s in
        let leaf = UInt32(truncatingIfNeeded: gpr(s, 0))
        var r = outside { core(s).environment.cpuid(leaf, UInt32(truncatingIfNeeded: gpr(s, 1))) }
        // OSXSAVE is what CR4 says.
        if leaf == 1, s.pointee.cr4 & ControlRegister.osxsave != 0 { r.ecx |= 1 << 27 }
        setReg(s, 0, r.eax)
        setReg(s, 24, r.ebx)
        setReg(s, 8, r.ecx)
        setReg(s, 16, r.edx)
        return step(op, s)
    }
    static let readTSC: Handler = { op, s in
        if s.pointee.cr4 & 4 != 0, s.pointee.cpl != 0 { return generalProtection(op, s) }
        let value = timeStampCounter(s)
        setReg(s, 0, UInt32(truncatingIfNeeded: value))
        setReg(s, 16, UInt32(truncatingIfNeeded: value >> 32))
        return next(op, s)
    }
    static let readMSR: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        guard let value = core(s).readMSR(UInt32(truncatingIfNeeded: gpr(s, GPR.rcx))) else { return generalProtection(op, s) }
        setReg(s, 0, UInt32(truncatingIfNeeded: value))
        setReg(s, 16, UInt32(truncatingIfNeeded: value >> 32))
        return next(op, s)
    }
    static let writeMSR: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let value = gpr(s, 0) & 0xFFFF_FFFF | gpr(s, GPR.rdx) << 32
        let register = UInt32(truncatingIfNeeded: gpr(s, GPR.rcx))
        guard core(s).writeMSR(register, value) else { return generalProtection(op, s) }
        return register == MSR.efer ? finish(op, s) : next(op, s)
    }
    static let readControl: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let value: UInt64
        switch op.pointee.extra {
        case 0: value = s.pointee.cr0
        case 2: value = s.pointee.cr2
        case 3: value = s.pointee.cr3
        case 4: value = s.pointee.cr4
        case 8: return readTaskPriority(op, s)
        default: return raise(op, s, Vector.invalidOpcode)
        }
        setNatural(op, s, value)
        return next(op, s)
    }
    static let writeControl: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let raw: UInt64 = reg(s, op.pointee.rm)
        let value = s.pointee.mode == 2 ? raw : raw & 0xFFFF_FFFF
        switch op.pointee.extra {
        case 0: guard core(s).writeCR0(value) else { return generalProtection(op, s) }
        case 2: s.pointee.cr2 = value
        case 3:
            // Without process-context identifiers bit 63 is reserved.
            let keeps = s.pointee.cr4 & ControlRegister.pcide == 0 ? 0 : value & 1 << 63
            guard (value ^ keeps) & 0xFFF0_0000_0000_0000 == 0 else { return generalProtection(op, s) }
            core(s).writeCR3(value ^ keeps, keeps: keeps != 0)
        case 4: guard core(s).writeCR4(value) else { return generalProtection(op, s) }
        case 8:
            guard value < 16 else { return generalProtection(op, s) }
            outside { core(s).environment.taskPriority = value }
        default: return raise(op, s, Vector.invalidOpcode)
        }
        return finish(op, s)
    }
    static let readDebug: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        setReg(s, op.pointee.rm, core(s).debugRegister(Int(op.pointee.extra)))
        return step(op, s)
    }
    static let writeDebug: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        core(s).setDebugRegister(Int(op.pointee.extra), reg(s, op.pointee.rm))
        return step(op, s)
    }
    static let clearTaskSwitched: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        s.pointee.cr0 &= ~ControlRegister.ts
        updateVectorAccess(s)
        return finish(op, s)
    }
    static let swapGS: Handler = { op, s in
        guard s.pointee.mode == 2 else { return raise(op, s, Vector.invalidOpcode) }
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let base = s.pointee.seg.5.base
        s.pointee.seg.5.base = s.pointee.kernel_gs_base
        s.pointee.segbase.5 = s.pointee.kernel_gs_base
        s.pointee.kernel_gs_base = base
        return next(op, s)
    }
    static let invalidatePage: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        core(s).invalidatePage(address(op, s))
        return finish(op, s)
    }
    /// INVPCID: the kind in a register, identifier and linear address in memory.
    static let invalidateContext: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let raw: UInt64 = reg(s, op.pointee.reg)
        let kind = s.pointee.mode == 2 ? raw : raw & 0xFFFF_FFFF
        let operand = address(op, s)
        guard let identifier: UInt64 = load(op, s, operand), let linear: UInt64 = load(op, s, operand &+ 8) else { return 0 }
        let hasIdentifiers = s.pointee.cr4 & ControlRegister.pcide != 0
        guard kind < 4, identifier < 4096, kind > 1 || hasIdentifiers || identifier == 0, kind > 0 || isCanonical(linear) else { return generalProtection(op, s) }
        core(s).invalidateContext(kind, identifier: identifier, linear: linear)
        return finish(op, s)
    }
    static let privilegedNop: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        return next(op, s)
    }
    static let fence: Handler = { op, s in
        cx_fence()
        return next(op, s)
    }

    // Descriptor tables
    static let storeTable: Handler = { op, s in
        let (base, limit) = op.pointee.extra == 0 ? (s.pointee.gdt_base, s.pointee.gdt_limit) : (s.pointee.idt_base, s.pointee.idt_limit)
        let linear = address(op, s)
        guard store(op, s, linear, UInt16(truncatingIfNeeded: limit)) else { return 0 }
        let done = s.pointee.mode == 2 ? store(op, s, linear &+ 2, base) : store(op, s, linear &+ 2, UInt32(truncatingIfNeeded: base))
        return done ? next(op, s) : 0
    }
    static let loadTable: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let linear = address(op, s)
        guard let limit: UInt16 = load(op, s, linear) else { return 0 }
        var base: UInt64
        if s.pointee.mode == 2 {
            guard let value: UInt64 = load(op, s, linear &+ 2) else { return 0 }
            base = value
        } else {
            guard let value: UInt32 = load(op, s, linear &+ 2) else { return 0 }
            base = op.pointee.size == 2 ? UInt64(value & 0xFF_FFFF) : UInt64(value)
        }
        guard isCanonical(base) else { return generalProtection(op, s) }
        if op.pointee.extra == 2 {
            (s.pointee.gdt_base, s.pointee.gdt_limit) = (base, UInt32(limit))
        } else {
            (s.pointee.idt_base, s.pointee.idt_limit) = (base, UInt32(limit))
        }
        base = 0
        return next(op, s)
    }
    /// SLDT 0, STR 1, SMSW 0x10 in `extra`.
    static let storeSelector: Handler = { op, s in
        let value: UInt64
        switch op.pointee.extra {
        case 0: value = UInt64(s.pointee.ldtr.selector)
        case 1: value = UInt64(s.pointee.tr.selector)
        default: value = s.pointee.cr0 & 0xFFFF_FFFF
        }
        if op.pointee.aux & 2 != 0 {
            guard store(op, s, address(op, s), UInt16(truncatingIfNeeded: value)) else { return 0 }
        } else {
            setSized(s, op.pointee.rm, value, op.pointee.size)
        }
        return next(op, s)
    }
    /// LLDT 2, LTR 3, LMSW 0x16 in `extra`.
    static let loadSelector: Handler = { op, s in
        guard isPrivileged(s) else { return generalProtection(op, s) }
        let selector: UInt16
        if op.pointee.aux & 2 != 0 {
            guard let value: UInt16 = load(op, s, address(op, s)) else { return 0 }
            selector = value
        } else {
            selector = reg(s, op.pointee.rm)
        }
        if op.pointee.extra == 0x16 {
            let value = s.pointee.cr0 & ~0xE | UInt64(selector & 0xF)
            guard core(s).writeCR0(value) else { return generalProtection(op, s) }
            return finish(op, s)
        }
        let task = op.pointee.extra == 3
        guard attempt(op, s, { core throws(SegmentFault) in try core.loadSystemSegment(selector, task: task) }) else { return 0 }
        return step(op, s)
    }
    /// VERR 0, VERW 1, LAR 2, LSL 3 in `extra`.
    static let inspectSelector: Handler = { op, s in
        guard s.pointee.cr0 & ControlRegister.pe != 0 else { return raise(op, s, Vector.invalidOpcode) }
        let selector: UInt16
        if op.pointee.aux & 2 != 0 {
            guard let value: UInt16 = load(op, s, address(op, s)) else { return 0 }
            selector = value
        } else {
            selector = reg(s, op.pointee.rm)
        }
        let value = core(s).inspect(selector, kind: Int(op.pointee.extra))
        if s.pointee.exit_reason != ExitReason.next { s.pointee.exit_reason = ExitReason.next }
        if let value, op.pointee.extra >= 2 { setSized(s, op.pointee.reg, value, op.pointee.size) }
        setArithmeticFlags(s, flagsImage(s) & ~EFlags.zf | (value != nil ? EFlags.zf : 0))
        return next(op, s)
    }
    static let moveFromSegment: Handler = { op, s in
        let value = UInt64(core(s).segment(Int(op.pointee.extra)).pointee.selector)
        if op.pointee.aux & 2 != 0 {
            guard store(op, s, address(op, s), UInt16(truncatingIfNeeded: value)) else { return 0 }
        } else {
            setSized(s, op.pointee.rm, value, op.pointee.size)
        }
        return next(op, s)
    }
    static let moveToSegment: Handler = { op, s in
        let selector: UInt16
        if op.pointee.aux & 2 != 0 {
            guard let value: UInt16 = load(op, s, address(op, s)) else { return 0 }
            selector = value
        } else {
            selector = reg(s, op.pointee.rm)
        }
        let index = Int(op.pointee.extra)
        guard attempt(op, s, { core throws(SegmentFault) in try core.loadSegment(index, selector) }) else { return 0 }
        // A base, and no more, in code of 64 bits.
        return s.pointee.mode == 2 && index != SegmentRegister.ss ? next(op, s) : finishSegmentLoad(op, s, index)
    }
    static let pushSegment: Handler = { op, s in
        guard X86.push(op, s, UInt64(core(s).segment(Int(op.pointee.extra)).pointee.selector), op.pointee.size) else { return 0 }
        return next(op, s)
    }
    static let popSegment: Handler = { op, s in
        guard let value = peek(op, s, op.pointee.size) else { return 0 }
        let index = Int(op.pointee.extra)
        guard attempt(op, s, { core throws(SegmentFault) in try core.loadSegment(index, UInt16(truncatingIfNeeded: value)) }) else { return 0 }
        drop(s, UInt64(op.pointee.size))
        return finishSegmentLoad(op, s, index)
    }
    /// LES, LDS, LSS, LFS, LGS: the segment in `extra`.
    static let loadFarPointer: Handler = { op, s in
        guard let (offset, selector) = farTarget(op, s) else { return 0 }
        let index = Int(op.pointee.extra)
        guard attempt(op, s, { core throws(SegmentFault) in try core.loadSegment(index, selector) }) else { return 0 }
        setSized(s, op.pointee.reg, offset, op.pointee.size)
        return finish(op, s)
    }
    // Decimal adjustment (legacy modes): the operation's opcode in `extra`.
    static let decimal: Handler = { op, s in decimalAdjust(op, s) }
}

/// The register that control registers are read to: as wide as the mode's addresses.
@inline(__always) private func setNatural(_ op: Op, _ s: CPU, _ value: UInt64) {
    if s.pointee.mode == 2 { setReg(s, op.pointee.rm, value) } else { setReg(s, op.pointee.rm, UInt32(truncatingIfNeeded: value)) }
}
/// Apart from the others: the compiler cannot end this one with a jump, see `step`.
@inline(never) private func readTaskPriority(_ op: Op, _ s: CPU) -> Next {
    let value = outside { core(s).environment.taskPriority }
    setNatural(op, s, value)
    return step(op, s)
}
