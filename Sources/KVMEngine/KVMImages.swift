import CLinux
import Glibc
import Hypervisor
import LinuxSystem

/// The kernel's own structures, as bytes, in the order in which a processor takes them back.
/// Linux Documentation/virt/kvm/api.rst § 4.
enum KVMStructure: CaseIterable {
    case activity, registers, specialRegisters, extendedState, extendedControl, debugRegisters, interruptController, events

    private static func make(_ direction: UInt, _ number: UInt, _ size: Int) -> UInt { direction << 30 | UInt(size) << 16 | 0xAE << 8 | number }
    var size: Int {
        switch self {
        case .activity: 4
        case .registers: MemoryLayout<kvm_regs>.size
        case .specialRegisters: MemoryLayout<kvm_sregs>.size
        case .extendedState: 4096
        case .extendedControl: 392
        case .debugRegisters: 128
        case .interruptController: 1024
        case .events: 64
        }
    }
    private var numbers: (get: UInt, set: UInt) {
        switch self {
        case .activity: (0x98, 0x99)
        case .registers: (0x81, 0x82)
        case .specialRegisters: (0x83, 0x84)
        case .extendedState: (0xA4, 0xA5)
        case .extendedControl: (0xA6, 0xA7)
        case .debugRegisters: (0xA1, 0xA2)
        case .interruptController: (0x8E, 0x8F)
        case .events: (0x9F, 0xA0)
        }
    }
    var get: UInt { Self.make(2, numbers.get, size) }
    var set: UInt { Self.make(1, numbers.set, size) }
    static let total = allCases.reduce(0) { $0 + $1.size }

    // Of the machine.
    static let irqChipSize = 520
    static let getIRQChip = make(3, 0x62, irqChipSize)
    static let setIRQChip = make(2, 0x63, irqChipSize)
    static let clockSize = 48
    static let setClock = make(1, 0x7B, clockSize)
    static let getClock = make(2, 0x7C, clockSize)
    static let getMSRs = make(3, 0x88, 8)
    static let getFrequency = make(0, 0xA3, 0)
    /// KVM_KVMCLOCK_CTRL: the guest did not run for a while.
    static let noteStop = make(0, 0xAD, 0)
}

/// Model-specific registers that the structures above do not hold.
enum KVMRegister {
    static let timeStampCounter: UInt32 = 0x10
    static let deadline: UInt32 = 0x6E0
    static let saved: [UInt32] = [
        timeStampCounter, 0x174, 0x175, 0x176, 0x1A0, 0x277, 0x2FF, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102, 0xC000_0103,
        0x4B56_4D00, 0x4B56_4D01, 0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D04, deadline,
    ]
}

extension KVMDescriptor {
    func bytes(_ request: UInt, _ size: Int, beginning head: [UInt8] = [], _ operation: @autoclosure () -> String) throws(SystemError) -> [UInt8] {
        var buffer = head + [UInt8](repeating: 0, count: size - head.count)
        let result = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, request, $0.baseAddress) }
        if result < 0 { throw SystemError(operation()) }
        return buffer
    }
    func give(_ request: UInt, _ bytes: [UInt8], _ operation: @autoclosure () -> String) throws(SystemError) {
        var buffer = bytes
        let result = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, request, $0.baseAddress) }
        if result < 0 { throw SystemError(operation()) }
    }
    /// nil when this KVM does not have the register.
    func register(_ number: UInt32) -> UInt64? {
        var buffer: [UInt64] = [1, UInt64(number), 0]  // kvm_msrs{nmsrs, pad}, kvm_msr_entry{index, reserved, data}
        let result = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, KVMStructure.getMSRs, $0.baseAddress) }
        return result == 1 ? buffer[2] : nil
    }
    @discardableResult func setRegister(_ number: UInt32, _ value: UInt64) -> Bool {
        var buffer: [UInt64] = [1, UInt64(number), value]
        return buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, KVMRequest.setMSRs, $0.baseAddress) } == 1
    }
}

extension KVMVCPU {
    /// Only while `run` is not.
    func makeImage() throws -> ProcessorImage {
        var structures: [UInt8] = []
        for structure in KVMStructure.allCases { structures += try fd.bytes(structure.get, structure.size, "read processor \(index) (\(structure))") }
        var registers: [String: UInt64] = [:]
        for number in KVMRegister.saved { registers[String(number, radix: 16)] = fd.register(number) }
        let apic = LocalAPICImage(registers: [], base: 0, identifier: UInt32(index), timeStampDeadline: registers["6e0"] ?? 0, timerRemaining: nil)
        return ProcessorImage(state: try getState(), apic: apic, activity: .running, registers: registers, engineState: structures)
    }
    /// - Parameter slept: how far the time stamp counter is to be ahead of what it was.
    func restore(_ image: ProcessorImage, slept: UInt64) throws {
        guard image.engineState.count == KVMStructure.total else { throw EngineError("The state of processor \(index) is not complete.") }
        if let counter = image.registers[String(KVMRegister.timeStampCounter, radix: 16)] { fd.setRegister(KVMRegister.timeStampCounter, counter &+ slept) }
        var at = 0
        for structure in KVMStructure.allCases {
            try fd.give(structure.set, Array(image.engineState[at..<at + structure.size]), "set up processor \(index) (\(structure))")
            at += structure.size
        }
        for number in KVMRegister.saved where number != KVMRegister.timeStampCounter {
            // One that this KVM refuses was nothing that the guest could use.
            if let value = image.registers[String(number, radix: 16)] { fd.setRegister(number, value) }
        }
        _ = clinux_ioctl(fd.fd, KVMStructure.noteStop, 0)  // a guest without the paravirtual clock has nothing to note
    }
    /// In kHz.
    var timeStampFrequency: UInt64 { UInt64(max(0, clinux_ioctl(fd.fd, KVMStructure.getFrequency, 0))) }
}

extension KVMMachine {
    private static func head(_ chip: UInt8) -> [UInt8] { [chip, 0, 0, 0, 0, 0, 0, 0] }

    func makeImage() throws -> MachineImage {
        var chips: [UInt8] = []
        for chip in 0..<3 as Range<UInt8> {
            chips += try vm.bytes(KVMStructure.getIRQChip, KVMStructure.irqChipSize, beginning: Self.head(chip), "read interrupt controller \(chip)")
        }
        let clock = try vm.bytes(KVMStructure.getClock, KVMStructure.clockSize, "read KVM's clock")
        let images = try processors.map { try $0.makeImage() }
        return MachineImage(
            engine: "kvm", features: features, processors: images, ioapic: IOAPICImage(index: 0, entries: [], asserted: 0, pending: 0),
            timeStampCounter: images.first?.registers["10"] ?? 0, timeStampFrequency: processors.first?.timeStampFrequency ?? 0, savedAt: realtimeNanoseconds(),
            engineState: clock + chips)
    }
    func restore(_ image: MachineImage) throws {
        guard image.engine == "kvm" else { throw EngineError("The state is one of the \(image.engine) engine; this machine runs on KVM.") }
        guard image.features == features else { throw EngineError("The processor of this host shows guests other features than the one of the saved machine.") }
        let frequency = processors.first?.timeStampFrequency ?? 0
        guard image.processors.count == processors.count, image.engineState.count == KVMStructure.clockSize + 3 * KVMStructure.irqChipSize,
            image.timeStampFrequency == frequency
        else { throw EngineError("The processors of the state, at \(image.timeStampFrequency / 1000) MHz, are not those of this machine, at \(frequency / 1000) MHz.") }
        // As if the guest had been asleep.
        let now = realtimeNanoseconds()
        let slept = now > image.savedAt ? now - image.savedAt : 0
        var clock = Array(image.engineState[..<KVMStructure.clockSize])
        let time = clock[0..<8].reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) } &+ slept
        clock = withUnsafeBytes(of: time.littleEndian, Array.init) + [UInt8](repeating: 0, count: KVMStructure.clockSize - 8)
        try vm.give(KVMStructure.setClock, clock, "set KVM's clock")
        for chip in 0..<3 {
            let start = KVMStructure.clockSize + chip * KVMStructure.irqChipSize
            try vm.give(KVMStructure.setIRQChip, Array(image.engineState[start..<start + KVMStructure.irqChipSize]), "set up interrupt controller \(chip)")
        }
        let ticks = slept.multipliedFullWidth(by: frequency)
        let sleptTicks = ticks.high < 1_000_000 ? (1_000_000 as UInt64).dividingFullWidth(ticks).quotient : 0
        for (processor, saved) in zip(processors, image.processors) { try processor.restore(saved, slept: sleptTicks) }
    }
}
