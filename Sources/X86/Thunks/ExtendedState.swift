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
        return core(s).xsave(op) ? step(op, s) : 0
    }
    static let xrstor: Handler = { op, s in
        guard mayUseExtendedState(op, s) else { return 0 }
        return core(s).xrstor(op) ? step(op, s) : 0
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
        guard copyInProbe(op, linear, size) else { return false }
        let header = linear &+ UInt64(ExtendedStateArea.header)
        guard copyIn(op, header, bounce, 8, forWrite: false) else { return false }
        let old = bounce.load(as: UInt64.self)
        let image = legacyImage()
        if components & 1 != 0 { guard copyOut(op, linear, image, 24), copyOut(op, linear &+ 32, image + 32, 128) else { return false } }
        if components & 6 != 0 { guard copyOut(op, linear &+ 24, image + 24, 8) else { return false } }
        if components & 2 != 0 { guard copyOut(op, linear &+ 160, image + 160, vectorCount * 16) else { return false } }
        if components & 4 != 0 {
            // Half of them at a time: so much room there is.
            for first in stride(from: 0, to: vectorCount, by: 8) {
                for n in 0..<8 { (bounce + n * 16).copyMemory(from: vector(first + n) + 16, byteCount: 16) }
                guard copyOut(op, linear &+ UInt64(ExtendedStateArea.upperVectors + first * 16), bounce, 128) else { return false }
            }
        }
        let used: UInt64 = state.pointee.upper_in_use != 0 ? 7 : 3
        bounce.storeBytes(of: old & ~components | used & components, as: UInt64.self)
        return copyOut(op, header, bounce, 8)
    }

    func xrstor(_ op: Op) -> Bool {
        let linear = address(op, state)
        guard let components = requested(op, linear) else { return false }
        guard copyIn(op, linear &+ UInt64(ExtendedStateArea.header), bounce, 64, forWrite: false) else { return false }
        let present = bounce.load(as: UInt64.self)
        let reserved = (1..<8).contains { bounce.load(fromByteOffset: $0 * 8, as: UInt64.self) != 0 }
        guard present & ~state.pointee.xcr0 == 0, !reserved else { return fail(op) }
        let image = legacyImage()
        if components & present & 1 != 0 {
            guard copyIn(op, linear, image, 24, forWrite: false), copyIn(op, linear &+ 32, image + 32, 128, forWrite: false) else { return false }
        }
        if components & present & 2 != 0 { guard copyIn(op, linear &+ 160, image + 160, vectorCount * 16, forWrite: false) else { return false } }
        var mxcsr = currentMXCSR
        if components & 6 != 0 {
            guard copyIn(op, linear &+ 24, bounce, 4, forWrite: false) else { return false }
            mxcsr = bounce.load(as: UInt32.self)
            guard mxcsr & 0xFFFF_0000 == 0 else { return fail(op) }
        }
        if components & 4 != 0 { guard restoreUpperVectors(op, linear, present & 4 != 0) else { return false } }
        if components & 1 != 0, present & 1 == 0 { Self.initialiseX87(image) }
        if components & 2 != 0 {
            if present & 2 == 0 { (image + 160).initializeMemory(as: UInt8.self, repeating: 0, count: vectorCount * 16) }
            takeVectors(image, vectorCount)
        }
        if components & 1 != 0 { takeX87(image) }
        setMXCSR(mxcsr)
        return true
    }
    private func restoreUpperVectors(_ op: Op, _ linear: UInt64, _ present: Bool) -> Bool {
        for first in stride(from: 0, to: vectorCount, by: 8) {
            if present {
                let from = linear &+ UInt64(ExtendedStateArea.upperVectors + first * 16)
                guard copyIn(op, from, bounce, 128, forWrite: false) else { return false }
            } else {
                bounce.initializeMemory(as: UInt8.self, repeating: 0, count: 128)
            }
            for n in 0..<8 { (vector(first + n) + 16).copyMemory(from: bounce + n * 16, byteCount: 16) }
        }
        state.pointee.upper_in_use = present ? 1 : 0
        return true
    }
    private func fail(_ op: Op) -> Bool {
        _ = raise(op, state, Vector.generalProtection, 0)
        return false
    }
}
