import CLinux
import Glibc
import Hypervisor
import LinuxSystem

extension KVMVCPU {
    /// Only while `run` is not.
    private func readState() throws -> KVMProcessorState {
        var structures: [UInt8] = []
        for structure in KVMStructure.allCases { structures += try fd.bytes(structure.get, structure.size, "read processor \(index) (\(structure))") }
        var registers: [UInt32: UInt64] = [:]
        for number in KVMRegister.saved { registers[number] = fd.register(number) }
        guard let state = KVMProcessorState(bytes: structures, registers: registers) else { throw EngineError("KVM's processor \(index) is incomplete.") }
        return state
    }
    private func writeState(_ state: KVMProcessorState) throws {
        for structure in KVMStructure.allCases {
            try fd.give(structure.set, state.structures[structure] ?? [], "set up processor \(index) (\(structure))")
        }
        for number in KVMRegister.saved where number != KVMRegister.timeStampCounter {
            // One that this KVM refuses was nothing that the guest could use.
            if let value = state.registers[number] { fd.setRegister(number, value) }
        }
    }

    /// Only while `run` is not.
    func makeImage() throws -> ProcessorImage {
        let state = try readState()
        let registers = Dictionary(uniqueKeysWithValues: state.registers.map { (String($0.key, radix: 16), $0.value) })
        return ProcessorImage(
            state: state.architectural, apic: state.localAPIC(index: index), activity: state.activity, registers: registers, identity: identity,
            engineState: state.bytes)
    }
    /// - Parameter counter: what the time stamp counter is to be now.
    func restore(_ image: ProcessorImage, isOwn: Bool, counter: UInt64) throws {
        if let saved = image.identity, !saved.isEmpty { try show(saved) }
        fd.setRegister(KVMRegister.timeStampCounter, counter)
        if isOwn {
            let registers = image.registers.reduce(into: [UInt32: UInt64]()) { if let number = UInt32($1.key, radix: 16) { $0[number] = $1.value } }
            guard let state = KVMProcessorState(bytes: image.engineState, registers: registers) else {
                throw EngineError("The state of processor \(index) is not complete.")
            }
            try writeState(state)
        } else {
            var state = try readState()
            state.take(image)
            try writeState(state)
        }
        _ = clinux_ioctl(fd.fd, KVMStructure.noteStop, 0)  // a guest without the paravirtual clock has nothing to note
    }
    /// In kHz. KVM refuses one that is not the host's where the processor cannot scale.
    var timeStampFrequency: UInt64 { UInt64(max(0, clinux_ioctl(fd.fd, KVMStructure.getFrequency, 0))) }
    func setTimeStampFrequency(_ frequency: UInt64) -> Bool {
        TimeStampClock.frequencies.contains(frequency) && clinux_ioctl(fd.fd, KVMStructure.setFrequency, UInt(frequency)) == 0
    }
}

extension KVMMachine {
    private static let engine = "kvm"
    private static let ioapicChip: UInt8 = 2
    private static func head(_ chip: UInt8) -> [UInt8] { [chip, 0, 0, 0, 0, 0, 0, 0] }
    private func readChip(_ chip: UInt8) throws -> [UInt8] {
        try vm.bytes(KVMStructure.getIRQChip, KVMStructure.irqChipSize, beginning: Self.head(chip), "read interrupt controller \(chip)")
    }

    func makeImage() throws -> MachineImage {
        let clock = try vm.bytes(KVMStructure.getClock, KVMStructure.clockSize, "read KVM's clock")
        let chips = try (0...Self.ioapicChip).map(readChip)
        let images = try processors.map { try $0.makeImage() }
        return MachineImage(
            engine: Self.engine, features: features, processors: images, ioapic: IOAPICImage(kvm: chips[Int(Self.ioapicChip)]),
            timeStampCounter: images.first?.register(KVMRegister.timeStampCounter) ?? 0, timeStampFrequency: processors.first?.timeStampFrequency ?? 0,
            systemTime: clock.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }, savedAt: realtimeNanoseconds(), engineState: clock + chips.joined())
    }

    func restore(_ image: MachineImage) throws {
        let isOwn = image.engine == Self.engine
        try check(image, isOwn: isOwn)
        for processor in processors where processor.timeStampFrequency != image.timeStampFrequency {
            guard processor.setTimeStampFrequency(image.timeStampFrequency) else {
                throw EngineError(
                    """
                    The saved machine's time stamp counter has \(image.timeStampFrequency / 1000) MHz, this host's has \(processor.timeStampFrequency / 1000) MHz, \
                    and KVM cannot scale it here.
                    """)
            }
        }
        let slept = image.sleep(at: realtimeNanoseconds())
        let time = (image.systemTime ?? savedClock(image)) &+ slept.nanoseconds
        let clock = withUnsafeBytes(of: time.littleEndian, Array.init) + [UInt8](repeating: 0, count: KVMStructure.clockSize - 8)
        try vm.give(KVMStructure.setClock, clock, "set KVM's clock")
        try restoreChips(image, isOwn: isOwn)
        for (processor, saved) in zip(processors, image.processors) {
            let counter = isOwn ? saved.register(KVMRegister.timeStampCounter) ?? image.timeStampCounter : image.timeStampCounter
            try processor.restore(saved, isOwn: isOwn, counter: counter &+ slept.ticks)
        }
    }
    private func check(_ image: MachineImage, isOwn: Bool) throws {
        guard image.processors.count == processors.count, !isOwn || image.engineState.count == KVMStructure.clockSize + 3 * KVMStructure.irqChipSize else {
            throw EngineError("The processors of the state are not those of this machine.")
        }
        if let identity = image.processors.first?.identity, !identity.isEmpty {
            if let objection = ProcessorFeatures.objection(to: identity, offered: offered, by: "KVM") { throw EngineError(objection) }
        } else if !isOwn {
            throw EngineError("The state is one of the \(image.engine) engine, by an early version; this machine runs on KVM.")
        } else if image.features != features {
            throw EngineError("The processor of this host shows guests other features than the one of the saved machine.")
        }
    }
    private func savedClock(_ image: MachineImage) -> UInt64 {
        image.engineState.count < 8 ? image.timeStampCounter : image.engineState.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
    }
    private func restoreChips(_ image: MachineImage, isOwn: Bool) throws {
        if !isOwn {
            var chip = try readChip(Self.ioapicChip)
            image.ioapic.write(to: &chip)
            return try vm.give(KVMStructure.setIRQChip, chip, "set up the I/O interrupt controller")
        }
        for chip in 0..<3 {
            let start = KVMStructure.clockSize + chip * KVMStructure.irqChipSize
            try vm.give(KVMStructure.setIRQChip, Array(image.engineState[start..<start + KVMStructure.irqChipSize]), "set up interrupt controller \(chip)")
        }
    }
}

extension IOAPICImage {
    // kvm_irqchip: the chip's number and padding, 8 bytes; kvm_ioapic_state: base address, index at 8, identifier, requests at 16,
    // padding, 24 entries from 24 on.
    private static let indexPlace = 8 + 8
    private static let requestPlace = 8 + 16
    private static let entryPlace = 8 + 24
    private static let pinCount = 24
    private static let level: UInt64 = 1 << 15

    init(kvm chip: [UInt8]) {
        self = chip.withUnsafeBytes { bytes in
            let entries: [UInt64] = (0..<Self.pinCount).map { bytes.loadUnaligned(fromByteOffset: Self.entryPlace + $0 * 8, as: UInt64.self) }
            let requests = bytes.loadUnaligned(fromByteOffset: Self.requestPlace, as: UInt32.self)
            let levels = entries.indices.reduce(0 as UInt32) { entries[$1] & Self.level != 0 ? $0 | 1 << UInt32($1) : $0 }
            return IOAPICImage(
                index: bytes.loadUnaligned(fromByteOffset: Self.indexPlace, as: UInt32.self), entries: entries, asserted: requests & levels,
                pending: requests & ~levels)
        }
    }
    func write(to chip: inout [UInt8]) {
        let levels = entries.indices.reduce(0 as UInt32) { $1 < 32 && entries[$1] & Self.level != 0 ? $0 | 1 << UInt32($1) : $0 }
        chip.withUnsafeMutableBytes { bytes in
            bytes.storeBytes(of: index, toByteOffset: Self.indexPlace, as: UInt32.self)
            bytes.storeBytes(of: asserted & levels | pending & ~levels, toByteOffset: Self.requestPlace, as: UInt32.self)
            for (pin, entry) in entries.prefix(Self.pinCount).enumerated() { bytes.storeBytes(of: entry, toByteOffset: Self.entryPlace + pin * 8, as: UInt64.self) }
        }
    }
}
