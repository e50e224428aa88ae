import CX86

/// A segment register with its hidden part.
package struct X86Segment: Equatable, Sendable, Codable {
    package var selector: UInt16
    package var base: UInt64
    package var limit: UInt32
    /// Descriptor bits 40–47 in the low byte, 52–55 (AVL, L, D/B, G) in bits 8–11.
    package var attributes: UInt16

    package init(selector: UInt16, base: UInt64, limit: UInt32, attributes: UInt16) {
        self.selector = selector
        self.base = base
        self.limit = limit
        self.attributes = attributes
    }
}

/// Everything a program can see of one processor, as a value.
package struct X86State: Equatable, Sendable, Codable {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8 … R15.
    package var gpr = [UInt64](repeating: 0, count: 16)
    package var rip: UInt64 = 0
    package var rflags: UInt64 = 2
    package var cr0: UInt64 = 0
    package var cr2: UInt64 = 0
    package var cr3: UInt64 = 0
    package var cr4: UInt64 = 0
    package var efer: UInt64 = 0
    package var dr = [UInt64](repeating: 0, count: 8)
    /// ES CS SS DS FS GS.
    package var segments = [X86Segment](repeating: X86Segment(selector: 0, base: 0, limit: 0, attributes: 0), count: 6)
    package var ldtr = X86Segment(selector: 0, base: 0, limit: 0, attributes: 0)
    package var tr = X86Segment(selector: 0, base: 0, limit: 0, attributes: 0)
    package var gdt: (base: UInt64, limit: UInt32) {
        get { (gdtBase, gdtLimit) }
        set { (gdtBase, gdtLimit) = newValue }
    }
    package var gdtBase: UInt64 = 0
    package var gdtLimit: UInt32 = 0
    package var idtBase: UInt64 = 0
    package var idtLimit: UInt32 = 0
    package var star: UInt64 = 0
    package var lstar: UInt64 = 0
    package var cstar: UInt64 = 0
    package var sfmask: UInt64 = 0
    package var kernelGSBase: UInt64 = 0
    package var sysenterCS: UInt64 = 0
    package var sysenterESP: UInt64 = 0
    package var sysenterEIP: UInt64 = 0
    package var mxcsr: UInt32 = 0x1F80
    package var x87Control: UInt16 = 0x37F
    /// The x87 part of an FXSAVE image (160 bytes).
    package var x87 = [UInt8](repeating: 0, count: 160)
    package var xmm = [UInt8](repeating: 0, count: 256)
    /// The upper halves of the vector registers.
    package var ymmHigh = [UInt8](repeating: 0, count: 256)
    package var xcr0: UInt64 = 1
    /// The next instruction runs before any interrupt: the one before was STI or loaded SS.
    package var interruptShadow = false
    package var cpl: UInt8 = 0

    package init() {}
}

extension X86Core {
    /// The whole architectural state. Only between runs.
    package var architecturalState: X86State {
        get { readState() }
        set { writeState(newValue) }
    }

    private func readState() -> X86State {
        let s = state
        var value = X86State()
        for index in 0..<16 { value.gpr[index] = gpr(s, index) }
        value.rip = s.pointee.rip
        value.rflags = flagsImage(s)
        value.cr0 = s.pointee.cr0
        value.cr2 = s.pointee.cr2
        value.cr3 = s.pointee.cr3
        value.cr4 = s.pointee.cr4
        value.efer = s.pointee.efer
        for index in 0..<8 { value.dr[index] = debugRegister(index) }
        for index in 0..<6 { value.segments[index] = Self.export(segment(index).pointee) }
        value.ldtr = Self.export(s.pointee.ldtr)
        value.tr = Self.export(s.pointee.tr)
        value.gdt = (s.pointee.gdt_base, s.pointee.gdt_limit)
        value.idtBase = s.pointee.idt_base
        value.idtLimit = s.pointee.idt_limit
        value.star = s.pointee.star
        value.lstar = s.pointee.lstar
        value.cstar = s.pointee.cstar
        value.sfmask = s.pointee.sfmask
        value.kernelGSBase = s.pointee.kernel_gs_base
        value.sysenterCS = s.pointee.sysenter_cs
        value.sysenterESP = s.pointee.sysenter_esp
        value.sysenterEIP = s.pointee.sysenter_eip
        value.mxcsr = s.pointee.mxcsr
        value.x87Control = UInt16(truncatingIfNeeded: s.pointee.x87_control)
        let raw = UnsafeRawPointer(s)
        value.x87 = Array(UnsafeRawBufferPointer(start: raw + Int(X86_FXAREA_OFFSET), count: 160))
        value.xmm = (0..<16).flatMap { UnsafeRawBufferPointer(start: raw + vectorOffset($0), count: 16) }
        value.ymmHigh = (0..<16).flatMap { UnsafeRawBufferPointer(start: raw + vectorOffset($0) + 16, count: 16) }
        value.xcr0 = s.pointee.xcr0
        value.cpl = s.pointee.cpl
        value.interruptShadow = s.pointee.inhibit != 0
        return value
    }

    private func writeState(_ value: X86State) {
        let s = state
        for index in 0..<16 { setGPR(s, index, value.gpr[index]) }
        s.pointee.rip = value.rip
        setArithmeticFlags(s, value.rflags)
        s.pointee.rflags = value.rflags & ~(EFlags.arithmetic | 2)
        s.pointee.cr0 = value.cr0
        s.pointee.cr2 = value.cr2
        s.pointee.cr3 = value.cr3
        s.pointee.cr4 = value.cr4
        s.pointee.efer = value.efer
        s.pointee.lma = value.efer & ControlRegister.lma != 0 ? 1 : 0
        for index in [0, 1, 2, 3, 6, 7] { setDebugRegister(index, value.dr[index]) }
        for index in 0..<6 { segment(index).pointee = Self.importSegment(value.segments[index]) }
        s.pointee.ldtr = Self.importSegment(value.ldtr)
        s.pointee.tr = Self.importSegment(value.tr)
        (s.pointee.gdt_base, s.pointee.gdt_limit) = value.gdt
        s.pointee.idt_base = value.idtBase
        s.pointee.idt_limit = value.idtLimit
        s.pointee.star = value.star
        s.pointee.lstar = value.lstar
        s.pointee.cstar = value.cstar
        s.pointee.sfmask = value.sfmask
        s.pointee.kernel_gs_base = value.kernelGSBase
        s.pointee.sysenter_cs = value.sysenterCS
        s.pointee.sysenter_esp = value.sysenterESP
        s.pointee.sysenter_eip = value.sysenterEIP
        s.pointee.mxcsr = value.mxcsr & 0xFFFF
        s.pointee.x87_control = UInt64(value.x87Control)
        s.pointee.vector_off = (value.x87Control & 0x3F != 0x3F ? VectorOff.x87Unmasked : 0) | (value.mxcsr & 0x1F80 != 0x1F80 ? VectorOff.simdUnmasked : 0)
        let raw = UnsafeMutableRawPointer(s)
        for (index, byte) in value.x87.prefix(160).enumerated() {
            (raw + Int(X86_FXAREA_OFFSET) + index).storeBytes(of: byte, as: UInt8.self)
        }
        for (index, byte) in value.xmm.prefix(256).enumerated() {
            (raw + vectorOffset(index / 16) + index % 16).storeBytes(of: byte, as: UInt8.self)
        }
        for (index, byte) in value.ymmHigh.prefix(256).enumerated() {
            (raw + vectorOffset(index / 16) + 16 + index % 16).storeBytes(of: byte, as: UInt8.self)
        }
        s.pointee.upper_in_use = 1
        s.pointee.xcr0 = value.xcr0
        updateVectorAccess(s)
        s.pointee.cpl = value.cpl & 3
        s.pointee.inhibit = value.interruptShadow ? 1 : 0
        updateMode()
        flushTLB()
    }

    private static func export(_ s: x86_segment) -> X86Segment {
        X86Segment(selector: s.selector, base: s.base, limit: s.limit, attributes: s.attributes)
    }
    private static func importSegment(_ s: X86Segment) -> x86_segment {
        x86_segment(base: s.base, limit: s.limit, selector: s.selector, attributes: s.attributes)
    }
}
