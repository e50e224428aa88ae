import CX86

/// Segment registers in encoding order. SDM vol. 2 § 3.1.1.1 (Sreg).
enum SegmentRegister {
    static let es = 0
    static let cs = 1
    static let ss = 2
    static let ds = 3
    static let fs = 4
    static let gs = 5
}

/// Bits of `x86_segment.attributes`.
enum SegmentAttribute {
    static let system: UInt16 = 1 << 4  // S: set for code and data
    static let present: UInt16 = 1 << 7
    static let long: UInt16 = 1 << 9
    static let big: UInt16 = 1 << 10
    static let granularity: UInt16 = 1 << 11
}

/// What a descriptor access can end in besides success.
struct SegmentFault: Error {
    var vector: UInt8
    var error: UInt64
}

extension X86Core {
    func segment(_ index: Int) -> UnsafeMutablePointer<x86_segment> {
        // SAFETY: index is 0…5, checked where instructions are decoded.
        UnsafeMutableRawPointer(state).advanced(by: Int(X86_SEGMENTS_OFFSET)).assumingMemoryBound(to: x86_segment.self) + index
    }

    /// Recomputes what follows from CS, SS, EFER and CR0: code size, effective bases, stack mask, privilege.
    func updateMode() {
        let s = state
        let cs = segment(SegmentRegister.cs).pointee
        let ss = segment(SegmentRegister.ss).pointee
        if s.pointee.lma != 0, cs.attributes & SegmentAttribute.long != 0 {
            s.pointee.mode = 2
        } else {
            s.pointee.mode = cs.attributes & SegmentAttribute.big != 0 ? 1 : 0
        }
        let flat = s.pointee.mode == 2
        withBases { bases in
            for index in 0..<6 { bases[index] = flat && index < 4 ? 0 : segment(index).pointee.base }
        }
        s.pointee.sp_mask = flat ? .max : (ss.attributes & SegmentAttribute.big != 0 ? 0xFFFF_FFFF : 0xFFFF)
        s.pointee.narrow = isNarrow ? 1 : 0
        if s.pointee.narrow != 0 {
            cutRegisters()
            usesNarrowCaches = true
        }
        updateContext()
    }
    /// Whether this is code as `CodeKind.narrow` says.
    private var isNarrow: Bool {
        let s = state
        guard s.pointee.mode == 1, s.pointee.lma != 0, s.pointee.cpl == 3, s.pointee.sp_mask == 0xFFFF_FFFF else { return false }
        return segment(SegmentRegister.es).pointee.base | segment(SegmentRegister.cs).pointee.base | segment(SegmentRegister.ss).pointee.base
            | segment(SegmentRegister.ds).pointee.base == 0
    }
    /// The upper halves of registers do not outlast 32-bit code. SDM vol. 1 § 3.4.1.1.
    private func cutRegisters() { for n in 0..<8 { setGPR(state, n, gpr(state, n) & 0xFFFF_FFFF) } }
    private func withBases(_ body: (UnsafeMutablePointer<UInt64>) -> Void) {
        body(UnsafeMutableRawPointer(state).advanced(by: Int(X86_SEGBASE_OFFSET)).assumingMemoryBound(to: UInt64.self))
    }
    func refreshBase(_ index: Int) {
        withBases { $0[index] = state.pointee.mode == 2 && index < 4 ? 0 : segment(index).pointee.base }
        if index < 4, (state.pointee.narrow != 0) != isNarrow { updateMode() }
    }

    // MARK: supervisor access to tables

    /// Runs `body` with supervisor rights; what the processor does on its own behalf ignores CPL.
    func asSupervisor<R>(_ body: () -> R) -> R {
        let (cpl, tlb, mode) = (state.pointee.cpl, state.pointee.tlb, state.pointee.mode)
        state.pointee.cpl = 0
        state.pointee.tlb = state.pointee.tlb_supervisor
        // In long mode tables have 64-bit addresses, whatever code was running.
        if state.pointee.lma != 0 { state.pointee.mode = 2 }
        defer { (state.pointee.cpl, state.pointee.tlb, state.pointee.mode) = (cpl, tlb, mode) }
        return body()
    }
    func systemLoad<T: FixedWidthInteger & UnsignedInteger>(_ linear: UInt64, _: T.Type) throws(SegmentFault) -> T {
        let value: T? = asSupervisor { X86.load(systemOp, state, linear) }
        guard let value else { throw takeFault() }
        return value
    }
    func systemStore<T: FixedWidthInteger & UnsignedInteger>(_ linear: UInt64, _ value: T) throws(SegmentFault) {
        guard asSupervisor({ X86.store(systemOp, state, linear, value) }) else { throw takeFault() }
    }
    func takeFault() -> SegmentFault {
        state.pointee.exit_reason = ExitReason.next
        return SegmentFault(vector: state.pointee.fault_vector, error: state.pointee.fault_error)
    }

    // MARK: descriptors

    private func descriptorAddress(_ selector: UInt16) -> UInt64? {
        let s = state
        let offset = UInt64(selector & 0xFFF8)
        if selector & 4 != 0 {
            guard s.pointee.ldtr.attributes & SegmentAttribute.present != 0, offset + 7 <= UInt64(limitInBytes(s.pointee.ldtr)) else { return nil }
            return s.pointee.ldtr.base &+ offset
        }
        guard offset + 7 <= UInt64(s.pointee.gdt_limit) else { return nil }
        return s.pointee.gdt_base &+ offset
    }
    private func limitInBytes(_ segment: x86_segment) -> UInt32 { segment.limit }

    func readDescriptor(_ selector: UInt16) throws(SegmentFault) -> UInt64 {
        guard let address = descriptorAddress(selector) else {
            throw SegmentFault(vector: Vector.generalProtection, error: UInt64(selector & 0xFFFC))
        }
        return try systemLoad(address, UInt64.self)
    }
    static func parse(_ selector: UInt16, _ raw: UInt64) -> x86_segment {
        let base = (raw >> 16) & 0xFF_FFFF | (raw >> 56) << 24
        var limit = UInt32(truncatingIfNeeded: raw & 0xFFFF | (raw >> 32) & 0xF_0000)
        let attributes = UInt16(truncatingIfNeeded: (raw >> 40) & 0xFF | ((raw >> 52) & 0xF) << 8)
        if attributes & SegmentAttribute.granularity != 0 { limit = limit << 12 | 0xFFF }
        return x86_segment(base: base, limit: limit, selector: selector, attributes: attributes)
    }
    private func markAccessed(_ selector: UInt16, _ raw: UInt64) throws(SegmentFault) {
        guard raw & 1 << 40 == 0, let address = descriptorAddress(selector) else { return }
        try systemStore(address &+ 5, UInt8(truncatingIfNeeded: raw >> 40) | 1)
    }

    /// Loads a data segment register, as MOV and POP do. SDM vol. 2 MOV.
    func loadSegment(_ index: Int, _ selector: UInt16) throws(SegmentFault) {
        let s = state
        if s.pointee.cr0 & ControlRegister.pe == 0 {
            segment(index).pointee.selector = selector
            segment(index).pointee.base = UInt64(selector) << 4
            refreshBase(index)
            return
        }
        let error = UInt64(selector & 0xFFFC)
        if selector & 0xFFFC == 0 {
            if index == SegmentRegister.ss, s.pointee.mode != 2 || s.pointee.cpl == 3 {
                throw SegmentFault(vector: Vector.generalProtection, error: 0)
            }
            segment(index).pointee = index == SegmentRegister.ss ? noStackSegment(selector) : x86_segment(base: 0, limit: 0, selector: selector, attributes: 0)
            refreshBase(index)
            return
        }
        if index == SegmentRegister.ss {
            segment(index).pointee = try stackSegment(selector, cpl: s.pointee.cpl)
            return updateMode()
        }
        let raw = try readDescriptor(selector)
        let new = Self.parse(selector, raw)
        let isCode = new.attributes & 8 != 0
        let conforming = isCode && new.attributes & 4 != 0
        guard new.attributes & SegmentAttribute.system != 0, !isCode || new.attributes & 2 != 0,
            conforming || max(UInt8(selector & 3), s.pointee.cpl) <= UInt8((new.attributes >> 5) & 3)
        else { throw SegmentFault(vector: Vector.generalProtection, error: error) }
        guard new.attributes & SegmentAttribute.present != 0 else { throw SegmentFault(vector: Vector.segmentNotPresent, error: error) }
        try markAccessed(selector, raw)
        segment(index).pointee = new
        segment(index).pointee.attributes |= 1
        refreshBase(index)
    }
    /// What SS would be at a privilege, found to be right for it; nothing is loaded.
    func stackSegment(_ selector: UInt16, cpl: UInt8) throws(SegmentFault) -> x86_segment {
        let error = UInt64(selector & 0xFFFC)
        guard error != 0 else { throw SegmentFault(vector: Vector.generalProtection, error: 0) }
        let raw = try readDescriptor(selector)
        var new = Self.parse(selector, raw)
        guard new.attributes & (SegmentAttribute.system | 0xA) == SegmentAttribute.system | 2, UInt8(selector & 3) == cpl, UInt8((new.attributes >> 5) & 3) == cpl
        else { throw SegmentFault(vector: Vector.generalProtection, error: error) }
        guard new.attributes & SegmentAttribute.present != 0 else { throw SegmentFault(vector: Vector.stackFault, error: error) }
        try markAccessed(selector, raw)
        new.attributes |= 1
        return new
    }
    /// The same behind a return to `code`, which may need none.
    func stackSegment(_ selector: UInt16, cpl: UInt8, for code: x86_segment) throws(SegmentFault) -> x86_segment {
        try isLong(code) && cpl < 3 && selector == UInt16(cpl) ? noStackSegment(selector) : stackSegment(selector, cpl: cpl)
    }
    /// No stack segment: kernels of 64 bits need none.
    func noStackSegment(_ selector: UInt16) -> x86_segment { x86_segment(base: 0, limit: 0, selector: selector, attributes: SegmentAttribute.big) }

    /// Loads CS for a far jump, call, return or interrupt, and with it privilege and mode. `cpl` is the new one.
    func loadCode(_ selector: UInt16, cpl: UInt8, returning: Bool) throws(SegmentFault) {
        let s = state
        if s.pointee.cr0 & ControlRegister.pe == 0 {
            segment(SegmentRegister.cs).pointee.selector = selector
            segment(SegmentRegister.cs).pointee.base = UInt64(selector) << 4
            updateMode()
            return
        }
        take(try codeSegment(selector, cpl: cpl, returning: returning), nil, cpl: cpl)
    }
    /// Goes on in code, and with a stack, that were found to be right for a privilege.
    func take(_ code: x86_segment, _ stack: x86_segment?, cpl: UInt8) {
        let wasLong = state.pointee.mode == 2
        segment(SegmentRegister.cs).pointee = code
        if let stack { segment(SegmentRegister.ss).pointee = stack }
        state.pointee.cpl = cpl
        // Long mode to long mode: nothing about address formation changes.
        if wasLong, isLong(code) { updateContext() } else { updateMode() }
    }
    func isLong(_ code: x86_segment) -> Bool { state.pointee.lma != 0 && code.attributes & SegmentAttribute.long != 0 }
    /// What CS would be at a privilege, found to be right for it; nothing is loaded.
    func codeSegment(_ selector: UInt16, cpl: UInt8, returning: Bool) throws(SegmentFault) -> x86_segment {
        let error = UInt64(selector & 0xFFFC)
        guard error != 0 else { throw SegmentFault(vector: Vector.generalProtection, error: 0) }
        let raw = try readDescriptor(selector)
        var new = Self.parse(selector, raw)
        guard new.attributes & SegmentAttribute.system != 0, new.attributes & 8 != 0 else {
            throw SegmentFault(vector: Vector.generalProtection, error: error)
        }
        let dpl = UInt8((new.attributes >> 5) & 3)
        let conforming = new.attributes & 4 != 0
        guard conforming ? dpl <= cpl : dpl == cpl && (returning || UInt8(selector & 3) <= cpl) else {
            throw SegmentFault(vector: Vector.generalProtection, error: error)
        }
        guard new.attributes & SegmentAttribute.present != 0 else { throw SegmentFault(vector: Vector.segmentNotPresent, error: error) }
        if isLong(new), new.attributes & SegmentAttribute.big != 0 {
            throw SegmentFault(vector: Vector.generalProtection, error: error)
        }
        try markAccessed(selector, raw)
        new.selector = selector & 0xFFFC | UInt16(cpl)
        new.attributes |= 1
        return new
    }

    /// A flat segment as SYSCALL and SYSENTER make it.
    func setFlat(_ index: Int, _ selector: UInt16, code: Bool, dpl: UInt16, long: Bool) {
        let type: UInt16 = code ? 0xB : 0x3
        segment(index).pointee = x86_segment(
            base: 0, limit: .max, selector: selector,
            attributes: type | SegmentAttribute.system | dpl << 5 | SegmentAttribute.present
                | SegmentAttribute.granularity | (long ? SegmentAttribute.long : SegmentAttribute.big))
    }

    /// LTR and LLDT: 16-byte system descriptors in long mode.
    func loadSystemSegment(_ selector: UInt16, task: Bool) throws(SegmentFault) {
        let s = state
        let error = UInt64(selector & 0xFFFC)
        if selector & 0xFFFC == 0 {
            guard !task else { throw SegmentFault(vector: Vector.generalProtection, error: 0) }
            s.pointee.ldtr = x86_segment(base: 0, limit: 0, selector: selector, attributes: 0)
            return
        }
        guard selector & 4 == 0, let address = descriptorAddress(selector) else {
            throw SegmentFault(vector: Vector.generalProtection, error: error)
        }
        let raw = try systemLoad(address, UInt64.self)
        var new = Self.parse(selector, raw)
        let type = new.attributes & 0x1F
        guard task ? (type == 9 || type == 1) : type == 2 else { throw SegmentFault(vector: Vector.generalProtection, error: error) }
        guard new.attributes & SegmentAttribute.present != 0 else { throw SegmentFault(vector: Vector.segmentNotPresent, error: error) }
        if s.pointee.lma != 0 { new.base |= UInt64(try systemLoad(address &+ 8, UInt32.self)) << 32 }
        if task {
            try systemStore(address &+ 5, UInt8(truncatingIfNeeded: raw >> 40) | 2)
            new.attributes |= 2
            s.pointee.tr = new
        } else {
            s.pointee.ldtr = new
        }
    }
}
