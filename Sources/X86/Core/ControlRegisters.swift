import CX86

/// Model-specific registers the core keeps itself. SDM vol. 4.
enum MSR {
    static let tsc: UInt32 = 0x10
    static let sysenterCS: UInt32 = 0x174
    static let sysenterESP: UInt32 = 0x175
    static let sysenterEIP: UInt32 = 0x176
    static let efer: UInt32 = 0xC000_0080
    static let star: UInt32 = 0xC000_0081
    static let lstar: UInt32 = 0xC000_0082
    static let cstar: UInt32 = 0xC000_0083
    static let sfmask: UInt32 = 0xC000_0084
    static let fsBase: UInt32 = 0xC000_0100
    static let gsBase: UInt32 = 0xC000_0101
    static let kernelGSBase: UInt32 = 0xC000_0102
}

extension X86Core {
    func readMSR(_ index: UInt32) -> UInt64? {
        let s = state
        switch index {
        case MSR.tsc: return timeStampCounter
        case MSR.sysenterCS: return s.pointee.sysenter_cs
        case MSR.sysenterESP: return s.pointee.sysenter_esp
        case MSR.sysenterEIP: return s.pointee.sysenter_eip
        case MSR.efer: return s.pointee.efer
        case MSR.star: return s.pointee.star
        case MSR.lstar: return s.pointee.lstar
        case MSR.cstar: return s.pointee.cstar
        case MSR.sfmask: return s.pointee.sfmask
        case MSR.fsBase: return s.pointee.seg.4.base
        case MSR.gsBase: return s.pointee.seg.5.base
        case MSR.kernelGSBase: return s.pointee.kernel_gs_base
        default: return outside { environment.readMSR(index) }
        }
    }

    func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool {
        let s = state
        switch index {
        case MSR.lstar, MSR.cstar, MSR.fsBase, MSR.gsBase, MSR.kernelGSBase, MSR.sysenterESP, MSR.sysenterEIP:
            if !isCanonical(value) { return false }
        default: break
        }
        switch index {
        case MSR.sysenterCS: s.pointee.sysenter_cs = value
        case MSR.sysenterESP: s.pointee.sysenter_esp = value
        case MSR.sysenterEIP: s.pointee.sysenter_eip = value
        case MSR.efer:
            let known = ControlRegister.sce | ControlRegister.lme | ControlRegister.lma | ControlRegister.nxe
            guard value & ~known == 0 else { return false }
            // LME cannot change while paging is on; LMA follows CR0.PG.
            if s.pointee.cr0 & ControlRegister.pg != 0, (value ^ s.pointee.efer) & ControlRegister.lme != 0 { return false }
            s.pointee.efer = value & ~ControlRegister.lma | s.pointee.efer & ControlRegister.lma
            flushTLB()
        case MSR.star: s.pointee.star = value
        case MSR.lstar: s.pointee.lstar = value
        case MSR.cstar: s.pointee.cstar = value
        case MSR.sfmask: s.pointee.sfmask = value & 0xFFFF_FFFF
        case MSR.fsBase:
            s.pointee.seg.4.base = value
            refreshBase(SegmentRegister.fs)
        case MSR.gsBase:
            s.pointee.seg.5.base = value
            refreshBase(SegmentRegister.gs)
        case MSR.kernelGSBase: s.pointee.kernel_gs_base = value
        default: return outside { environment.writeMSR(index, value) }
        }
        return true
    }

    func writeCR0(_ value: UInt64) -> Bool {
        let s = state
        guard value >> 32 == 0, value & ControlRegister.pg == 0 || value & ControlRegister.pe != 0 else { return false }
        let old = s.pointee.cr0
        if value & ControlRegister.pg != 0, old & ControlRegister.pg == 0, s.pointee.efer & ControlRegister.lme != 0 {
            guard s.pointee.cr4 & ControlRegister.pae != 0, segment(SegmentRegister.cs).pointee.attributes & SegmentAttribute.long == 0 else { return false }
            s.pointee.efer |= ControlRegister.lma
            s.pointee.lma = 1
        } else if value & ControlRegister.pg == 0, old & ControlRegister.pg != 0 {
            guard s.pointee.mode != 2, s.pointee.cr4 & ControlRegister.pcide == 0 else { return false }
            s.pointee.efer &= ~ControlRegister.lma
            s.pointee.lma = 0
        }
        s.pointee.cr0 = value | 0x10
        updateVectorAccess(s)
        // TS and the like change nothing about addresses.
        if (old ^ value) & (ControlRegister.pg | ControlRegister.pe | ControlRegister.wp) == 0 { return true }
        flushTLB()
        updateMode()
        return true
    }

    func writeCR4(_ value: UInt64) -> Bool {
        let s = state
        // VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT, PCIDE, OSXSAVE
        let known = 0x7FF | (features.contains(.pcid) ? ControlRegister.pcide : 0) | (features.contains(.avx) ? ControlRegister.osxsave : 0)
        guard value & ~known == 0 else { return false }
        if s.pointee.lma != 0, value & ControlRegister.pae == 0 { return false }
        let changed = s.pointee.cr4 ^ value
        if changed & value & ControlRegister.pcide != 0, s.pointee.lma == 0 || s.pointee.cr3 & 0xFFF != 0 { return false }
        s.pointee.cr4 = value
        updateVectorAccess(s)
        // Kernels switch PGE off and on to have the TLB emptied.
        flushTLB(codeMayStay: changed & ~ControlRegister.pge == 0)
        return true
    }

    func debugRegister(_ index: Int) -> UInt64 {
        let d = state.pointee.dr
        switch index {
        case 0: return d.0
        case 1: return d.1
        case 2: return d.2
        case 3: return d.3
        case 4, 6: return d.6
        default: return d.7
        }
    }
    func setDebugRegister(_ index: Int, _ value: UInt64) {
        let s = state
        switch index {
        case 0: s.pointee.dr.0 = value
        case 1: s.pointee.dr.1 = value
        case 2: s.pointee.dr.2 = value
        case 3: s.pointee.dr.3 = value
        case 4, 6: s.pointee.dr.6 = value & 0xE00F | 0xFFFF_0FF0
        default: s.pointee.dr.7 = value & 0xFFFF_FFFF & ~0xD800 | 0x400
        }
        updateBreakpoints()
    }

    /// VERR, VERW, LAR, LSL: what a selector gives at the current privilege, nil for "not accessible".
    func inspect(_ selector: UInt16, kind: Int) -> UInt64? {
        guard selector & 0xFFFC != 0, let raw = try? readDescriptor(selector) else { return nil }
        let value = Self.parse(selector, raw)
        let dpl = UInt8((value.attributes >> 5) & 3)
        let isSegment = value.attributes & SegmentAttribute.system != 0
        let isCode = isSegment && value.attributes & 8 != 0
        let conforming = isCode && value.attributes & 4 != 0
        if !conforming, max(state.pointee.cpl, UInt8(selector & 3)) > dpl { return nil }
        switch kind {
        case 0: return isSegment && (!isCode || value.attributes & 2 != 0) ? 1 : nil
        case 1: return isSegment && !isCode && value.attributes & 2 != 0 ? 1 : nil
        default:
            let type = value.attributes & 0xF
            if !isSegment {
                guard type == 2 || type == 9 || type == 11 || (kind == 2 && type == 12) else { return nil }
            }
            return kind == 2 ? (raw >> 32) & 0x00FF_FF00 : UInt64(value.limit)
        }
    }

    /// The state after power-up or INIT, for a 64-bit or real-mode start set afterwards. SDM vol. 3 table 9-1.
    package func reset() {
        let s = state
        for index in 0..<16 { setGPR(s, index, 0) }
        setGPR(s, GPR.rdx, 0x600)
        s.pointee.rflags = 0
        s.pointee.fres = 1 << 8
        s.pointee.faux = 1 << 8
        s.pointee.rip = 0xFFF0
        s.pointee.cr0 = 0x6000_0010
        s.pointee.cr2 = 0
        s.pointee.cr3 = 0
        s.pointee.cr4 = 0
        s.pointee.efer = 0
        s.pointee.lma = 0
        s.pointee.cpl = 0
        s.pointee.inhibit = 0
        s.pointee.zero = 0
        s.pointee.dr = (0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400)
        for index in 0..<6 {
            segment(index).pointee = x86_segment(base: 0, limit: 0xFFFF, selector: 0, attributes: 0x93)
        }
        segment(SegmentRegister.cs).pointee = x86_segment(base: 0xFFFF_0000, limit: 0xFFFF, selector: 0xF000, attributes: 0x9B)
        s.pointee.ldtr = x86_segment(base: 0, limit: 0xFFFF, selector: 0, attributes: 0x82)
        s.pointee.tr = x86_segment(base: 0, limit: 0xFFFF, selector: 0, attributes: 0x8B)
        s.pointee.gdt_base = 0
        s.pointee.gdt_limit = 0xFFFF
        s.pointee.idt_base = 0
        s.pointee.idt_limit = 0xFFFF
        s.pointee.mxcsr = 0x1F80
        s.pointee.vector_off = 0
        s.pointee.x87_control = 0x37F
        s.pointee.xcr0 = 1
        s.pointee.upper_in_use = 0
        updateVectorAccess(s)
        resetFloatingPointImage()
        updateMode()
        flushTLB()
    }

    /// Where a start-up IPI makes a processor begin. SDM vol. 3 § 8.4.4.
    package func startup(page: UInt8) {
        reset()
        segment(SegmentRegister.cs).pointee.selector = UInt16(page) << 8
        segment(SegmentRegister.cs).pointee.base = UInt64(page) << 12
        state.pointee.rip = 0
        updateMode()
    }
}
