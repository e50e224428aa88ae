import CX86

// XSAVE and its state components. SDM vol. 1 chapter 13. Components: x87 (bit 0), SSE (1), AVX (2); standard format only.

/// Where state components lie in an XSAVE area.
package enum ExtendedStateArea {
    package static let header = 512
    package static let upperVectors = 576
    package static let size = 832
}

extension ThunkHandlers {
    static let xgetbv: Handler = { op, s in
        guard s.pointee.cr4 & ControlRegister.osxsave != 0 else { return raise(op, s, Vector.invalidOpcode) }
        guard UInt32(truncatingIfNeeded: gpr(s, GPR.rcx)) == 0 else { return raise(op, s, Vector.generalProtection, 0) }
        setReg(s, 0, UInt32(truncatingIfNeeded: s.pointee.xcr0))
        setReg(s, 16, UInt32(0))
        return next(op, s)
    }
    static let xsetbv: Handler = { op, s in
        guard s.pointee.cr4 & ControlRegister.osxsave != 0 else { return raise(op, s, Vector.invalidOpcode) }
        let value = gpr(s, GPR.rax) & 0xFFFF_FFFF | gpr(s, GPR.rdx) << 32
        guard s.pointee.cpl == 0, UInt32(truncatingIfNeeded: gpr(s, GPR.rcx)) == 0, value & ~7 == 0, value & 1 != 0, value & 6 != 4 else {
            return raise(op, s, Vector.generalProtection, 0)
        }
        s.pointee.xcr0 = value
        updateVectorAccess(s)
        return step(op, s)
    }
    static let xsave: Handler = { op, s in
        guard mayUseExtendedState(op, s) else { return 0 }
        return core(s).xsave(op) ? next(op, s) : 0
    }
    static let xrstor: Handler = { op, s in
        guard mayUseExtendedState(op, s) else { return 0 }
        return core(s).xrstor(op) ? next(op, s) : 0
    }
    /// VZEROUPPER; VZEROALL when `extra` is 1.
    static let zeroVectors: Handler = { op, s in
        guard mayUseVectors(op, s) else { return 0 }
        let vectors = UnsafeMutableRawPointer(s) + Int(X86_XMM_OFFSET)
        for n in 0..<(s.pointee.mode == 2 ? 16 : 8) {
            if op.pointee.extra == 1 { (vectors + n * 32).initializeMemory(as: UInt64.self, repeating: 0, count: 2) }
            (vectors + n * 32 + 16).initializeMemory(as: UInt64.self, repeating: 0, count: 2)
        }
        if s.pointee.mode == 2 { s.pointee.upper_in_use = 0 }
        return next(op, s)
    }
}

/// After a change of CR0, CR4 or XCR0.
func updateVectorAccess(_ s: CPU) {
    var off = s.pointee.vector_off & (VectorOff.x87Unmasked | VectorOff.simdUnmasked)
    if s.pointee.cr0 & (ControlRegister.em | ControlRegister.ts) != 0 { off |= VectorOff.task }
    if s.pointee.cr4 & ControlRegister.osxsave == 0 || s.pointee.xcr0 & 6 != 6 { off |= VectorOff.avx }
    s.pointee.vector_off = off
}
private func mayUseExtendedState(_ op: Op, _ s: CPU) -> Bool {
    if s.pointee.cr4 & ControlRegister.osxsave == 0 {
        _ = raise(op, s, Vector.invalidOpcode)
        return false
    }
    if s.pointee.cr0 & ControlRegister.ts != 0 {
        _ = raise(op, s, Vector.deviceNotAvailable)
        return false
    }
    return true
}
/// #UD or #NM before an instruction with a VEX prefix that is not run by a thunk.
func mayUseVectors(_ op: Op, _ s: CPU) -> Bool {
    if s.pointee.vector_off & VectorOff.avx != 0 {
        _ = raise(op, s, Vector.invalidOpcode)
        return false
    }
    if s.pointee.cr0 & ControlRegister.ts != 0 {
        _ = raise(op, s, Vector.deviceNotAvailable)
        return false
    }
    return true
}

extension X86Core {
    private var vectorCount: Int { state.pointee.mode == 2 ? 16 : 8 }
    private var bounce: UnsafeMutableRawPointer { UnsafeMutableRawPointer(state) + Int(X86_BOUNCE_OFFSET) }
    private func vector(_ n: Int) -> UnsafeMutableRawPointer { UnsafeMutableRawPointer(state) + vectorOffset(n) }

    /// The components an instruction is about: EDX:EAX in XCR0. nil when the address faulted.
    private func requested(_ op: Op, _ linear: UInt64) -> UInt64? {
        guard linear & 63 == 0 else {
            _ = raise(op, state, Vector.generalProtection, 0)
            return nil
        }
        return (gpr(state, GPR.rax) & 0xFFFF_FFFF | gpr(state, GPR.rdx) << 32) & state.pointee.xcr0
    }

    func xsave(_ op: Op) -> Bool {
        let linear = address(op, state)
        guard let components = requested(op, linear) else { return false }
        let size = components & 4 != 0 ? ExtendedStateArea.size : ExtendedStateArea.upperVectors
        if let area = known(linear, size, forWrite: true) {
            write(components, to: area)
            return true
        }
        guard copyInProbe(op, linear, size) else { return false }
        return withUnsafeTemporaryAllocation(byteCount: ExtendedStateArea.size, alignment: 64) { buffer in
            guard let area = buffer.baseAddress else { return false }
            func copy(_ offset: Int, _ size: Int, out: Bool = true) -> Bool {
                let at = linear &+ UInt64(offset)
                return out ? copyOut(op, at, area + offset, size) : copyIn(op, at, area + offset, size, forWrite: false)
            }
            guard copy(ExtendedStateArea.header, 8, out: false) else { return false }
            write(components, to: area)
            if components & 1 != 0 { guard copy(0, 24), copy(32, 128) else { return false } }
            if components & 6 != 0 { guard copy(24, 8) else { return false } }
            if components & 2 != 0 { guard copy(160, vectorCount * 16) else { return false } }
            if components & 4 != 0 { guard copy(ExtendedStateArea.upperVectors, vectorCount * 16) else { return false } }
            return copy(ExtendedStateArea.header, 8)
        }
    }
    /// The components, and the header's word that tells which are not as they begin.
    private func write(_ components: UInt64, to area: UnsafeMutableRawPointer) {
        let hasX87 = isX87InUse
        if components & 1 != 0 {
            if hasX87 {
                let image = legacyImage()
                area.copyMemory(from: image, byteCount: 24)
                (area + 32).copyMemory(from: image + 32, byteCount: 128)
            } else {
                Self.initialiseX87(area)
            }
        }
        if components & 6 != 0 {
            area.storeBytes(of: currentMXCSR, toByteOffset: 24, as: UInt32.self)
            area.storeBytes(of: 0xFFFF, toByteOffset: 28, as: UInt32.self)
        }
        if components & 2 != 0 { for n in 0..<vectorCount { (area + 160 + n * 16).copyMemory(from: vector(n), byteCount: 16) } }
        let upper = area + ExtendedStateArea.upperVectors
        if components & 4 != 0 { for n in 0..<vectorCount { (upper + n * 16).copyMemory(from: vector(n) + 16, byteCount: 16) } }
        let used: UInt64 = (hasX87 ? 1 : 0) | 2 | (state.pointee.upper_in_use != 0 ? 4 : 0)
        let old = area.load(fromByteOffset: ExtendedStateArea.header, as: UInt64.self)
        area.storeBytes(of: old & ~components | used & components, toByteOffset: ExtendedStateArea.header, as: UInt64.self)
    }

    func xrstor(_ op: Op) -> Bool {
        let linear = address(op, state)
        guard let components = requested(op, linear) else { return false }
        guard copyIn(op, linear &+ UInt64(ExtendedStateArea.header), bounce, 64, forWrite: false) else { return false }
        let present = bounce.load(as: UInt64.self)
        let reserved = (1..<8).contains { bounce.load(fromByteOffset: $0 * 8, as: UInt64.self) != 0 }
        guard present & ~state.pointee.xcr0 == 0, !reserved else { return fail(op) }
        if let area = known(linear, ExtendedStateArea.size, forWrite: false) { return read(components, present, from: area) || fail(op) }
        return withUnsafeTemporaryAllocation(byteCount: ExtendedStateArea.size, alignment: 64) { buffer in
            guard let area = buffer.baseAddress else { return false }
            func copy(_ offset: Int, _ size: Int) -> Bool { copyIn(op, linear &+ UInt64(offset), area + offset, size, forWrite: false) }
            if components & present & 1 != 0 { guard copy(0, 24), copy(32, 128) else { return false } }
            if components & present & 2 != 0 { guard copy(160, vectorCount * 16) else { return false } }
            if components & 6 != 0 { guard copy(24, 4) else { return false } }
            if components & present & 4 != 0 { guard copy(ExtendedStateArea.upperVectors, vectorCount * 16) else { return false } }
            return read(components, present, from: area) || fail(op)
        }
    }
    /// False when the area holds no MXCSR; nothing is changed then. Another processor may write to it: each part is read once.
    private func read(_ components: UInt64, _ present: UInt64, from area: UnsafeRawPointer) -> Bool {
        let mxcsr = components & 6 != 0 ? area.load(fromByteOffset: 24, as: UInt32.self) : currentMXCSR
        guard mxcsr & 0xFFFF_0000 == 0 else { return false }
        if components & 4 != 0 { readUpperVectors(present & 4 != 0 ? area + ExtendedStateArea.upperVectors : nil) }
        if components & 2 != 0 {
            for n in 0..<vectorCount {
                if present & 2 != 0 { vector(n).copyMemory(from: area + 160 + n * 16, byteCount: 16) } else { vector(n).initializeMemory(as: UInt64.self, repeating: 0, count: 2) }
            }
        }
        if components & 1 != 0 {
            if present & 1 != 0 {
                takeX87 { image in
                    image.copyMemory(from: area, byteCount: 24)
                    (image + 32).copyMemory(from: area + 32, byteCount: 128)
                }
            } else if isX87InUse {
                takeX87(Self.initialiseX87)
            }
        }
        setMXCSR(mxcsr)
        return true
    }
    private func readUpperVectors(_ upper: UnsafeRawPointer?) {
        if let upper {
            for n in 0..<vectorCount { (vector(n) + 16).copyMemory(from: upper + n * 16, byteCount: 16) }
            state.pointee.upper_in_use = 1
        } else if state.pointee.upper_in_use != 0 {
            for n in 0..<vectorCount { (vector(n) + 16).initializeMemory(as: UInt64.self, repeating: 0, count: 2) }
            if vectorCount == 16 { state.pointee.upper_in_use = 0 }
        }
    }
    private func fail(_ op: Op) -> Bool {
        _ = raise(op, state, Vector.generalProtection, 0)
        return false
    }
}
