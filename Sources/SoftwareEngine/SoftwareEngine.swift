import GuestMemory
import Hypervisor
import LinuxSystem
import X86

/// Virtual machines on our own x86-64 processor: works wherever the process runs.
package struct SoftwareEngine: HypervisorEngine {
    private let makeInterruptController: @Sendable (_ cpuCount: Int, _ clock: GuestClock) throws -> any InterruptController
    private let frequency: @Sendable () -> UInt64

    /// - Parameters:
    ///   - frequency: of new machines' time stamp counters, in kHz.
    ///   - makeInterruptController: the machine's local and I/O interrupt controllers, made for each machine; they live in a room
    ///     above this one.
    package init(
        frequency: @escaping @Sendable () -> UInt64,
        _ makeInterruptController: @escaping @Sendable (_ cpuCount: Int, _ clock: GuestClock) throws -> any InterruptController
    ) {
        self.frequency = frequency
        self.makeInterruptController = makeInterruptController
    }
    package var name: String { "software" }
    /// Instructions run on the host's own processor: it must have them.
    private func features(of baseline: ProcessorBaseline) throws -> X86Features {
        let wanted: X86Features
        switch baseline {
        case .host: return .host
        case .v1: wanted = .v1
        case .v2: wanted = .v2
        case .v3: wanted = .v3
        }
        let missing = wanted.subtracting(.host).names
        guard missing.isEmpty else { throw EngineError("This host's processor is not \(baseline.rawValue): it lacks \(missing.joined(separator: ", ")).") }
        return wanted
    }
    package var maximumVCPUCount: Int { 8 }

    package func makeMachine(memory: GuestMemory, vcpuCount: Int, baseline: ProcessorBaseline, bus: any AccessBus) throws -> any HypervisorMachine {
        let clock = GuestClock(frequency: frequency)
        return SoftwareMachine(
            memory: memory, vcpuCount: vcpuCount, features: try features(of: baseline), bus: bus, interrupts: try makeInterruptController(vcpuCount, clock),
            clock: clock)
    }
}

final class SoftwareMachine: HypervisorMachine {
    private let processors: [SoftwareVCPU]
    private let interrupts: any InterruptController
    private let clock: SoftwareClock
    private let features: X86Features

    init(memory: GuestMemory, vcpuCount: Int, features: X86Features, bus: any AccessBus, interrupts: any InterruptController, clock: GuestClock) {
        let physical = PhysicalMemory(regions: memory.regions.map { ($0.base, $0.size, $0.host) })
        memory.deviceWriteObserver = { address, count in physical.noteDeviceWrite(address, count) }
        self.interrupts = interrupts
        self.features = features
        let clock = SoftwareClock(memory: memory, guest: clock)
        self.clock = clock
        processors = (0..<vcpuCount).map {
            SoftwareVCPU(index: $0, count: vcpuCount, features: features, physical: physical, bus: bus, interrupts: interrupts, clock: clock)
        }
    }
    deinit { interrupts.stop() }

    var vcpus: [any VirtualCPU] { processors }
    func signal(_ message: MSIMessage) { interrupts.signal(message) }
    func makeMessageRoute() -> (any MessageRoute)? { nil }
    func setLine(_ gsi: UInt32, level: Bool) { interrupts.setLine(gsi, level: level) }
    func bindNotify(address: UInt64, eventFileDescriptor: Int32) -> Bool { false }
    func unbindNotify(address: UInt64, eventFileDescriptor: Int32) {}

    func makeImage() -> MachineImage {
        let (local, io) = interrupts.makeImages()
        let time = clock.guest
        return MachineImage(
            engine: "software", features: features.names, processors: zip(processors, local).map { $0.makeImage($1) }, ioapic: io,
            timeStampCounter: time.counter, timeStampFrequency: time.timeStamp.frequency, systemTime: time.systemTime, savedAt: realtimeNanoseconds())
    }
    func restore(_ image: MachineImage) throws {
        let features = try features(for: image)
        guard image.processors.count == processors.count, TimeStampClock.frequencies.contains(image.timeStampFrequency) else {
            throw EngineError("The processors of the state are not those of this machine.")
        }
        let slept = image.sleep(at: realtimeNanoseconds())
        clock.guest.goOn(
            from: image.timeStampCounter &+ slept.ticks, systemTime: (image.systemTime ?? image.timeStampCounter) &+ slept.nanoseconds,
            frequency: image.timeStampFrequency)
        interrupts.restore(image.processors.map(\.apic), image.ioapic)
        for (processor, saved) in zip(processors, image.processors) { processor.restore(saved, features: features) }
    }
    /// What the cores are to have for the machine that `image` shows; throws what is missing.
    private func features(for image: MachineImage) throws -> X86Features {
        guard let identity = image.processors.first?.identity, !identity.isEmpty else {
            guard image.engine == "software" else {
                throw EngineError("The state is one of the \(image.engine) engine, by an early version; this machine runs on the software engine.")
            }
            let missing = Set(image.features).subtracting(features.names)
            guard missing.isEmpty else { throw EngineError("The processor of this machine lacks \(missing.sorted().joined(separator: ", ")), which the saved one has.") }
            return features
        }
        let own = ProcessorIdentity(index: 0, count: 1, features: .host, frequency: image.timeStampFrequency).leaves
        let offered = ProcessorFeatures.names(in: own).union(ProcessorFeatures.speculationControls)
        if let objection = ProcessorFeatures.objection(to: identity, offered: offered, by: "the software engine") { throw EngineError(objection) }
        return X86Features(names: ProcessorFeatures.names(in: identity))
    }
}
