import CX86

// Running thunks. The guest's x87/MMX registers and MXCSR live in the host's while a core runs (see X86Core.run); all
// exceptions stay masked there, and a guest that unmasks some is served on the slow path, so the host never traps.

/// Bits of an operation's `aux` for thunk handlers.
enum ThunkAux {
    static let writesMemory: UInt8 = 1
    static let aligned: UInt8 = 2
    static let setsFlags: UInt8 = 4
    static let x87: UInt8 = 8
    static let loadsFlags: UInt8 = 16
    /// Does not wait for pending x87 exceptions (FNINIT and friends).
    static let nonWaiting: UInt8 = 32
    /// Waits for pending x87 exceptions without being an x87 instruction: MMX.
    static let waits: UInt8 = 64
}
/// Bits of the x87 control word that are not reserved, and the reserved one that is set. SDM vol. 1 § 8.1.5.
enum X87Control {
    static let defined: Int32 = 0x1F3F
    static let alwaysSet: Int32 = 0x40
}
/// Bits of `x86_cpu.vector_off`.
enum VectorOff {
    /// The guest wants exceptions of the x87, or of SSE.
    static let x87Unmasked: UInt8 = 1
    static let simdUnmasked: UInt8 = 2
    /// CR0.EM or TS.
    static let task: UInt8 = 4
    /// CR4.OSXSAVE or XCR0 does not allow AVX.
    static let avx: UInt8 = 8
}

@inline(__always) private func call(_ op: Op, _ s: CPU, _ memory: UnsafeMutableRawPointer?) {
    // SAFETY: imm is the address of a finished thunk; the builder never makes a thunk operation without one.
    unsafeBitCast(UInt(op.pointee.imm), to: x86_thunk.self)(s, memory)
}
@inline(__always) private func takeFlags(_ op: Op, _ s: CPU) {
    if op.pointee.aux & ThunkAux.setsFlags != 0 { setArithmeticFlags(s, UInt64(s.pointee.raw_flags)) }
}
/// #NM or #UD by CR0.TS and EM, before a floating-point instruction. SDM vol. 3 § 2.5.
@inline(__always) private func isAvailable(_ op: Op, _ s: CPU) -> Bool { s.pointee.vector_off & ~VectorOff.avx == 0 }
@inline(never) private func unavailable(_ op: Op, _ s: CPU) -> Bool {
    let x87 = op.pointee.aux & ThunkAux.x87 != 0
    if s.pointee.cr0 & ControlRegister.em != 0 {
        _ = raise(op, s, x87 ? Vector.deviceNotAvailable : Vector.invalidOpcode)
        return true
    }
    if s.pointee.cr0 & ControlRegister.ts != 0 {
        _ = raise(op, s, Vector.deviceNotAvailable)
        return true
    }
    if x87 && op.pointee.aux & ThunkAux.nonWaiting == 0 || op.pointee.aux & ThunkAux.waits != 0, core(s).hasPendingX87Exception {
        _ = raise(op, s, Vector.floatingPoint)
        return true
    }
    return false
}

enum ThunkHandlers {
    static let register: Handler = { op, s in
        if !isAvailable(op, s) { return slowThunk(op, s, nil) }
        if op.pointee.aux & ThunkAux.loadsFlags != 0 { s.pointee.raw_flags = UInt32(truncatingIfNeeded: flagsImage(s) & EFlags.arithmetic) }
        call(op, s, nil)
        takeFlags(op, s)
        return next(op, s)
    }
    static let memory: Handler = { op, s in
        if !isAvailable(op, s) { return slowThunk(op, s, address(op, s)) }
        return onMemory(op, s)
    }
    /// VEX instructions on vector registers.
    static let vexRegister: Handler = { op, s in
        if s.pointee.vector_off & VectorOff.avx != 0 { return raise(op, s, Vector.invalidOpcode) }
        if !isAvailable(op, s) { return slowThunk(op, s, nil) }
        call(op, s, nil)
        takeFlags(op, s)
        return next(op, s)
    }
    static let vexMemory: Handler = { op, s in
        if s.pointee.vector_off & VectorOff.avx != 0 { return raise(op, s, Vector.invalidOpcode) }
        if !isAvailable(op, s) { return slowThunk(op, s, address(op, s)) }
        return onMemory(op, s)
    }
    /// Instructions on general registers: no floating-point unit in the way.
    static let generalRegister: Handler = { op, s in
        call(op, s, nil)
        takeFlags(op, s)
        return next(op, s)
    }
    static let generalMemory: Handler = { op, s in onMemory(op, s) }
    static let loadControl: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        guard let value: UInt16 = load(op, s, address(op, s)) else { return 0 }
        core(s).setX87Control(value)
        return step(op, s)
    }
    static let storeControl: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        guard store(op, s, address(op, s), UInt16(truncatingIfNeeded: s.pointee.x87_control)) else { return 0 }
        return step(op, s)
    }
    static let storeStatusAX: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        setReg(s, 0, core(s).x87Status)
        return step(op, s)
    }
    static let storeStatus: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        guard store(op, s, address(op, s), core(s).x87Status) else { return 0 }
        return step(op, s)
    }
    static let initialize: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        cx_fninit()
        core(s).setX87Control(0x37F)
        return step(op, s)
    }
    /// FLDENV, FRSTOR (extra 0) and FNSTENV, FNSAVE (extra 1), through a copy whose control word and addresses are the guest's.
    static let environment: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        return core(s).x87Environment(op) ? step(op, s) : 0
    }
    static let wait: Handler = { op, s in
        if s.pointee.cr0 & (ControlRegister.mp | ControlRegister.ts) == ControlRegister.mp | ControlRegister.ts {
            return raise(op, s, Vector.deviceNotAvailable)
        }
        if s.pointee.vector_off & VectorOff.x87Unmasked != 0, core(s).hasPendingX87Exception { return raise(op, s, Vector.floatingPoint) }
        return step(op, s)
    }
    static let fxsave: Handler = { op, s in
        if s.pointee.cr0 & (ControlRegister.em | ControlRegister.ts) != 0 { return raise(op, s, Vector.deviceNotAvailable) }
        return core(s).fxsave(op) ? step(op, s) : 0
    }
    static let fxrstor: Handler = { op, s in
        if s.pointee.cr0 & (ControlRegister.em | ControlRegister.ts) != 0 { return raise(op, s, Vector.deviceNotAvailable) }
        return core(s).fxrstor(op) ? step(op, s) : 0
    }
    static let loadMXCSR: Handler = { op, s in
        if s.pointee.cr0 & ControlRegister.ts != 0 { return raise(op, s, Vector.deviceNotAvailable) }
        guard let value: UInt32 = load(op, s, address(op, s)) else { return 0 }
        guard value & 0xFFFF_0000 == 0 else { return raise(op, s, Vector.generalProtection, 0) }
        core(s).setMXCSR(value)
        return step(op, s)
    }
    static let storeMXCSR: Handler = { op, s in
        if s.pointee.cr0 & ControlRegister.ts != 0 { return raise(op, s, Vector.deviceNotAvailable) }
        guard store(op, s, address(op, s), core(s).currentMXCSR) else { return 0 }
        return step(op, s)
    }
    /// MASKMOVQ and MASKMOVDQU: bytes chosen by a mask, to [rDI].
    static let maskedMove: Handler = { op, s in
        if !isAvailable(op, s), unavailable(op, s) { return 0 }
        return core(s).maskedMove(op) ? step(op, s) : 0
    }
}

@inline(__always) private func onMemory(_ op: Op, _ s: CPU) -> Next {
    let linear = address(op, s)
    if op.pointee.aux & ThunkAux.aligned != 0, linear & UInt64(op.pointee.size &- 1) != 0 { return raise(op, s, Vector.generalProtection, 0) }
    let entry = tlbEntry(s, linear)
    let tag = op.pointee.aux & ThunkAux.writesMemory != 0 ? entry.writeTag : entry.readTag
    if linear ^ tag <= UInt64(4096 &- Int(op.pointee.size)) {
        call(op, s, hostPointer(entry, linear))
        takeFlags(op, s)
        return next(op, s)
    }
    return bouncedThunk(op, s, linear)
}

/// The memory operand through a copy: device memory, page crossings, code pages, first touches.
@inline(never) private func bouncedThunk(_ op: Op, _ s: CPU, _ linear: UInt64) -> Next {
    let size = Int(op.pointee.size)
    let writes = op.pointee.aux & ThunkAux.writesMemory != 0
    let bounce = UnsafeMutableRawPointer(s) + Int(X86_BOUNCE_OFFSET)
    guard core(s).copyIn(op, linear, bounce, size, forWrite: writes) else { return 0 }
    call(op, s, bounce)
    if writes { guard core(s).copyOut(op, linear, bounce, size) else { return 0 } }
    takeFlags(op, s)
    return next(op, s)
}

/// With unmasked exceptions or CR0 bits in the way. An SSE instruction that raises an exception its guest wants leaves
/// every register as it was. SDM vol. 1 § 11.5. An x87 instruction runs with the guest's own control word: what it leaves
/// undone for an unmasked exception is the host's affair, which raises nothing before the next instruction that waits.
/// SDM vol. 1 § 8.6.
@inline(never) private func slowThunk(_ op: Op, _ s: CPU, _ linear: UInt64?) -> Next {
    if unavailable(op, s) { return 0 }
    if let linear, op.pointee.aux & ThunkAux.aligned != 0, linear & UInt64(op.pointee.size &- 1) != 0 { return raise(op, s, Vector.generalProtection, 0) }
    let core = core(s)
    let bounce = UnsafeMutableRawPointer(s) + Int(X86_BOUNCE_OFFSET)
    let size = Int(op.pointee.size)
    let writes = op.pointee.aux & ThunkAux.writesMemory != 0
    if let linear { guard core.copyIn(op, linear, bounce, size, forWrite: writes) else { return 0 } }
    let watch = op.pointee.aux & ThunkAux.x87 == 0 && s.pointee.vector_off & VectorOff.simdUnmasked != 0
    let unmasks = op.pointee.aux & (ThunkAux.x87 | ThunkAux.nonWaiting) == ThunkAux.x87 && s.pointee.vector_off & VectorOff.x87Unmasked != 0
    var saved: (gpr: [UInt64], xmm: [UInt8], x87: [UInt8]) = ([], [], [])
    let xmm = UnsafeMutableRawPointer(s) + Int(X86_XMM_OFFSET)
    if watch {
        saved.gpr = (0..<16).map { gpr(s, $0) }
        saved.xmm = Array(UnsafeRawBufferPointer(start: xmm, count: 512))
        if op.pointee.aux & ThunkAux.waits != 0 { saved.x87 = core.x87Image() }
        s.pointee.mxcsr = core.currentMXCSR
        cx_ldmxcsr((s.pointee.mxcsr | 0x1F80) & ~0x3F)
    }
    if op.pointee.aux & ThunkAux.loadsFlags != 0 { s.pointee.raw_flags = UInt32(truncatingIfNeeded: flagsImage(s) & EFlags.arithmetic) }
    if unmasks { cx_fldcw(UInt16(truncatingIfNeeded: s.pointee.x87_control)) }
    call(op, s, linear == nil ? nil : bounce)
    if unmasks { cx_mask_x87() }
    if watch {
        var raised = cx_stmxcsr() & 0x3F
        let wanted = raised & ~(s.pointee.mxcsr >> 7)
        // Invalid, denormal and divide by zero come before the computation, whose own exceptions are not seen then.
        if wanted & 7 != 0 { raised &= 7 }
        s.pointee.mxcsr |= raised
        cx_ldmxcsr(s.pointee.mxcsr | 0x1F80)
        if wanted != 0 {
            for index in 0..<16 { setGPR(s, index, saved.gpr[index]) }
            saved.xmm.withUnsafeBytes { xmm.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: 512) }
            if op.pointee.aux & ThunkAux.waits != 0 { core.putBackMMX(saved.x87) }
            return raise(op, s, s.pointee.cr4 & 0x400 != 0 ? Vector.simd : Vector.invalidOpcode)
        }
    }
    if let linear, writes { guard core.copyOut(op, linear, bounce, size) else { return 0 } }
    takeFlags(op, s)
    return step(op, s)
}

extension X86Core {
    func copyIn(_ op: Op, _ linear: UInt64, _ target: UnsafeMutableRawPointer, _ size: Int, forWrite: Bool) -> Bool {
        if let host = known(linear, size, forWrite: forWrite) {
            target.copyMemory(from: host, byteCount: size)
            return true
        }
        // Ten bytes of the x87 are an access of eight and one of two; what is wrong with the first comes first.
        guard size == 10 || checkCanonical(op, linear &+ UInt64(size - 1)) else { return false }
        var done = 0
        while done < size {
            let at = linear &+ UInt64(done)
            let rest = Self.inPage(at, size - done)
            if let host = known(at, rest, forWrite: forWrite) {
                (target + done).copyMemory(from: host, byteCount: rest)
                done += rest
                continue
            }
            let step = min(8, size - done)
            let value = load(op, at, step, forWrite ? .write : .read)
            if state.pointee.exit_reason != ExitReason.next { return false }
            for i in 0..<step { (target + done + i).storeBytes(of: UInt8(truncatingIfNeeded: value >> UInt64(8 * i)), as: UInt8.self) }
            done += step
        }
        return true
    }
    /// How much of a range lies in the page that it begins in.
    private static func inPage(_ linear: UInt64, _ size: Int) -> Int { min(size, 4096 - Int(linear & 4095)) }
    /// Where a range lies that the TLB knows whole.
    func known(_ linear: UInt64, _ size: Int, forWrite: Bool) -> UnsafeMutableRawPointer? {
        let entry = tlbEntry(state, linear)
        let tag = forWrite ? entry.writeTag : entry.readTag
        return linear ^ tag <= UInt64(4096 - size) ? hostPointer(entry, linear) : nil
    }
    func copyOut(_ op: Op, _ linear: UInt64, _ source: UnsafeRawPointer, _ size: Int) -> Bool {
        var done = 0
        while done < size {
            let at = linear &+ UInt64(done)
            let rest = Self.inPage(at, size - done)
            if let host = known(at, rest, forWrite: true) {
                host.copyMemory(from: source + done, byteCount: rest)
                done += rest
                continue
            }
            let step = min(8, size - done)
            var value: UInt64 = 0
            for i in 0..<step { value |= UInt64((source + done + i).load(as: UInt8.self)) << UInt64(8 * i) }
            guard store(op, at, value, step) else { return false }
            done += step
        }
        return true
    }

    // MARK: control words

    func x87Image() -> [UInt8] {
        cx_fxsave(image)
        return Array(UnsafeRawBufferPointer(start: image, count: 160))
    }
    /// The registers as they were; the unit stays in its MMX state, whose TOP is 0.
    func putBackMMX(_ saved: [UInt8]) {
        let top = Int(saved[3] >> 3) & 7
        cx_fxsave(image)
        saved.withUnsafeBytes { old in
            for n in 0..<8 { (image + 32 + n * 16).copyMemory(from: old.baseAddress.unsafelyUnwrapped + 32 + ((n - top) & 7) * 16, byteCount: 10) }
        }
        cx_fxrstor(image)
    }
    var hasPendingX87Exception: Bool { x87Status & 0x80 != 0 }
    /// With ES and B, which sum up the exceptions that the guest left unmasked. SDM vol. 1 § 8.1.3.3.
    var x87Status: UInt16 { Self.summarised(cx_fnstsw(), control: UInt16(truncatingIfNeeded: state.pointee.x87_control)) }
    static func summarised(_ status: UInt16, control: UInt16) -> UInt16 { status & 0x3F & ~control != 0 ? status | 0x8080 : status & ~0x8080 }
    /// Reserved bits read as the processor has them: bit 6 set, the others clear. SDM vol. 1 § 8.1.5.
    func setX87Control(_ value: UInt16) {
        let value = value & UInt16(X87Control.defined) | UInt16(X87Control.alwaysSet)
        state.pointee.x87_control = UInt64(value)
        cx_fldcw(value | 0x3F)
        setUnmasked(VectorOff.x87Unmasked, value & 0x3F != 0x3F)
    }
    private func setUnmasked(_ bit: UInt8, _ on: Bool) {
        state.pointee.vector_off = state.pointee.vector_off & ~bit | (on ? bit : 0)
    }
    var currentMXCSR: UInt32 { state.pointee.mxcsr | cx_stmxcsr() & 0x3F }
    func setMXCSR(_ value: UInt32) {
        state.pointee.mxcsr = value
        cx_ldmxcsr(value | 0x1F80)
        setUnmasked(VectorOff.simdUnmasked, value & 0x1F80 != 0x1F80)
    }

    // MARK: entry to and exit from guest code

    private var image: UnsafeMutableRawPointer { UnsafeMutableRawPointer(state) + Int(X86_FXAREA_OFFSET) }

    func resetFloatingPointImage() {
        image.initializeMemory(as: UInt8.self, repeating: 0, count: 512)
        image.storeBytes(of: 0x37F, as: UInt16.self)
        image.storeBytes(of: 0x1F80, toByteOffset: 24, as: UInt32.self)
        image.storeBytes(of: 0xFFFF, toByteOffset: 28, as: UInt32.self)
        (UnsafeMutableRawPointer(state) + Int(X86_XMM_OFFSET)).initializeMemory(as: UInt8.self, repeating: 0, count: 512)
    }
    func loadFloatingPoint() {
        image.storeBytes(of: UInt16(truncatingIfNeeded: state.pointee.x87_control) | 0x3F, as: UInt16.self)
        image.storeBytes(of: state.pointee.mxcsr | 0x1F80, toByteOffset: 24, as: UInt32.self)
        cx_fxrstor(image)
    }
    func saveFloatingPoint() {
        state.pointee.mxcsr = currentMXCSR
        cx_fxsave(image)
        cx_fninit()
        cx_ldmxcsr(0x1F80)
    }

    // MARK: whole-state instructions

    func fxsave(_ op: Op) -> Bool {
        let linear = address(op, state)
        guard linear & 15 == 0 else {
            _ = raise(op, state, Vector.generalProtection, 0)
            return false
        }
        guard copyInProbe(op, linear, 512) else { return false }
        return copyOut(op, linear, legacyImage(), state.pointee.mode == 2 ? 416 : 288)
    }
    /// The registers as FXSAVE shows them.
    func legacyImage() -> UnsafeMutableRawPointer {
        cx_fxsave(image)
        image.storeBytes(of: UInt16(truncatingIfNeeded: state.pointee.x87_control), as: UInt16.self)
        image.storeBytes(of: x87Status, toByteOffset: 2, as: UInt16.self)
        image.storeBytes(of: 0, toByteOffset: 6, as: UInt16.self)  // FOP, FIP and FDP are host addresses
        image.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        image.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
        image.storeBytes(of: currentMXCSR, toByteOffset: 24, as: UInt32.self)
        image.storeBytes(of: 0xFFFF, toByteOffset: 28, as: UInt32.self)
        for n in 0..<16 { (image + 160 + n * 16).copyMemory(from: UnsafeMutableRawPointer(state) + vectorOffset(n), byteCount: 16) }
        return image
    }
    /// The lower halves of the first vector registers from an image.
    func takeVectors(_ image: UnsafeRawPointer, _ count: Int) {
        for n in 0..<count { (UnsafeMutableRawPointer(state) + vectorOffset(n)).copyMemory(from: image + 160 + n * 16, byteCount: 16) }
    }
    /// Registers that `body` writes to an image as FXSAVE makes it.
    func takeX87(_ body: (UnsafeMutableRawPointer) -> Void) {
        body(image)
        takeX87(image)
    }
    /// Whether the x87 may be in another state than FNINIT's, its registers 0.
    var isX87InUse: Bool { !Self.tellsUse || state.pointee.x87_control != 0x37F || cx_xinuse() & 1 != 0 }
    /// The host says which state is in use: XGETBV with 1 in ECX. SDM vol. 1 § 13.6.
    private static let tellsUse: Bool = {
        var out: [UInt32] = [0, 0, 0, 0]
        cx_cpuid(1, 0, &out)
        guard out[2] & 1 << 27 != 0 else { return false }
        cx_cpuid(0, 0, &out)
        guard out[0] >= 0xD else { return false }
        cx_cpuid(0xD, 1, &out)
        return out[0] & 4 != 0
    }()
    func takeX87(_ image: UnsafeMutableRawPointer) {
        let control = image.load(as: UInt16.self)
        image.storeBytes(of: control | 0x3F, as: UInt16.self)
        image.storeBytes(of: currentMXCSR | 0x1F80, toByteOffset: 24, as: UInt32.self)
        cx_fxrstor(image)
        setX87Control(control)
    }
    static func initialiseX87(_ image: UnsafeMutableRawPointer) {
        image.initializeMemory(as: UInt8.self, repeating: 0, count: 24)
        (image + 32).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
        image.storeBytes(of: 0x37F, as: UInt16.self)
    }
    /// Whether `size` bytes can all be written.
    func copyInProbe(_ op: Op, _ linear: UInt64, _ size: Int) -> Bool {
        for offset in [0, UInt64(size) - 1] where known(linear &+ offset, 1, forWrite: true) == nil {
            _ = load(op, linear &+ offset, 1, .write)
            if state.pointee.exit_reason != ExitReason.next { return false }
        }
        return true
    }
    func fxrstor(_ op: Op) -> Bool {
        let linear = address(op, state)
        guard linear & 15 == 0 else {
            _ = raise(op, state, Vector.generalProtection, 0)
            return false
        }
        guard copyIn(op, linear, image, 416, forWrite: false) else { return false }
        let mxcsr = image.load(fromByteOffset: 24, as: UInt32.self)
        guard mxcsr & 0xFFFF_0000 == 0 else {
            _ = raise(op, state, Vector.generalProtection, 0)
            return false
        }
        takeVectors(image, state.pointee.mode == 2 ? 16 : 8)
        takeX87(image)
        setMXCSR(mxcsr)
        return true
    }

    func x87Environment(_ op: Op) -> Bool {
        let s = state
        let bounce = UnsafeMutableRawPointer(s) + Int(X86_BOUNCE_OFFSET)
        let linear = address(op, s)
        let size = Int(op.pointee.size)
        let stores = op.pointee.extra == 1
        guard copyIn(op, linear, bounce, size, forWrite: stores) else { return false }
        if stores {
            let (control, status) = (UInt16(truncatingIfNeeded: s.pointee.x87_control), x87Status)
            unsafeBitCast(UInt(op.pointee.imm), to: x86_thunk.self)(s, bounce)
            bounce.storeBytes(of: control, as: UInt16.self)
            bounce.storeBytes(of: status, toByteOffset: 4, as: UInt16.self)
            for offset in stride(from: 12, to: 28, by: 4) { bounce.storeBytes(of: 0, toByteOffset: offset, as: UInt32.self) }
            // FNSTENV masks every exception; FNSAVE initialises.
            setX87Control(size == 28 ? control | 0x3F : 0x37F)
            return copyOut(op, linear, bounce, size)
        }
        let control = bounce.load(as: UInt16.self)
        bounce.storeBytes(of: control | 0x3F, as: UInt16.self)
        unsafeBitCast(UInt(op.pointee.imm), to: x86_thunk.self)(s, bounce)
        setX87Control(control)
        return true
    }

    func maskedMove(_ op: Op) -> Bool {
        let s = state
        let mask64 = UInt64.max &>> UInt64(op.pointee.ashift)
        let linear = (gpr(s, GPR.rdi) & mask64) &+ segmentBase(s, op.pointee.seg)
        var data = [UInt8](repeating: 0, count: 16)
        var mask = data
        if op.pointee.size == 16 {
            let xmm = UnsafeRawPointer(s) + Int(X86_XMM_OFFSET)
            for i in 0..<16 {
                data[i] = (xmm + Int(op.pointee.reg) * 4 + i).load(as: UInt8.self)
                mask[i] = (xmm + Int(op.pointee.rm) * 4 + i).load(as: UInt8.self)
            }
        } else {
            // MM registers are the low 64 bits of the x87 registers, counted from R0 whatever TOP is.
            cx_fxsave(image)
            let top = Int(image.load(fromByteOffset: 2, as: UInt16.self) >> 11) & 7
            for i in 0..<8 {
                data[i] = (image + 32 + (Int(op.pointee.reg / 8) & 7 - top + 8) % 8 * 16 + i).load(as: UInt8.self)
                mask[i] = (image + 32 + (Int(op.pointee.rm / 8) & 7 - top + 8) % 8 * 16 + i).load(as: UInt8.self)
            }
        }
        for i in 0..<Int(op.pointee.size) where mask[i] & 0x80 != 0 {
            guard store(op, linear &+ UInt64(i), UInt64(data[i]), 1) else { return false }
        }
        return true
    }
}
