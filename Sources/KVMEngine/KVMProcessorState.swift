import CLinux
import Hypervisor

/// One processor as the kernel's structures, and as any engine understands it.
struct KVMProcessorState {
    var structures: [KVMStructure: [UInt8]]
    /// By number.
    var registers: [UInt32: UInt64]

    /// In the order of `KVMStructure`; nil when there are fewer or more.
    init?(bytes: [UInt8], registers: [UInt32: UInt64]) {
        guard bytes.count == KVMStructure.total else { return nil }
        structures = [:]
        self.registers = registers
        var at = 0
        for structure in KVMStructure.allCases {
            structures[structure] = Array(bytes[at..<at + structure.size])
            at += structure.size
        }
    }
    var bytes: [UInt8] { KVMStructure.allCases.flatMap { structures[$0] ?? [UInt8](repeating: 0, count: $0.size) } }

    private func load<T>(_ structure: KVMStructure, at offset: Int = 0, as: T.Type = T.self) -> T {
        (structures[structure] ?? []).withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: T.self) }
    }
    private mutating func store<T>(_ value: T, in structure: KVMStructure, at offset: Int = 0) {
        structures[structure]?.withUnsafeMutableBytes { $0.storeBytes(of: value, toByteOffset: offset, as: T.self) }
    }

    /// Places in the structures.
    private enum Place {
        // kvm_xsave: an FXSAVE image, the header, the upper halves of the vector registers. Intel SDM vol. 1 § 13.4.
        static let control = 0
        static let mxcsr = 24
        static let vectors = 160
        static let components = 512
        static let upperVectors = 576
        // kvm_xcrs
        static let count = 0
        static let extended0 = 16
        // kvm_debugregs
        static let dr6 = 32
        static let dr7 = 40
        // kvm_vcpu_events
        static let interruptInjected = 8
        static let interruptVector = 9
        static let interruptIsSoft = 10
        static let interruptShadow = 11
        static let flags = 20
    }
    private static let hasShadow: UInt32 = 4
    private static let stiShadow: UInt8 = 2

    // MARK: to any engine

    var architectural: VCPUState {
        let special: kvm_sregs = load(.specialRegisters)
        let registers: kvm_regs = load(.registers)
        var state = VCPUState()
        state.gpr = [
            registers.rax, registers.rcx, registers.rdx, registers.rbx, registers.rsp, registers.rbp, registers.rsi, registers.rdi, registers.r8,
            registers.r9, registers.r10, registers.r11, registers.r12, registers.r13, registers.r14, registers.r15,
        ]
        (state.rip, state.rflags) = (registers.rip, registers.rflags)
        (state.cr0, state.cr2, state.cr3, state.cr4, state.efer) = (special.cr0, special.cr2, special.cr3, special.cr4, special.efer)
        state.segments = [special.es, special.cs, special.ss, special.ds, special.fs, special.gs].map(SegmentState.init)
        (state.tr, state.ldtr) = (SegmentState(special.tr), SegmentState(special.ldt))
        (state.gdtBase, state.gdtLimit) = (special.gdt.base, UInt32(special.gdt.limit))
        (state.idtBase, state.idtLimit) = (special.idt.base, UInt32(special.idt.limit))
        state.cpl = special.ss.dpl & 3
        state.dr = (0..<4).map { load(.debugRegisters, at: $0 * 8) } + [0, 0] + [load(.debugRegisters, at: Place.dr6), load(.debugRegisters, at: Place.dr7)]
        func register(_ number: UInt32) -> UInt64 { self.registers[number] ?? 0 }
        (state.star, state.lstar, state.cstar) = (register(KVMRegister.star), register(KVMRegister.lstar), register(KVMRegister.cstar))
        (state.sfmask, state.kernelGSBase) = (register(KVMRegister.sfmask), register(KVMRegister.kernelGSBase))
        (state.sysenterCS, state.sysenterESP, state.sysenterEIP) = (register(0x174), register(0x175), register(0x176))
        state.interruptShadow = (load(.events, at: Place.interruptShadow) as UInt8) != 0
        exportExtended(&state)
        return state
    }
    private func exportExtended(_ state: inout VCPUState) {
        let area = structures[.extendedState] ?? []
        // A component whose bit is clear has its initial values.
        let components: UInt64 = load(.extendedState, at: Place.components)
        if components & 1 != 0 {
            state.x87 = Array(area[..<Place.vectors])
            state.x87Control = load(.extendedState, at: Place.control)
        }
        state.mxcsr = load(.extendedState, at: Place.mxcsr)
        if components & 2 != 0 { state.xmm = Array(area[Place.vectors..<Place.vectors + 256]) }
        if components & 4 != 0 { state.ymmHigh = Array(area[Place.upperVectors..<Place.upperVectors + 256]) }
        let count: UInt32 = load(.extendedControl, at: Place.count)
        state.xcr0 = count > 0 ? load(.extendedControl, at: Place.extended0) : 1
    }

    /// The local APIC, with the interrupt that KVM had taken from it for a processor that did not come to see it.
    func localAPIC(index: Int) -> LocalAPICImage {
        var words: [UInt32] = (0..<LocalAPICImage.registerCount).map { load(.interruptController, at: $0 * 16) }
        if (load(.events, at: Place.interruptInjected) as UInt8) != 0, (load(.events, at: Place.interruptIsSoft) as UInt8) == 0 {
            let vector = Int(load(.events, at: Place.interruptVector) as UInt8)
            words[0x10 + vector / 32] &= ~(1 << UInt32(vector % 32))  // in service
            words[0x20 + vector / 32] |= 1 << UInt32(vector % 32)  // requested
        }
        let special: kvm_sregs = load(.specialRegisters)
        let code = words[0x3E] & 3 | words[0x3E] >> 1 & 4
        let divisor: UInt64 = code == 7 ? 1 : 2 << UInt64(code)
        let counts = words[0x32] >> 17 & 3 < 2 && words[0x38] != 0 && words[0x39] != 0
        return LocalAPICImage(
            registers: words, base: special.apic_base, identifier: UInt32(index), timeStampDeadline: registers[KVMRegister.deadline] ?? 0,
            timerRemaining: counts ? UInt64(words[0x39]) * divisor : nil)
    }
    var activity: ProcessorImage.Activity {
        switch load(.activity) as UInt32 {
        case 1, 2: .waitingForStartup
        case 3: .halted
        default: .running
        }
    }

    // MARK: from any engine

    /// Takes over what an image of another engine holds; what it does not know stays as it is.
    mutating func take(_ image: ProcessorImage) {
        let state = image.state
        store(image.activity == .waitingForStartup ? 1 : image.activity == .halted ? 3 : 0 as UInt32, in: .activity)
        var general = kvm_regs()
        general.set(state)
        store(general, in: .registers)
        var special: kvm_sregs = load(.specialRegisters)
        special.set(state)
        special.cr2 = state.cr2
        special.cr8 = image.apic.registers.count > 8 ? UInt64(image.apic.registers[8] >> 4 & 15) : 0
        special.apic_base = image.apic.base
        // Intel's processors insist on what a segment register is told by the privilege.
        special.ss.dpl = state.cpl & 3
        store(special, in: .specialRegisters)
        importExtended(state)
        for index in 0..<4 where index < state.dr.count { store(state.dr[index], in: .debugRegisters, at: index * 8) }
        if state.dr.count == 8 {
            store(state.dr[6], in: .debugRegisters, at: Place.dr6)
            store(state.dr[7], in: .debugRegisters, at: Place.dr7)
        }
        for (index, word) in image.apic.registers.prefix(LocalAPICImage.registerCount).enumerated() { store(word, in: .interruptController, at: index * 16) }
        structures[.events] = [UInt8](repeating: 0, count: KVMStructure.events.size)
        if state.interruptShadow == true { store(Self.stiShadow, in: .events, at: Place.interruptShadow) }
        store(Self.hasShadow, in: .events, at: Place.flags)
        takeRegisters(image)
    }
    private mutating func importExtended(_ state: VCPUState) {
        guard state.x87.count >= Place.vectors, state.xmm.count == 256, state.ymmHigh.count == 256 else { return }
        structures[.extendedState] = [UInt8](repeating: 0, count: KVMStructure.extendedState.size)
        structures[.extendedState]?.replaceSubrange(0..<Place.vectors, with: state.x87[..<Place.vectors])
        structures[.extendedState]?.replaceSubrange(Place.vectors..<Place.vectors + 256, with: state.xmm)
        structures[.extendedState]?.replaceSubrange(Place.upperVectors..<Place.upperVectors + 256, with: state.ymmHigh)
        store(state.x87Control, in: .extendedState, at: Place.control)
        store(state.mxcsr & 0xFFFF, in: .extendedState, at: Place.mxcsr)
        store(0 as UInt32, in: .extendedState, at: Place.mxcsr + 4)
        // Upper halves only where the guest has switched them on.
        store(3 | state.xcr0 & 4, in: .extendedState, at: Place.components)
        if (load(.extendedControl, at: Place.count) as UInt32) > 0 { store(state.xcr0, in: .extendedControl, at: Place.extended0) }
    }
    private mutating func takeRegisters(_ image: ProcessorImage) {
        let state = image.state
        registers = image.registers.reduce(into: [:]) { if let number = UInt32($1.key, radix: 16) { $0[number] = $1.value } }
        for (number, value) in [
            (KVMRegister.star, state.star), (KVMRegister.lstar, state.lstar), (KVMRegister.cstar, state.cstar), (KVMRegister.sfmask, state.sfmask),
            (KVMRegister.kernelGSBase, state.kernelGSBase), (0x174, state.sysenterCS), (0x175, state.sysenterESP), (0x176, state.sysenterEIP),
            (KVMRegister.deadline, image.apic.timeStampDeadline),
        ] { registers[number] = value }
    }
}

extension kvm_regs {
    mutating func set(_ state: VCPUState) {
        let g = state.gpr + [UInt64](repeating: 0, count: max(0, 16 - state.gpr.count))  // a file may hold too few
        (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi) = (g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7])
        (r8, r9, r10, r11, r12, r13, r14, r15) = (g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15])
        (rip, rflags) = (state.rip, state.rflags)
    }
}
extension kvm_sregs {
    mutating func set(_ state: VCPUState) {
        (cr0, cr3, cr4, efer) = (state.cr0, state.cr3, state.cr4, state.efer)
        if state.segments.count == 6 {
            es = kvm_segment(state.segments[0])
            cs = kvm_segment(state.segments[1])
            ss = kvm_segment(state.segments[2])
            ds = kvm_segment(state.segments[3])
            fs = kvm_segment(state.segments[4])
            gs = kvm_segment(state.segments[5])
        }
        (tr, ldt) = (kvm_segment(state.tr), kvm_segment(state.ldtr))
        (gdt.base, gdt.limit) = (state.gdtBase, UInt16(truncatingIfNeeded: state.gdtLimit))
        (idt.base, idt.limit) = (state.idtBase, UInt16(truncatingIfNeeded: state.idtLimit))
    }
}
extension kvm_segment {
    init(_ segment: SegmentState) {
        self.init()
        (base, limit, selector) = (segment.base, segment.limit, segment.selector)
        func bit(_ position: UInt16) -> UInt8 { UInt8(segment.attributes >> position & 1) }
        type = UInt8(segment.attributes & 15)
        dpl = UInt8(segment.attributes >> 5 & 3)
        (s, present, avl, l, db, g) = (bit(4), bit(7), bit(8), bit(9), bit(10), bit(11))
        unusable = 1 - present
    }
}
extension SegmentState {
    init(_ segment: kvm_segment) {
        let low = UInt16(segment.type & 15) | UInt16(segment.s & 1) << 4 | UInt16(segment.dpl & 3) << 5
        let high = UInt16(segment.avl & 1) << 8 | UInt16(segment.l & 1) << 9 | UInt16(segment.db & 1) << 10 | UInt16(segment.g & 1) << 11
        let isPresent = segment.present != 0 && segment.unusable == 0
        self.init(selector: segment.selector, base: segment.base, limit: segment.limit, attributes: low | high | (isPresent ? 1 << 7 : 0))
    }
}
