import CX86

// IN, OUT, INS and OUTS.

/// aux 1: port in DX; else the immediate.
@inline(__always) private func portNumber(_ op: Op, _ s: CPU) -> UInt16 {
    op.pointee.aux == 1 ? reg(s, 16) : UInt16(truncatingIfNeeded: op.pointee.imm & 0xFF)
}
@inline(__always) func portIn<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let port = portNumber(op, s)
    guard mayUsePort(op, s, port, T.bitWidth / 8) else { return 0 }
    setReg(s, 0, T(truncatingIfNeeded: outside { core(s).environment.portRead(port, size: T.bitWidth / 8) }))
    return step(op, s)
}
@inline(__always) func portOut<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let port = portNumber(op, s)
    guard mayUsePort(op, s, port, T.bitWidth / 8) else { return 0 }
    outside { core(s).environment.portWrite(port, UInt32(truncatingIfNeeded: reg(s, 0) as T), size: T.bitWidth / 8) }
    return finish(op, s)
}
@inline(__always) func portInString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let port: UInt16 = reg(s, 16)
    guard mayUsePort(op, s, port, T.bitWidth / 8) else { return 0 }
    let mask = UInt64.max &>> UInt64(op.pointee.ashift)
    if op.pointee.aux != 0, gpr(s, GPR.rcx) & mask == 0 { return step(op, s) }
    let target = (gpr(s, GPR.rdi) & mask) &+ segmentBase(s, 0)
    guard (loadForWrite(op, s, target) as T?) != nil else { return 0 }
    let value = T(truncatingIfNeeded: outside { core(s).environment.portRead(port, size: T.bitWidth / 8) })
    guard store(op, s, target, value) else { return 0 }
    return stepString(op, s, GPR.rdi, UInt64(T.bitWidth / 8), mask)
}
@inline(__always) func portOutString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let port: UInt16 = reg(s, 16)
    guard mayUsePort(op, s, port, T.bitWidth / 8) else { return 0 }
    let mask = UInt64.max &>> UInt64(op.pointee.ashift)
    if op.pointee.aux != 0, gpr(s, GPR.rcx) & mask == 0 { return step(op, s) }
    guard let value: T = load(op, s, (gpr(s, GPR.rsi) & mask) &+ segmentBase(s, op.pointee.seg)) else { return 0 }
    outside { core(s).environment.portWrite(port, UInt32(truncatingIfNeeded: value), size: T.bitWidth / 8) }
    return stepString(op, s, GPR.rsi, UInt64(T.bitWidth / 8), mask)
}
/// One step of a string port instruction; a repeated one comes back to itself through the run loop.
private func stepString(_ op: Op, _ s: CPU, _ register: Int, _ bytes: UInt64, _ mask: UInt64) -> Next {
    let delta = s.pointee.rflags & EFlags.df == 0 ? bytes : 0 &- bytes
    setGPR(s, register, gpr(s, register) & ~mask | (gpr(s, register) &+ delta) & mask)
    guard op.pointee.aux != 0 else { return finish(op, s) }
    let count = (gpr(s, GPR.rcx) &- 1) & mask
    setGPR(s, GPR.rcx, gpr(s, GPR.rcx) & ~mask | count)
    s.pointee.rip = count == 0 ? followingRIP(op, s) : instructionRIP(op, s)
    return 0
}
