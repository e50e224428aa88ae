/// One local APIC: its registers in the memory-mapped layout, one 32-bit word for each 16 bytes. Intel SDM vol. 3 § 10.4.1.
package struct LocalAPICImage: Equatable, Sendable, Codable {
    package static let registerCount = 64
    package var registers: [UInt32]
    /// IA32_APIC_BASE: bit 11 enabled, bit 10 x2APIC.
    package var base: UInt64
    package var identifier: UInt32
    /// IA32_TSC_DEADLINE; 0 when it is not armed.
    package var timeStampDeadline: UInt64
    /// Nanoseconds until the one-shot or periodic timer fires; nil when it does not run.
    package var timerRemaining: UInt64?
    package init(registers: [UInt32], base: UInt64, identifier: UInt32, timeStampDeadline: UInt64, timerRemaining: UInt64?) {
        self.registers = registers
        self.base = base
        self.identifier = identifier
        self.timeStampDeadline = timeStampDeadline
        self.timerRemaining = timerRemaining
    }
}

/// The I/O APIC: redirection entries, and the levels of its inputs, a bit an input.
package struct IOAPICImage: Equatable, Sendable, Codable {
    package var index: UInt32
    package var entries: [UInt64]
    package var asserted: UInt32
    package var pending: UInt32
    package init(index: UInt32, entries: [UInt64], asserted: UInt32, pending: UInt32) {
        self.index = index
        self.entries = entries
        self.asserted = asserted
        self.pending = pending
    }
}

/// Everything of one processor.
package struct ProcessorImage: Equatable, Sendable, Codable {
    package enum Activity: String, Sendable, Codable { case running, halted, waitingForStartup }
    package var state: VCPUState
    package var apic: LocalAPICImage
    package var activity: Activity
    /// Further model-specific registers: PAT, the paravirtual clock's, by their number in hexadecimal.
    package var registers: [String: UInt64]
    /// What CPUID shows there; nil in states of early versions.
    package var identity: [CPUIDLeaf]?
    /// What only the engine that made it understands.
    package var engineState: [UInt8]
    package init(state: VCPUState, apic: LocalAPICImage, activity: Activity, registers: [String: UInt64], identity: [CPUIDLeaf], engineState: [UInt8] = []) {
        self.state = state
        self.apic = apic
        self.activity = activity
        self.registers = registers
        self.identity = identity
        self.engineState = engineState
    }
}

/// Processors, interrupt controllers and time of a machine that is paused: what an engine holds of it.
package struct MachineImage: Equatable, Sendable, Codable {
    /// The engine's name.
    package var engine: String
    /// Instructions that the guest was shown, by name.
    package var features: [String]
    package var processors: [ProcessorImage]
    package var ioapic: IOAPICImage
    /// The guest's time stamp counter, and its frequency in kHz.
    package var timeStampCounter: UInt64
    package var timeStampFrequency: UInt64
    /// The paravirtual clock, in nanoseconds; nil in states of early versions.
    package var systemTime: UInt64?
    /// Host time of the moment, in nanoseconds since 1970.
    package var savedAt: UInt64
    /// What only the engine that made it understands.
    package var engineState: [UInt8]
    package init(
        engine: String, features: [String], processors: [ProcessorImage], ioapic: IOAPICImage, timeStampCounter: UInt64, timeStampFrequency: UInt64,
        systemTime: UInt64, savedAt: UInt64, engineState: [UInt8] = []
    ) {
        self.engine = engine
        self.features = features
        self.processors = processors
        self.ioapic = ioapic
        self.timeStampCounter = timeStampCounter
        self.timeStampFrequency = timeStampFrequency
        self.systemTime = systemTime
        self.savedAt = savedAt
        self.engineState = engineState
    }
}

extension MachineImage {
    /// How long ago it was made, by the host's clock (none if that was set back): what the guest is to have slept, in nanoseconds
    /// and in ticks of its time stamp counter.
    package func sleep(at now: UInt64) -> (nanoseconds: UInt64, ticks: UInt64) {
        let age = now > savedAt ? now - savedAt : 0
        return (age, TimeStampClock(origin: 0, start: 0, frequency: timeStampFrequency).ticks(in: age))
    }
}
extension ProcessorImage {
    /// The value of a model-specific register.
    package func register(_ number: UInt32) -> UInt64? { registers[String(number, radix: 16)] }
}
