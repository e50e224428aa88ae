import CX86

// What handlers of privileged and rare instructions share.

/// Ends the block after an instruction that changed how the following ones are found or run.
@inline(__always) func finish(_ op: Op, _ s: CPU) -> Next {
    s.pointee.rip = followingRIP(op, s)
    return 0
}
/// The same after MOV or POP to a segment register. That of the stack comes with its pointer: neither an interrupt nor a debug exception comes in
/// between. SDM vol. 3 § 6.8.3.
@inline(__always) func finishSegmentLoad(_ op: Op, _ s: CPU, _ index: Int) -> Next {
    if index == SegmentRegister.ss {
        s.pointee.inhibit = 1
        withCore(s) { $0.hasLoadedSS = true }
    }
    return finish(op, s)
}
@inline(__always) func generalProtection(_ op: Op, _ s: CPU, _ error: UInt64 = 0) -> Next {
    raise(op, s, Vector.generalProtection, error)
}
/// Runs something that may end in a fault; nil when it did.
@inline(__always) func attempt(_ op: Op, _ s: CPU, _ body: (X86Core) throws(SegmentFault) -> Void) -> Bool {
    do throws(SegmentFault) {
        try body(core(s))
        return true
    } catch {
        _ = raise(op, s, error.vector, error.error)
        return false
    }
}
@inline(__always) func isPrivileged(_ s: CPU) -> Bool { s.pointee.cpl == 0 }
@inline(__always) func mayUseIO(_ s: CPU) -> Bool {
    s.pointee.cr0 & ControlRegister.pe == 0 || UInt64(s.pointee.cpl) <= (s.pointee.rflags & EFlags.iopl) >> 12
}
/// The TSS's permission bit map. SDM vol. 1 § 19.5.2.
func mayUsePort(_ op: Op, _ s: CPU, _ port: UInt16, _ size: Int) -> Bool {
    if mayUseIO(s) { return true }
    var allowed = false
    let ok = attempt(op, s) { core throws(SegmentFault) in
        guard s.pointee.tr.limit >= 0x67 else { return }
        let map = UInt64(try core.systemLoad(s.pointee.tr.base &+ 0x66, UInt16.self))
        let cell = map + UInt64(port >> 3)
        guard cell + 1 <= UInt64(s.pointee.tr.limit) else { return }
        let bits = try core.systemLoad(s.pointee.tr.base &+ cell, UInt16.self)
        allowed = bits >> (port & 7) & ((1 << UInt16(size)) - 1) == 0
    }
    guard ok else { return false }
    if !allowed { _ = generalProtection(op, s) }
    return allowed
}

@inline(__always) func push(_ op: Op, _ s: CPU, _ value: UInt64, _ size: UInt8) -> Bool {
    let mask = s.pointee.sp_mask
    let sp = gpr(s, GPR.rsp)
    let new = (sp &- UInt64(size)) & mask
    let linear = new &+ s.pointee.segbase.2
    let done: Bool
    switch size {
    case 2: done = store(op, s, linear, UInt16(truncatingIfNeeded: value))
    case 4: done = store(op, s, linear, UInt32(truncatingIfNeeded: value))
    default: done = store(op, s, linear, value)
    }
    guard done else { return failStack(s) }
    setGPR(s, GPR.rsp, mask == 0xFFFF ? sp & ~mask | new : new)
    return true
}
@inline(__always) func peek(_ op: Op, _ s: CPU, _ size: UInt8, at offset: UInt64 = 0) -> UInt64? {
    let linear = ((gpr(s, GPR.rsp) &+ offset) & s.pointee.sp_mask) &+ s.pointee.segbase.2
    guard let value = loadSized(op, s, linear, size) else {
        failStack(s)
        return nil
    }
    return value
}
@inline(__always) func drop(_ s: CPU, _ bytes: UInt64) {
    let mask = s.pointee.sp_mask
    let sp = gpr(s, GPR.rsp)
    setGPR(s, GPR.rsp, mask == 0xFFFF ? sp & ~mask | (sp &+ bytes) & mask : (sp &+ bytes) & mask)
}
@inline(__always) func setSized(_ s: CPU, _ offset: UInt8, _ value: UInt64, _ size: UInt8) {
    switch size {
    case 1: setReg(s, offset, UInt8(truncatingIfNeeded: value))
    case 2: setReg(s, offset, UInt16(truncatingIfNeeded: value))
    case 4: setReg(s, offset, UInt32(truncatingIfNeeded: value))
    default: setReg(s, offset, value)
    }
}
@inline(__always) func sized(_ value: UInt64, _ size: UInt8) -> UInt64 {
    size >= 8 ? value : value & ((1 << (UInt64(size) * 8)) - 1)
}
@inline(__always) func loadSized(_ op: Op, _ s: CPU, _ linear: UInt64, _ size: UInt8) -> UInt64? {
    switch size {
    case 1: return (load(op, s, linear) as UInt8?).map(UInt64.init)
    case 2: return (load(op, s, linear) as UInt16?).map(UInt64.init)
    case 4: return (load(op, s, linear) as UInt32?).map(UInt64.init)
    default: return load(op, s, linear)
    }
}
@inline(__always) func storeSized(_ op: Op, _ s: CPU, _ linear: UInt64, _ value: UInt64, _ size: UInt8) -> Bool {
    switch size {
    case 1: return store(op, s, linear, UInt8(truncatingIfNeeded: value))
    case 2: return store(op, s, linear, UInt16(truncatingIfNeeded: value))
    case 4: return store(op, s, linear, UInt32(truncatingIfNeeded: value))
    default: return store(op, s, linear, value)
    }
}
/// The rm operand at the operation's size: register, or memory when aux bit 1 is set.
@inline(__always) func rmOperand(_ op: Op, _ s: CPU) -> UInt64? {
    if op.pointee.aux & 2 == 0 { return sized(reg(s, op.pointee.rm), op.pointee.size) }
    return loadSized(op, s, address(op, s), op.pointee.size)
}
/// Goes to an offset in the current code segment.
@inline(__always) func go(_ op: Op, _ s: CPU, _ rip: UInt64) -> Next {
    s.pointee.rip = s.pointee.mode == 2 ? rip : (op.pointee.size == 2 ? rip & 0xFFFF : rip & 0xFFFF_FFFF)
    return s.pointee.narrow != 0 ? jump(s, s.pointee.rip) : 0
}

/// Whether this is long mode as AMD's processors have it: with SYSCALL from 32-bit code, too, and without SYSENTER. A call, so that handlers need
/// no frame.
@inline(never) func isAMDsLongMode(_ s: CPU) -> Bool { s.pointee.lma != 0 && withCore(s) { $0.hasCompatibilitySyscall } }
/// SYSCALL in long mode. SDM vol. 2; from compatibility mode AMD APM vol. 3.
@inline(never) func enterKernel(_ op: Op, _ s: CPU) {
    let isCompatible = s.pointee.mode != 2
    setGPR(s, GPR.rcx, followingRIP(op, s))
    setGPR(s, 11, flagsImage(s) & ~EFlags.rf)
    s.pointee.rip = isCompatible ? s.pointee.cstar : s.pointee.lstar
    let image = flagsImage(s) & ~s.pointee.sfmask & ~EFlags.rf
    setArithmeticFlags(s, image)
    s.pointee.rflags = image & ~EFlags.arithmetic
    let selector = UInt16(truncatingIfNeeded: s.pointee.star >> 32) & 0xFFFC
    withCore(s) { core in
        core.setFlat(SegmentRegister.cs, selector, code: true, dpl: 0, long: true)
        core.setFlat(SegmentRegister.ss, selector &+ 8, code: false, dpl: 0, long: false)
        s.pointee.cpl = 0
        if isCompatible { core.updateMode() } else { core.updateContext() }
    }
}
/// SYSRET, checked. SDM vol. 2.
@inline(never) func leaveKernel(_ op: Op, _ s: CPU) {
    let long = op.pointee.size == 8
    let target = gpr(s, GPR.rcx)
    let image = gpr(s, 11) & ~(EFlags.rf | EFlags.vm) & 0x3C_7FD7
    setArithmeticFlags(s, image)
    s.pointee.rflags = image & ~EFlags.arithmetic & ~2
    let base = UInt16(truncatingIfNeeded: s.pointee.star >> 48)
    withCore(s) { core in
        core.setFlat(SegmentRegister.cs, (long ? base &+ 16 : base) | 3, code: true, dpl: 3, long: long)
        core.setFlat(SegmentRegister.ss, (base &+ 8) | 3, code: false, dpl: 3, long: false)
        s.pointee.cpl = 3
        s.pointee.rip = long ? target : target & 0xFFFF_FFFF
        if s.pointee.rflags & EFlags.interruptEnable != 0 { core.interruptsEnabled() }
        if long { core.updateContext() } else { core.updateMode() }
    }
}
/// Goes on at `rip` after a change of privilege, through the run loop only when it has something to do.
@inline(__always) func resume(_ s: CPU) -> Next {
    if s.pointee.rflags & EFlags.tf != 0 || s.pointee.exit_reason != ExitReason.next { return 0 }
    return jump(s, s.pointee.rip)
}
