import CX86

// REP string operations in chunks: as many elements as both operands' pages hold are moved at once when the TLB gives host
// addresses; RCX, RSI and RDI say how far it got whenever a fault or an interrupt comes. SDM vol. 1 § 7.3.9.3.

/// What a string instruction uses: aux bits. The address size is 64 - ashift.
enum StringForm {
    static let rep: UInt8 = 1
    static let repne: UInt8 = 2
}

@inline(__always) private func addressMask(_ op: Op) -> UInt64 { UInt64.max &>> UInt64(op.pointee.ashift) }
@inline(__always) private func readCounter(_ op: Op, _ s: CPU, _ n: Int) -> UInt64 { gpr(s, n) & addressMask(op) }
@inline(__always) private func writeCounter(_ op: Op, _ s: CPU, _ n: Int, _ value: UInt64) {
    switch op.pointee.ashift {
    case 0: setGPR(s, n, value)
    case 32: setReg(s, UInt8(n * 8), UInt32(truncatingIfNeeded: value))
    default: setReg(s, UInt8(n * 8), UInt16(truncatingIfNeeded: value))
    }
}
@inline(__always) private func advance(_ op: Op, _ s: CPU, _ n: Int, _ bytes: UInt64) {
    writeCounter(op, s, n, s.pointee.rflags & EFlags.df == 0 ? gpr(s, n) &+ bytes : gpr(s, n) &- bytes)
}
/// Whether somebody wants something before the instruction is done. In lock-step it is, as in translated code.
@inline(__always) private func isWanted(_ s: CPU) -> Bool { s.pointee.pending != 0 && s.pointee.pending & Pending.hold == 0 }
/// Ends an iteration early at this instruction, so that an interrupt can come in.
@inline(__always) private func yieldTo(_ op: Op, _ s: CPU) -> Next {
    s.pointee.rip = instructionRIP(op, s)
    return 0
}

@inline(__always) func moveString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let size = UInt64(T.bitWidth / 8)
    let repeated = op.pointee.aux != 0
    var count = repeated ? readCounter(op, s, GPR.rcx) : 1
    while count > 0 {
        let source = readCounter(op, s, GPR.rsi) &+ segmentBase(s, op.pointee.seg)
        let target = readCounter(op, s, GPR.rdi) &+ segmentBase(s, 0)
        let chunk = moveChunk(s, source, target, count, size)
        if chunk > 0 {
            advance(op, s, GPR.rsi, chunk &* size)
            advance(op, s, GPR.rdi, chunk &* size)
            count -= chunk
        } else {
            guard let value: T = load(op, s, source), store(op, s, target, value) else { return 0 }
            advance(op, s, GPR.rsi, size)
            advance(op, s, GPR.rdi, size)
            count -= 1
        }
        if repeated {
            writeCounter(op, s, GPR.rcx, count)
            if count > 0, isWanted(s) { return yieldTo(op, s) }
        }
    }
    return next(op, s)
}

/// Copies up to `count` elements within one source and one target page; 0 when the slow way is needed.
@inline(never) private func moveChunk(_ s: CPU, _ source: UInt64, _ target: UInt64, _ count: UInt64, _ size: UInt64) -> UInt64 {
    guard s.pointee.rflags & EFlags.df == 0 else { return 0 }
    let from = tlbEntry(s, source)
    let to = tlbEntry(s, target)
    guard source ^ from.readTag <= 4096 - size, target ^ to.writeTag <= 4096 - size else { return 0 }
    let room = min(4096 - (source & 4095), 4096 - (target & 4095)) / size
    let n = min(count, room)
    let a = hostPointer(from, source)
    let b = hostPointer(to, target)
    let distance = UInt(bitPattern: b) &- UInt(bitPattern: a)
    let bytes = Int(n * size)
    if distance < UInt(bytes) && distance > 0 {
        // Overlapping forward copy repeats the pattern; keep element order.
        if distance < UInt(size) { return 0 }
        var i = 0
        while i < bytes {
            let step = min(Int(distance), bytes - i)
            (b + i).copyMemory(from: a + i, byteCount: step)
            i += step
        }
    } else {
        b.copyMemory(from: a, byteCount: bytes)
    }
    return n
}

@inline(__always) func storeString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let size = UInt64(T.bitWidth / 8)
    let repeated = op.pointee.aux != 0
    var count = repeated ? readCounter(op, s, GPR.rcx) : 1
    let value: T = reg(s, 0)
    while count > 0 {
        let target = readCounter(op, s, GPR.rdi) &+ segmentBase(s, 0)
        let chunk = repeated ? fillChunk(s, target, count, size, UInt64(truncatingIfNeeded: value)) : 0
        if chunk > 0 {
            advance(op, s, GPR.rdi, chunk &* size)
            count -= chunk
        } else {
            guard store(op, s, target, value) else { return 0 }
            advance(op, s, GPR.rdi, size)
            count -= 1
        }
        if repeated {
            writeCounter(op, s, GPR.rcx, count)
            if count > 0, isWanted(s) { return yieldTo(op, s) }
        }
    }
    return next(op, s)
}

@inline(never) private func fillChunk(_ s: CPU, _ target: UInt64, _ count: UInt64, _ size: UInt64, _ value: UInt64) -> UInt64 {
    guard s.pointee.rflags & EFlags.df == 0 else { return 0 }
    let to = tlbEntry(s, target)
    guard target ^ to.writeTag <= 4096 - size else { return 0 }
    let n = min(count, (4096 - (target & 4095)) / size)
    let b = hostPointer(to, target)
    switch size {
    case 1: b.initializeMemory(as: UInt8.self, repeating: UInt8(truncatingIfNeeded: value), count: Int(n))
    default:
        for i in 0..<Int(n) {
            switch size {
            case 2: (b + i * 2).storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
            case 4: (b + i * 4).storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
            default: (b + i * 8).storeBytes(of: value, as: UInt64.self)
            }
        }
    }
    return n
}

@inline(__always) func loadString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let repeated = op.pointee.aux != 0
    var count = repeated ? readCounter(op, s, GPR.rcx) : 1
    while count > 0 {
        guard let value: T = load(op, s, readCounter(op, s, GPR.rsi) &+ segmentBase(s, op.pointee.seg)) else { return 0 }
        setReg(s, 0, value)
        advance(op, s, GPR.rsi, UInt64(T.bitWidth / 8))
        count -= 1
        if repeated {
            writeCounter(op, s, GPR.rcx, count)
            if count > 0, isWanted(s) { return yieldTo(op, s) }
        }
    }
    return next(op, s)
}

@inline(__always) func scanString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let repeated = op.pointee.aux != 0
    var count = repeated ? readCounter(op, s, GPR.rcx) : 1
    let a: T = reg(s, 0)
    while count > 0 {
        guard let b: T = load(op, s, readCounter(op, s, GPR.rdi) &+ segmentBase(s, 0)) else { return 0 }
        Cmp.flags(s, a, b, a &- b)
        advance(op, s, GPR.rdi, UInt64(T.bitWidth / 8))
        count -= 1
        if repeated {
            writeCounter(op, s, GPR.rcx, count)
            if (a == b) != (op.pointee.aux == StringForm.rep) { break }
            if count > 0, isWanted(s) { return yieldTo(op, s) }
        }
    }
    return next(op, s)
}

@inline(__always) func compareString<T: FixedWidthInteger & UnsignedInteger>(_ op: Op, _ s: CPU, _: T.Type) -> Next {
    let repeated = op.pointee.aux != 0
    var count = repeated ? readCounter(op, s, GPR.rcx) : 1
    while count > 0 {
        guard let a: T = load(op, s, readCounter(op, s, GPR.rsi) &+ segmentBase(s, op.pointee.seg)),
            let b: T = load(op, s, readCounter(op, s, GPR.rdi) &+ segmentBase(s, 0))
        else { return 0 }
        Cmp.flags(s, a, b, a &- b)
        advance(op, s, GPR.rsi, UInt64(T.bitWidth / 8))
        advance(op, s, GPR.rdi, UInt64(T.bitWidth / 8))
        count -= 1
        if repeated {
            writeCounter(op, s, GPR.rcx, count)
            if (a == b) != (op.pointee.aux == StringForm.rep) { break }
            if count > 0, isWanted(s) { return yieldTo(op, s) }
        }
    }
    return next(op, s)
}
