import CX86

extension X86Core {
    /// Delivers an exception or interrupt; `rip` is what the frame shows. SDM vol. 3 § 6.12–6.14.
    func deliver(vector: UInt8, error: UInt64?, software: Bool, rip: UInt64, instruction: UInt64? = nil) {
        let s = state
        s.pointee.exit_reason = ExitReason.next
        do throws(SegmentFault) {
            try enter(vector, error, software: software, rip)
            return
        } catch {
            escalate(from: vector, to: error, instruction ?? rip, software: software)
        }
    }

    /// A fault while delivering: double fault for two contributory ones, shutdown after that. SDM vol. 3 table 6-5.
    private func escalate(from first: UInt8, to second: SegmentFault, _ rip: UInt64, software: Bool) {
        if first == Vector.doubleFault {
            state.pointee.exit_reason = ExitReason.shutdown
            return
        }
        let double =
            !software && isContributory(second.vector) && (isContributory(first) || first == Vector.pageFault)
            || !software && first == Vector.pageFault && second.vector == Vector.pageFault
        trace?(second.vector, rip, second.error)
        if double {
            deliver(vector: Vector.doubleFault, error: 0, software: false, rip: rip)
        } else {
            deliver(vector: second.vector, error: second.error, software: false, rip: rip)
        }
    }

    /// No Set: its hashing computes with Double, and MXCSR holds the guest's exception flags while it runs.
    private func isContributory(_ vector: UInt8) -> Bool { vector == 0 || (10...13).contains(vector) }

    private func enter(_ vector: UInt8, _ error: UInt64?, software: Bool, _ rip: UInt64) throws(SegmentFault) {
        let s = state
        guard s.pointee.cr0 & ControlRegister.pe != 0 else { return try enterReal(vector, rip) }
        guard s.pointee.lma != 0 else { return try enterProtected(vector, error, software: software, rip) }
        let idtError = UInt64(vector) * 8 + 2 + (software ? 0 : 1)
        guard UInt64(vector) * 16 + 15 <= UInt64(s.pointee.idt_limit) else {
            throw SegmentFault(vector: Vector.generalProtection, error: idtError)
        }
        let address = s.pointee.idt_base &+ UInt64(vector) * 16
        let low = try systemLoad(address, UInt64.self)
        let high = try systemLoad(address &+ 8, UInt64.self)
        let type = (low >> 40) & 0x1F
        guard type == 0xE || type == 0xF, !software || UInt8((low >> 45) & 3) >= s.pointee.cpl else {
            throw SegmentFault(vector: Vector.generalProtection, error: idtError)
        }
        guard low & 1 << 47 != 0 else { throw SegmentFault(vector: Vector.segmentNotPresent, error: idtError) }
        let selector = UInt16(truncatingIfNeeded: low >> 16)
        let target = low & 0xFFFF | (low >> 32) & 0xFFFF_0000 | high << 32
        let code = Self.parse(selector, try readDescriptor(selector))
        let newCPL = code.attributes & 4 != 0 ? s.pointee.cpl : UInt8((code.attributes >> 5) & 3)
        guard newCPL <= s.pointee.cpl, isCanonical(target) else {
            throw SegmentFault(vector: Vector.generalProtection, error: UInt64(selector & 0xFFFC))
        }
        var stack = gpr(s, GPR.rsp)
        let ist = (low >> 32) & 7
        if ist != 0 {
            stack = try systemLoad(s.pointee.tr.base &+ 0x1C &+ ist * 8, UInt64.self)
        } else if newCPL != s.pointee.cpl {
            stack = try systemLoad(s.pointee.tr.base &+ 4 &+ UInt64(newCPL) * 8, UInt64.self)
        }
        stack &= ~15
        guard isCanonical(stack) else { throw SegmentFault(vector: Vector.stackFault, error: 0) }
        var frame = [
            UInt64(segment(SegmentRegister.ss).pointee.selector), gpr(s, GPR.rsp), flagsImage(s),
            UInt64(segment(SegmentRegister.cs).pointee.selector), rip,
        ]
        if let error { frame.append(error) }
        // The whole frame or nothing: probe its lowest word first.
        for (index, value) in frame.enumerated() { try systemStore(stack &- UInt64(8 * (index + 1)), value) }
        let oldCPL = s.pointee.cpl
        try loadCodeForEntry(selector, code, newCPL)
        if newCPL != oldCPL {
            segment(SegmentRegister.ss).pointee = noStackSegment(UInt16(newCPL))
        }
        setGPR(s, GPR.rsp, stack &- UInt64(8 * frame.count))
        s.pointee.rflags &= ~(EFlags.tf | EFlags.nt | EFlags.rf | EFlags.vm)
        if type == 0xE { s.pointee.rflags &= ~EFlags.interruptEnable }
        s.pointee.rip = target
        s.pointee.inhibit = 0
    }

    /// The common transition without `updateMode`'s context flush: long mode to a 64-bit kernel segment.
    private func loadCodeForEntry(_ selector: UInt16, _ code: x86_segment, _ cpl: UInt8) throws(SegmentFault) {
        let s = state
        let flat = s.pointee.mode == 2
        guard code.attributes & SegmentAttribute.long != 0, code.attributes & SegmentAttribute.present != 0 else {
            throw SegmentFault(vector: Vector.generalProtection, error: UInt64(selector & 0xFFFC))
        }
        segment(SegmentRegister.cs).pointee = code
        segment(SegmentRegister.cs).pointee.selector = selector & 0xFFFC | UInt16(cpl)
        s.pointee.cpl = cpl
        if flat { updateContext() } else { updateMode() }
    }

    private func enterReal(_ vector: UInt8, _ rip: UInt64) throws(SegmentFault) {
        let s = state
        let target = try systemLoad(s.pointee.idt_base &+ UInt64(vector) * 4, UInt32.self)
        for value in [flagsImage(s), UInt64(segment(SegmentRegister.cs).pointee.selector), rip] {
            let sp = (gpr(s, GPR.rsp) &- 2) & 0xFFFF
            try systemStore(s.pointee.segbase.2 &+ sp, UInt16(truncatingIfNeeded: value))
            setReg(s, 32, UInt16(truncatingIfNeeded: sp))
        }
        s.pointee.rflags &= ~(EFlags.interruptEnable | EFlags.tf | EFlags.ac)
        try loadCode(UInt16(truncatingIfNeeded: target >> 16), cpl: 0, returning: false)
        s.pointee.rip = UInt64(target & 0xFFFF)
    }

    /// 32-bit protected mode, same privilege only: enough for start-up code.
    private func enterProtected(_ vector: UInt8, _ error: UInt64?, software: Bool, _ rip: UInt64) throws(SegmentFault) {
        let s = state
        let idtError = UInt64(vector) * 8 + 2 + (software ? 0 : 1)
        guard UInt64(vector) * 8 + 7 <= UInt64(s.pointee.idt_limit) else {
            throw SegmentFault(vector: Vector.generalProtection, error: idtError)
        }
        let gate = try systemLoad(s.pointee.idt_base &+ UInt64(vector) * 8, UInt64.self)
        let type = (gate >> 40) & 0x1F
        guard type == 0xE || type == 0xF, gate & 1 << 47 != 0, s.pointee.cpl == 0 else {
            throw SegmentFault(vector: Vector.generalProtection, error: idtError)
        }
        var frame = [flagsImage(s), UInt64(segment(SegmentRegister.cs).pointee.selector), rip]
        if let error { frame.append(error) }
        var sp = gpr(s, GPR.rsp)
        for value in frame {
            sp = (sp &- 4) & s.pointee.sp_mask
            try systemStore(s.pointee.segbase.2 &+ sp, UInt32(truncatingIfNeeded: value))
        }
        try loadCode(UInt16(truncatingIfNeeded: gate >> 16), cpl: 0, returning: false)
        setReg(s, 32, UInt32(truncatingIfNeeded: sp))
        s.pointee.rflags &= ~(EFlags.tf | EFlags.nt | EFlags.rf | EFlags.vm)
        if type == 0xE { s.pointee.rflags &= ~EFlags.interruptEnable }
        s.pointee.rip = gate & 0xFFFF | (gate >> 32) & 0xFFFF_0000
    }

    /// Flags as POPF and IRET may change them at the current privilege.
    func setFlags(_ image: UInt64, size: Int, from cpl: UInt8) {
        let s = state
        var mask = EFlags.tf | EFlags.df | EFlags.nt | EFlags.ac | EFlags.id | EFlags.rf
        if cpl == 0 { mask |= EFlags.iopl }
        if UInt64(cpl) <= (s.pointee.rflags & EFlags.iopl) >> 12 { mask |= EFlags.interruptEnable }
        if size == 2 { mask &= 0xFFFF }
        setArithmeticFlags(s, image)
        s.pointee.rflags = s.pointee.rflags & ~mask | image & mask
        if s.pointee.rflags & EFlags.interruptEnable != 0 { interruptsEnabled() }
    }

    /// IRET. SDM vol. 2 IRET/IRETD/IRETQ.
    func interruptReturn(size: Int) throws(SegmentFault) {
        let s = state
        if s.pointee.lma != 0, s.pointee.rflags & EFlags.nt != 0 { throw SegmentFault(vector: Vector.generalProtection, error: 0) }
        let step = UInt64(size)
        var sp = gpr(s, GPR.rsp)
        func pop() throws(SegmentFault) -> UInt64 {
            let address = (sp & s.pointee.sp_mask) &+ s.pointee.segbase.2
            sp = sp &+ step
            let value: UInt64?
            switch size {
            // Not the instruction's own: nothing here can begin anew for a breakpoint.
            case 2: value = (X86.load(systemOp, s, address) as UInt16?).map(UInt64.init)
            case 4: value = (X86.load(systemOp, s, address) as UInt32?).map(UInt64.init)
            default: value = X86.load(systemOp, s, address)
            }
            guard let value else { throw takeFault() }
            return value
        }
        let rip = try pop()
        let cs = UInt16(truncatingIfNeeded: try pop())
        let flags = try pop()
        if s.pointee.cr0 & ControlRegister.pe == 0 {
            try loadCode(cs, cpl: 0, returning: true)
            setReg(s, 32, UInt16(truncatingIfNeeded: sp))
            setFlags(flags, size: size, from: 0)
            s.pointee.rip = rip & 0xFFFF
            return
        }
        let old = s.pointee.cpl
        let new = UInt8(cs & 3)
        guard new >= old else { throw SegmentFault(vector: Vector.generalProtection, error: UInt64(cs & 0xFFFC)) }
        var newSP: UInt64?
        var ss: UInt16 = 0
        if s.pointee.mode == 2 || new != old {
            newSP = try pop()
            ss = UInt16(truncatingIfNeeded: try pop())
        }
        let code = try codeSegment(cs, cpl: new, returning: true)
        let stack = try newSP.map { _ throws(SegmentFault) in try stackSegment(ss, cpl: new, for: code) }
        if isLong(code), !isCanonical(rip) { throw SegmentFault(vector: Vector.generalProtection, error: 0) }
        // From here on nothing can fail.
        take(code, stack, cpl: new)
        setFlags(flags, size: size, from: old)
        let behind = newSP ?? sp
        if s.pointee.sp_mask == 0xFFFF { setReg(s, 32, UInt16(truncatingIfNeeded: behind)) } else { setGPR(s, GPR.rsp, behind & s.pointee.sp_mask) }
        if new > old { dropPrivilegedSegments() }
        s.pointee.rip = size == 8 ? rip : (size == 4 ? rip & 0xFFFF_FFFF : rip & 0xFFFF)
    }

    /// A return to an outer ring clears data segments that ring may not use. SDM vol. 2 IRET.
    func dropPrivilegedSegments() {
        for index in [SegmentRegister.es, SegmentRegister.ds, SegmentRegister.fs, SegmentRegister.gs] {
            let value = segment(index).pointee
            let isConforming = value.attributes & 0xC == 0xC
            if value.selector & 0xFFFC == 0 {
                segment(index).pointee.selector = 0
            } else if !isConforming, UInt8((value.attributes >> 5) & 3) < state.pointee.cpl {
                segment(index).pointee.selector = 0
                segment(index).pointee.attributes = 0
                segment(index).pointee.base = 0
                refreshBase(index)
            }
        }
    }
}
