import CX86

// Privileged and rare instructions: one handler each, through the core.
enum SystemHandlers {
    static let undefined: Handler = { op, s in raise(op, s, Vector.invalidOpcode) }
    static let nop: Handler = { op, s in next(op, s) }
    /// The last operation of a block that runs into what follows.
    static let endBlock: Handler = { op, s in
        s.pointee.mode == 2 ? jump(s, instructionRIP(op, s)) : go(op, s, instructionRIP(op, s))
    }
    /// A guest that waits in a loop: maybe for a processor that does not run, as the machine has more than the host. So now and then, after some
    /// 20 to 50 µs of that, another thread may run here.
    static let pause: Handler = { op, s in
        s.pointee.pauses &-= 1
        guard s.pointee.pauses < 0 else {
            cx_pause()
            return next(op, s)
        }
        s.pointee.pauses = 1024
        cx_yield()
        return next(op, s)
    }

    // Stack, any size
    static let push: Handler = { op, s in
        guard let value = rmOperand(op, s), X86.push(op, s, value, op.pointee.size) else { return 0 }
        return next(op, s)
    }
    static let pushImmediate: Handler = { op, s in
        guard X86.push(op, s, op.pointee.imm, op.pointee.size) else { return 0 }
        return next(op, s)
    }
    static let popRegister: Handler = { op, s in
        guard let value = peek(op, s, op.pointee.size) else { return 0 }
        drop(s, UInt64(op.pointee.size))
        setSized(s, op.pointee.rm, value, op.pointee.size)
        return next(op, s)
    }
    /// The address is computed with the stack pointer already moved. SDM vol. 2 POP.
    static let popMemory: Handler = { op, s in
        guard let value = peek(op, s, op.pointee.size) else { return 0 }
        let sp = gpr(s, GPR.rsp)
        drop(s, UInt64(op.pointee.size))
        guard storeSized(op, s, address(op, s), value, op.pointee.size) else {
            setGPR(s, GPR.rsp, sp)
            return 0
        }
        return next(op, s)
    }
    static let pushAll: Handler = { op, s in
        let sp = gpr(s, GPR.rsp)
        for index in 0..<8 {
            guard X86.push(op, s, index == GPR.rsp ? sp : gpr(s, index), op.pointee.size) else {
                setGPR(s, GPR.rsp, sp)
                return 0
            }
        }
        return next(op, s)
    }
    static let popAll: Handler = { op, s in
        let size = op.pointee.size
        var values: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0)
        guard let di = peek(op, s, size), let si = peek(op, s, size, at: UInt64(size)), let bp = peek(op, s, size, at: 2 * UInt64(size)),
            let bx = peek(op, s, size, at: 4 * UInt64(size)), let dx = peek(op, s, size, at: 5 * UInt64(size)),
            let cx = peek(op, s, size, at: 6 * UInt64(size)), let ax = peek(op, s, size, at: 7 * UInt64(size))
        else { return 0 }
        values = (ax, cx, dx, bx, bp, si, di)
        drop(s, 8 * UInt64(size))
        setSized(s, 0, values.0, size)
        setSized(s, 8, values.1, size)
        setSized(s, 16, values.2, size)
        setSized(s, 24, values.3, size)
        setSized(s, 40, values.4, size)
        setSized(s, 48, values.5, size)
        setSized(s, 56, values.6, size)
        return next(op, s)
    }
    static let pushFlags: Handler = { op, s in
        guard X86.push(op, s, flagsImage(s) & ~(EFlags.rf | EFlags.vm), op.pointee.size) else { return 0 }
        return next(op, s)
    }
    static let popFlags: Handler = { op, s in
        guard let value = peek(op, s, op.pointee.size) else { return 0 }
        drop(s, UInt64(op.pointee.size))
        let isStep = s.pointee.rflags & EFlags.tf != 0
        withCore(s) { core in
            core.setFlags(value & ~EFlags.rf, size: Int(op.pointee.size), from: s.pointee.cpl)
            if isStep { core.isLastStep = s.pointee.rflags & EFlags.tf == 0 }
        }
        return finish(op, s)
    }
    static let enter: Handler = { op, s in
        let size = op.pointee.size
        let sp = gpr(s, GPR.rsp)
        guard op.pointee.extra & 31 == 0 else { return enterNested(op, s) }
        guard X86.push(op, s, gpr(s, GPR.rbp), size) else { return 0 }
        let frame = gpr(s, GPR.rsp)
        drop(s, 0 &- (op.pointee.imm & 0xFFFF))
        guard (loadForWrite(op, s, (gpr(s, GPR.rsp) & s.pointee.sp_mask) &+ s.pointee.segbase.2) as UInt16?) != nil else {
            setGPR(s, GPR.rsp, sp)
            failStack(s)
            return 0
        }
        setSized(s, 40, frame, size)
        return next(op, s)
    }
    static let leave: Handler = { op, s in
        let size = op.pointee.size
        let linear = (gpr(s, GPR.rbp) & s.pointee.sp_mask) &+ s.pointee.segbase.2
        guard let value = loadSized(op, s, linear, size) else {
            failStack(s)
            return 0
        }
        setSized(s, 32, gpr(s, GPR.rbp), s.pointee.sp_mask == .max ? 8 : (s.pointee.sp_mask == 0xFFFF ? 2 : 4))
        drop(s, UInt64(size))
        setSized(s, 40, value, size)
        return next(op, s)
    }

    // Control flow, any size
    static let callRelative: Handler = { op, s in
        guard X86.push(op, s, followingRIP(op, s), op.pointee.size) else { return 0 }
        noteCall(s)
        return go(op, s, s.pointee.block_base &+ op.pointee.imm &- segmentBase(s, 8))
    }
    static let jumpRelative: Handler = { op, s in go(op, s, s.pointee.block_base &+ op.pointee.imm &- segmentBase(s, 8)) }
    static let callIndirect: Handler = { op, s in
        guard let target = rmOperand(op, s), X86.push(op, s, followingRIP(op, s), op.pointee.size) else { return 0 }
        noteCall(s)
        return go(op, s, target)
    }
    static let jumpIndirect: Handler = { op, s in
        guard let target = rmOperand(op, s) else { return 0 }
        return go(op, s, target)
    }
    static let ret: Handler = { op, s in
        guard let target = peek(op, s, op.pointee.size) else { return 0 }
        drop(s, UInt64(op.pointee.size) &+ op.pointee.imm)
        noteReturn(s)
        return go(op, s, target)
    }
    /// LOOPNE 0, LOOPE 1, LOOP 2, JRCXZ 3: in `extra`.
    static let loop: Handler = { op, s in
        let mask = UInt64.max &>> UInt64(op.pointee.ashift)
        var taken: Bool
        if op.pointee.extra == 3 {
            taken = gpr(s, GPR.rcx) & mask == 0
        } else {
            let count = (gpr(s, GPR.rcx) &- 1) & mask
            switch op.pointee.ashift {
            case 0: setGPR(s, GPR.rcx, count)
            case 32: setReg(s, 8, UInt32(truncatingIfNeeded: count))
            default: setReg(s, 8, UInt16(truncatingIfNeeded: count))
            }
            taken = count != 0
            if op.pointee.extra == 0 { taken = taken && !zeroFlag(s) }
            if op.pointee.extra == 1 { taken = taken && zeroFlag(s) }
        }
        let target = s.pointee.block_base &+ op.pointee.imm &- segmentBase(s, 8)
        return go(op, s, taken ? target : followingRIP(op, s))
    }
    static let farJump: Handler = { op, s in
        guard let (offset, selector) = farTarget(op, s) else { return 0 }
        guard attempt(op, s, { core throws(SegmentFault) in try core.loadCode(selector, cpl: s.pointee.cpl, returning: false) }) else { return 0 }
        s.pointee.rip = offset
        return 0
    }
    static let farCall: Handler = { op, s in
        guard let (offset, selector) = farTarget(op, s) else { return 0 }
        let size = op.pointee.size
        let sp = gpr(s, GPR.rsp)
        let back = followingRIP(op, s)
        guard X86.push(op, s, UInt64(core(s).segment(SegmentRegister.cs).pointee.selector), size), X86.push(op, s, back, size),
            attempt(op, s, { core throws(SegmentFault) in try core.loadCode(selector, cpl: s.pointee.cpl, returning: false) })
        else {
            setGPR(s, GPR.rsp, sp)
            return 0
        }
        s.pointee.rip = offset
        return 0
    }
    static let farReturn: Handler = { op, s in
        let size = op.pointee.size
        guard let rip = peek(op, s, size), let cs = peek(op, s, size, at: UInt64(size)) else { return 0 }
        let old = s.pointee.cpl
        let new = s.pointee.cr0 & ControlRegister.pe == 0 ? 0 : UInt8(cs & 3)
        guard new >= old else { return generalProtection(op, s, cs & 0xFFFC) }
        var outer: (sp: UInt64, ss: UInt64)?
        if new > old {
            guard let sp = peek(op, s, size, at: 2 * UInt64(size) &+ op.pointee.imm),
                let ss = peek(op, s, size, at: 3 * UInt64(size) &+ op.pointee.imm)
            else { return 0 }
            outer = (sp, ss)
        }
        let done = attempt(op, s) { core throws(SegmentFault) in
            guard let outer else { return try core.loadCode(UInt16(truncatingIfNeeded: cs), cpl: new, returning: true) }
            let code = try core.codeSegment(UInt16(truncatingIfNeeded: cs), cpl: new, returning: true)
            core.take(code, try core.stackSegment(UInt16(truncatingIfNeeded: outer.ss), cpl: new, for: code), cpl: new)
            core.dropPrivilegedSegments()
        }
        guard done else { return 0 }
        if let outer { setGPR(s, GPR.rsp, outer.sp &+ op.pointee.imm) } else { drop(s, 2 * UInt64(size) &+ op.pointee.imm) }
        s.pointee.rip = size == 8 ? rip : (size == 4 ? rip & 0xFFFF_FFFF : rip & 0xFFFF)
        return 0
    }
    static let interruptReturn: Handler = { op, s in
        guard attempt(op, s, { core throws(SegmentFault) in try core.interruptReturn(size: Int(op.pointee.size)) }) else { return 0 }
        return resume(s)
    }
    /// INT n, INT3, INTO and INT1: vector in the immediate; 1 for INTO in `extra`, 2 for INT1, to which gates are open as to the processor.
    static let softwareInterrupt: Handler = { op, s in
        if op.pointee.extra == 1, !overflowFlag(s) { return step(op, s) }
        let core = core(s)
        if op.pointee.extra == 2 { core.takeBreakpointHits() }
        core.deliver(
            vector: UInt8(truncatingIfNeeded: op.pointee.imm), error: nil, software: op.pointee.extra != 2, rip: followingRIP(op, s),
            instruction: instructionRIP(op, s))
        return 0
    }
    static let syscall: Handler = { op, s in
        guard s.pointee.efer & ControlRegister.sce != 0, s.pointee.mode == 2 || isAMDsLongMode(s) else {
            return raise(op, s, Vector.invalidOpcode)
        }
        enterKernel(op, s)
        return resume(s)
    }
    static let sysret: Handler = { op, s in
        guard s.pointee.efer & ControlRegister.sce != 0, s.pointee.mode == 2 else { return raise(op, s, Vector.invalidOpcode) }
        guard isPrivileged(s) else { return generalProtection(op, s) }
        if op.pointee.size == 8, !isCanonical(gpr(s, GPR.rcx)) { return generalProtection(op, s) }
        leaveKernel(op, s)
        return resume(s)
    }
    static let sysenter: Handler = { op, s in
        guard !isAMDsLongMode(s) else { return raise(op, s, Vector.invalidOpcode) }
        guard s.pointee.cr0 & ControlRegister.pe != 0, s.pointee.sysenter_cs & 0xFFFC != 0 else { return generalProtection(op, s) }
        let core = core(s)
        let selector = UInt16(truncatingIfNeeded: s.pointee.sysenter_cs) & 0xFFFC
        s.pointee.rflags &= ~(EFlags.interruptEnable | EFlags.vm)
        let long = s.pointee.lma != 0
        core.setFlat(SegmentRegister.cs, selector, code: true, dpl: 0, long: long)
        core.setFlat(SegmentRegister.ss, selector &+ 8, code: false, dpl: 0, long: false)
        s.pointee.cpl = 0
        setGPR(s, GPR.rsp, long ? s.pointee.sysenter_esp : s.pointee.sysenter_esp & 0xFFFF_FFFF)
        s.pointee.rip = long ? s.pointee.sysenter_eip : s.pointee.sysenter_eip & 0xFFFF_FFFF
        core.updateMode()
        return 0
    }
    static let sysexit: Handler = { op, s in
        guard !isAMDsLongMode(s) else { return raise(op, s, Vector.invalidOpcode) }
        guard isPrivileged(s), s.pointee.sysenter_cs & 0xFFFC != 0 else { return generalProtection(op, s) }
        let core = core(s)
        let long = op.pointee.size == 8
        let base = UInt16(truncatingIfNeeded: s.pointee.sysenter_cs)
        core.setFlat(SegmentRegister.cs, (base &+ (long ? 32 : 16)) | 3, code: true, dpl: 3, long: long)
        core.setFlat(SegmentRegister.ss, (base &+ (long ? 40 : 24)) | 3, code: false, dpl: 3, long: false)
        s.pointee.cpl = 3
        s.pointee.rip = long ? gpr(s, GPR.rdx) : gpr(s, GPR.rdx) & 0xFFFF_FFFF
        setGPR(s, GPR.rsp, long ? gpr(s, GPR.rcx) : gpr(s, GPR.rcx) & 0xFFFF_FFFF)
        core.updateMode()
        return 0
    }

    // Flags
    static let clearInterrupt: Handler = { op, s in
        guard mayUseIO(s) else { return generalProtection(op, s) }
        s.pointee.rflags &= ~EFlags.interruptEnable
        return next(op, s)
    }
    static let setInterrupt: Handler = { op, s in
        guard mayUseIO(s) else { return generalProtection(op, s) }
        if s.pointee.rflags & EFlags.interruptEnable == 0 {
            s.pointee.rflags |= EFlags.interruptEnable
            // The builder puts the shadowed instruction behind this one; `extra` says when it could not.
            if op.pointee.extra == 1 { s.pointee.inhibit = 1 }
            withCore(s) { $0.interruptsEnabled() }
        }
        return next(op, s)
    }
    /// CLC, STC, CMC, CLD, STD by the low opcode bits in `extra`.
    static let flagBit: Handler = { op, s in
        switch op.pointee.extra {
        case 0xF8: setCarry(s, false)
        case 0xF9: setCarry(s, true)
        case 0xF5: setCarry(s, !carryFlag(s))
        case 0xFC: s.pointee.rflags &= ~EFlags.df
        default: s.pointee.rflags |= EFlags.df
        }
        return next(op, s)
    }
    static let loadAH: Handler = { op, s in
        setReg(s, 1, UInt8(truncatingIfNeeded: flagsImage(s)))
        return next(op, s)
    }
    static let storeAH: Handler = { op, s in
        let ah: UInt8 = reg(s, 1)
        setArithmeticFlags(s, UInt64(ah & 0xD5) | (overflowFlag(s) ? EFlags.of : 0))
        return next(op, s)
    }
    static let setByteR: Handler = { op, s in
        setReg(s, op.pointee.rm, condition(s, op.pointee.aux) ? 1 : 0 as UInt8)
        return next(op, s)
    }
    static let setByteM: Handler = { op, s in
        guard store(op, s, address(op, s), condition(s, op.pointee.aux) ? 1 : 0 as UInt8) else { return 0 }
        return next(op, s)
    }

    // Conversions
    static let convertAccumulator: Handler = { op, s in
        switch op.pointee.size {
        case 2: setReg(s, 0, UInt16(truncatingIfNeeded: signExtended(reg(s, 0) as UInt8)))
        case 4: setReg(s, 0, UInt32(truncatingIfNeeded: signExtended(reg(s, 0) as UInt16)))
        default: setReg(s, 0, signExtended(reg(s, 0) as UInt32))
        }
        return next(op, s)
    }
    static let convertToD: Handler = { op, s in
        switch op.pointee.size {
        case 2: setReg(s, 16, (reg(s, 0) as UInt16) >> 15 != 0 ? UInt16.max : 0)
        case 4: setReg(s, 16, (reg(s, 0) as UInt32) >> 31 != 0 ? UInt32.max : 0)
        default: setReg(s, 16, (reg(s, 0) as UInt64) >> 63 != 0 ? UInt64.max : 0)
        }
        return next(op, s)
    }
    static let byteSwap: Handler = { op, s in
        if op.pointee.size == 8 {
            setReg(s, op.pointee.rm, (reg(s, op.pointee.rm) as UInt64).byteSwapped)
        } else if op.pointee.size == 4 {
            setReg(s, op.pointee.rm, (reg(s, op.pointee.rm) as UInt32).byteSwapped)
        } else {
            setReg(s, op.pointee.rm, 0 as UInt16)  // undefined; processors clear it
        }
        return next(op, s)
    }
    static let translateByte: Handler = { op, s in
        let mask = UInt64.max &>> UInt64(op.pointee.ashift)
        let offset = (gpr(s, GPR.rbx) &+ UInt64(reg(s, 0) as UInt8)) & mask
        guard let value: UInt8 = load(op, s, offset &+ segmentBase(s, op.pointee.seg)) else { return 0 }
        setReg(s, 0, value)
        return next(op, s)
    }

    // CMPXCHG8B and 16B.
    static let compareExchange8: Handler = { op, s in
        let expected = (gpr(s, GPR.rdx) << 32) | (gpr(s, GPR.rax) & 0xFFFF_FFFF)
        let new = (gpr(s, GPR.rcx) << 32) | (gpr(s, GPR.rbx) & 0xFFFF_FFFF)
        guard let (old, _): (UInt64, UInt64) = atomicUpdate(op, s, address(op, s), { $0 == expected ? new : $0 }) else { return 0 }
        let equal = old == expected
        if !equal {
            setReg(s, 0, UInt32(truncatingIfNeeded: old))
            setReg(s, 16, UInt32(truncatingIfNeeded: old >> 32))
        }
        setArithmeticFlags(s, flagsImage(s) & ~EFlags.zf | (equal ? EFlags.zf : 0))
        return next(op, s)
    }
    static let compareExchange16: Handler = { op, s in compareExchangeWide(op, s) }
}

/// CALL and JMP far: pointer in the instruction (aux 0: offset imm, selector extra) or in memory (aux 2).
func farTarget(_ op: Op, _ s: CPU) -> (UInt64, UInt16)? {
    if op.pointee.aux & 2 == 0 { return (sized(op.pointee.imm, op.pointee.size), UInt16(truncatingIfNeeded: op.pointee.extra)) }
    let linear = address(op, s)
    guard let offset = loadSized(op, s, linear, op.pointee.size),
        let selector: UInt16 = load(op, s, linear &+ UInt64(op.pointee.size))
    else { return nil }
    return (offset, selector)
}

func enterNested(_ op: Op, _ s: CPU) -> Next {
    let size = op.pointee.size
    let sp = gpr(s, GPR.rsp)
    func fail() -> Next {
        setGPR(s, GPR.rsp, sp)
        failStack(s)
        return 0
    }
    guard X86.push(op, s, gpr(s, GPR.rbp), size) else { return fail() }
    let frame = gpr(s, GPR.rsp)
    let level = Int(op.pointee.extra & 31)
    for step in 1..<max(level, 1) {
        let linear = ((gpr(s, GPR.rbp) &- UInt64(step) * UInt64(size)) & s.pointee.sp_mask) &+ s.pointee.segbase.2
        guard let value = loadSized(op, s, linear, size), X86.push(op, s, value, size) else { return fail() }
    }
    guard level == 0 || X86.push(op, s, frame, size) else { return fail() }
    drop(s, 0 &- (op.pointee.imm & 0xFFFF))
    // The new top of the stack must be writable, though nothing is written.
    guard (loadForWrite(op, s, (gpr(s, GPR.rsp) & s.pointee.sp_mask) &+ s.pointee.segbase.2) as UInt16?) != nil else { return fail() }
    setSized(s, 40, frame, size)
    return next(op, s)
}

func compareExchangeWide(_ op: Op, _ s: CPU) -> Next {
    let linear = address(op, s)
    guard linear & 15 == 0 else { return generalProtection(op, s) }
    var lo = gpr(s, GPR.rax)
    var hi = gpr(s, GPR.rdx)
    let (newLo, newHi) = (gpr(s, GPR.rbx), gpr(s, GPR.rcx))
    var equal: Bool
    if writablePointer(s, linear, UInt64.self) == nil {
        guard (loadForWrite(op, s, linear) as UInt64?) != nil else { return 0 }
    }
    if let p = writablePointer(s, linear, UInt64.self) {
        equal = cx_cas128(p, &lo, &hi, newLo, newHi) != 0
    } else if let (host, gpa) = beginUpdate(op, s, linear, 16) {
        equal = cx_cas128(host, &lo, &hi, newLo, newHi) != 0
        endUpdate(op, s, gpa, 16)
    } else {
        guard s.pointee.exit_reason == 0, let a: UInt64 = load(op, s, linear), let b: UInt64 = load(op, s, linear &+ 8) else { return 0 }
        equal = a == lo && b == hi
        guard store(op, s, linear, equal ? newLo : a), store(op, s, linear &+ 8, equal ? newHi : b) else { return 0 }
        (lo, hi) = (a, b)
    }
    if !equal {
        setGPR(s, GPR.rax, lo)
        setGPR(s, GPR.rdx, hi)
    }
    setArithmeticFlags(s, flagsImage(s) & ~EFlags.zf | (equal ? EFlags.zf : 0))
    return next(op, s)
}

/// DAA, DAS, AAA, AAS, AAM, AAD. SDM vol. 2.
func decimalAdjust(_ op: Op, _ s: CPU) -> Next {
    var al: UInt8 = reg(s, 0)
    var ah: UInt8 = reg(s, 1)
    let carry = carryFlag(s)
    let half = (al & 0xF) > 9 || auxiliaryFlag(s)
    var image = flagsImage(s)
    switch op.pointee.extra {
    case 0x27, 0x2F:
        let old = al
        let high = old > 0x99 || carry
        let delta: UInt8 = (half ? 6 : 0) &+ (high ? 0x60 : 0)
        al = op.pointee.extra == 0x27 ? al &+ delta : al &- delta
        setFlagsLogic(s, result: al)
        var c = high
        if op.pointee.extra == 0x2F, half, old < 6 { c = c || true }
        image = flagsImage(s) & ~(EFlags.cf | EFlags.af) | (c ? EFlags.cf : 0) | (half ? EFlags.af : 0)
        setArithmeticFlags(s, image)
        setReg(s, 0, al)
    case 0x37, 0x3F:
        if half {
            let ax: UInt16 = op.pointee.extra == 0x37 ? (reg(s, 0) as UInt16) &+ 0x106 : (reg(s, 0) as UInt16) &- 0x106
            al = UInt8(truncatingIfNeeded: ax)
            ah = UInt8(truncatingIfNeeded: ax >> 8)
        }
        setReg(s, 0, al & 0xF)
        setReg(s, 1, ah)
        image = image & ~(EFlags.cf | EFlags.af) | (half ? EFlags.cf | EFlags.af : 0)
        setArithmeticFlags(s, image)
    case 0xD4:
        let base = UInt8(truncatingIfNeeded: op.pointee.imm)
        guard base != 0 else { return raise(op, s, Vector.divide) }
        setReg(s, 1, al / base)
        setReg(s, 0, al % base)
        setFlagsLogic(s, result: al % base)
    default:
        al = al &+ ah &* UInt8(truncatingIfNeeded: op.pointee.imm)
        setReg(s, 0, UInt16(al))
        setFlagsLogic(s, result: al)
    }
    return next(op, s)
}
