import Hypervisor
import X86

extension X86Segment {
    init(_ segment: SegmentState) { self.init(selector: segment.selector, base: segment.base, limit: segment.limit, attributes: segment.attributes) }
}
extension SegmentState {
    init(_ segment: X86Segment) { self.init(selector: segment.selector, base: segment.base, limit: segment.limit, attributes: segment.attributes) }
}

extension X86State {
    /// What is too short in `value` (it may come from a file) is filled with zeroes.
    init(_ value: VCPUState) {
        self.init()
        func fill<T>(_ target: inout [T], _ source: [T]) { for index in 0..<min(target.count, source.count) { target[index] = source[index] } }
        fill(&gpr, value.gpr)
        fill(&dr, value.dr)
        fill(&segments, value.segments.map { X86Segment($0) })
        fill(&x87, value.x87)
        fill(&xmm, value.xmm)
        fill(&ymmHigh, value.ymmHigh)
        // MXCSR's place in the image: the host's FXRSTOR refuses bits that are reserved.
        (x87[26], x87[27]) = (0, 0)
        (rip, rflags, cr0, cr2, cr3, cr4, efer) = (value.rip, value.rflags, value.cr0, value.cr2, value.cr3, value.cr4, value.efer)
        (tr, ldtr) = (X86Segment(value.tr), X86Segment(value.ldtr))
        (gdtBase, gdtLimit, idtBase, idtLimit) = (value.gdtBase, value.gdtLimit, value.idtBase, value.idtLimit)
        (star, lstar, cstar, sfmask, kernelGSBase) = (value.star, value.lstar, value.cstar, value.sfmask, value.kernelGSBase)
        (sysenterCS, sysenterESP, sysenterEIP) = (value.sysenterCS, value.sysenterESP, value.sysenterEIP)
        (mxcsr, xcr0, cpl) = (value.mxcsr, value.xcr0, value.cpl)
        x87Control = value.x87Control
        interruptShadow = value.interruptShadow ?? false
    }
}
extension VCPUState {
    init(_ state: X86State) {
        self.init()
        (gpr, dr, xmm, ymmHigh, x87) = (state.gpr, state.dr, state.xmm, state.ymmHigh, state.x87)
        segments = state.segments.map { SegmentState($0) }
        (rip, rflags, cr0, cr2, cr3, cr4, efer) = (state.rip, state.rflags, state.cr0, state.cr2, state.cr3, state.cr4, state.efer)
        (tr, ldtr) = (SegmentState(state.tr), SegmentState(state.ldtr))
        (gdtBase, gdtLimit, idtBase, idtLimit) = (state.gdtBase, state.gdtLimit, state.idtBase, state.idtLimit)
        (star, lstar, cstar, sfmask, kernelGSBase) = (state.star, state.lstar, state.cstar, state.sfmask, state.kernelGSBase)
        (sysenterCS, sysenterESP, sysenterEIP) = (state.sysenterCS, state.sysenterESP, state.sysenterEIP)
        (mxcsr, xcr0, cpl) = (state.mxcsr, state.xcr0, state.cpl)
        x87Control = state.x87Control
        interruptShadow = state.interruptShadow
    }
}
