import DiskStorage
import GuestBoot
import GuestMemory
import HostNetwork
import Hypervisor
import LinuxSystem
import NVMe
import PlatformDevices
import Synchronization
import VirtioDevices
import Glibc

/// One power-on of a machine: memory, engine machine, buses and devices. A reboot makes a new one.
final class Board: AccessBus, @unchecked Sendable {  // everything is set in init; devices lock themselves
    let memory: GuestMemory
    private(set) var machine: (any HypervisorMachine)!
    let loop: EventLoop
    private let pci = PCIHost(barWindow: MachineLayout.pciWindow..<MachineLayout.pciWindow + MachineLayout.pciWindowSize)
    private(set) var transports: [VirtioPCITransport] = []
    private(set) var controllers: [NVMeController] = []
    private(set) var consoles: [ConsoleDevice] = []
    private(set) var networks: [NetworkDevice] = []
    /// Always there: a guest that reports free pages gives them back, whether the machine's owner asked for a balloon or not.
    let balloon: BalloonDevice
    private var uart: UART16550!
    private var acpi: ACPIPort!
    private let rtc = RealTimeClock()
    private let request: @Sendable (PlatformRequest) -> Void
    private let debugMark: (@Sendable (UInt8) -> Void)?
    /// Where the devices' threads wait while the state is looked at.
    let gate: DeviceGate

    /// - Parameters:
    ///   - saved: what the memory begins with.
    ///   - mapsFiles: whether the saved machine could map files.
    init(
        _ description: MachineDescription, saved: SavedStateFile.Opened? = nil, mapsFiles: Bool = false, engine: any HypervisorEngine, loop: EventLoop,
        request: @escaping @Sendable (PlatformRequest) -> Void, portChanged: @escaping @Sendable (Int, Int, Bool) -> Void,
        networkFailed: @escaping @Sendable (Int, any NetworkBackend, String) -> Void, debugMark: (@Sendable (UInt8) -> Void)?
    ) throws {
        self.loop = loop
        self.request = request
        self.debugMark = debugMark
        gate = try DeviceGate()
        var description = description
        // A machine of before has no window.
        if saved != nil, !mapsFiles { for index in description.fileSystems.indices { description.fileSystems[index].mapsFiles = false } }
        let window = description.fileSystems.contains { $0.mapsFiles } ? (MachineLayout.fileWindow, MachineLayout.fileWindowSize) : nil
        memory = try GuestMemory(
            layout: MachineLayout.ramLayout(description.memorySize), window: window, contents: saved.map { ($0.fileDescriptor, $0.memoryOffset) })
        balloon = try BalloonDevice(memory: memory)
        machine = try engine.makeMachine(memory: memory, vcpuCount: description.cpuCount, baseline: description.processorBaseline, bus: self)
        let machine: any HypervisorMachine = machine
        let serial = description.serialOutput
        uart = UART16550(setInterrupt: { [weak machine] in machine?.setLine(MachineLayout.serialGSI, level: $0) }) { byte in
            var byte = byte
            if serial >= 0 { _ = write(serial, &byte, 1) }
        }
        acpi = ACPIPort(setInterrupt: { [weak machine] in machine?.setLine(MachineLayout.eventGSI, level: $0) }, request: request)
        try addDevices(description, portChanged, networkFailed)
    }

    private func addDevices(
        _ description: MachineDescription, _ portChanged: @escaping @Sendable (Int, Int, Bool) -> Void,
        _ networkFailed: @escaping @Sendable (Int, any NetworkBackend, String) -> Void
    ) throws {
        for disk in description.disks {
            switch (disk.interface, disk.storage) {
            case (.nvme, let backend as any BlockBackend): try addController(backend, disk.identifier, description)
            case (.nvme, _): throw EngineError("a disk of this kind cannot be behind an NVMe controller")
            case (.virtio, _): try add(BlockDevice(storage: disk.storage, identifier: disk.identifier, queueCount: min(description.cpuCount, 4)))
            }
        }
        for (index, console) in description.consoles.enumerated() {
            let device = ConsoleDevice(ports: console.ports, maximumPorts: console.maximumPorts, multiPort: console.isMultiPort, loop: loop) {
                portChanged(index, $0, $1)
            }
            consoles.append(device)
            try add(device)
        }
        for (index, network) in description.networks.enumerated() {
            let device = try NetworkDevice(address: network.address, backend: network.backend, pairs: min(description.cpuCount, 4)) { networkFailed(index, $0, $1) }
            networks.append(device)
            try add(device)
        }
        try addFileSystems(description)
        if let sockets = description.sockets { try add(VsockDevice(host: sockets)) }
        for _ in 0..<description.entropyDeviceCount { try add(EntropyDevice()) }
        balloon.setTarget(pages: description.balloonPages)
        try add(balloon)
    }
    /// Who maps files has a part of the window, a power of two like all the others.
    private func addFileSystems(_ description: MachineDescription) throws {
        var (parts, taken) = (1, 0)
        while parts < description.fileSystems.count(where: { $0.mapsFiles }) { parts *= 2 }
        for system in description.fileSystems {
            var window: GuestMemory.Region?
            if system.mapsFiles, let whole = memory.window {
                window = whole.part(taken, size: whole.size / UInt64(parts))
                taken += 1
            }
            let device = try FileSystemDevice(
                tag: system.tag, server: system.server, requestQueues: min(description.cpuCount, 4), window: window, memory: memory)
            try add(device)
        }
    }
    private func add(_ device: any VirtioDevice) throws {
        let transport = VirtioPCITransport(device: device, memory: memory, machine: machine, gate: gate)
        guard pci.add(transport.function) != nil else { throw EngineError("the machine has more devices than the 31 that its PCI bus takes") }
        transports.append(transport)
    }

    private func addController(_ backend: any BlockBackend, _ serial: String, _ description: MachineDescription) throws {
        let controller = NVMeController(
            backend: backend, serial: serial.isEmpty ? "disk\(controllers.count)" : serial, queuePairs: min(description.cpuCount, 8), memory: memory,
            machine: machine, gate: gate)
        guard pci.add(controller.function) != nil else { throw EngineError("the machine has more devices than the 31 that its PCI bus takes") }
        controllers.append(controller)
    }

    /// Quiets every device; the vCPUs have stopped before.
    func shutDown() {
        for transport in transports { transport.reset() }
        for controller in controllers { controller.shutDown() }
    }
    func pressPowerButton() { acpi.pressPowerButton() }

    // MARK: state

    /// Everything but the memory. Only while no processor runs and the gate is closed.
    func makeState(owner: [String: [UInt8]]) throws -> MachineState {
        MachineState(
            memorySize: memory.size, machine: try machine.makeImage(), pci: pci.image, devices: transports.map { $0.makeImage() },
            controllers: controllers.map { $0.makeImage() }, uart: uart.image,
            platformEvents: acpi.pendingEvents, rtcRegister: rtc.selected, owner: owner, mapsFiles: memory.window != nil)
    }
    /// Takes the place of the machine that was saved. Before any processor runs, with the saved memory in place.
    func restore(_ state: MachineState) throws {
        guard state.devices.count == transports.count else {
            throw SavedStateError(.mismatch, "the saved machine has \(state.devices.count) devices, this one has \(transports.count)")
        }
        for (transport, image) in zip(transports, state.devices) {
            if let difference = transport.difference(to: image) { throw SavedStateError(.mismatch, difference) }
        }
        guard state.controllers.count == controllers.count else { throw SavedStateError(.mismatch, "the saved machine has other disks") }
        for (controller, image) in zip(controllers, state.controllers) {
            if let difference = controller.difference(to: image) { throw SavedStateError(.mismatch, difference) }
        }
        do { try machine.restore(state.machine) } catch let error as EngineError {
            throw SavedStateError(.mismatch, error.description.hasSuffix(".") ? String(error.description.dropLast()) : error.description)
        }
        uart.restore(state.uart)
        acpi.pendingEvents = state.platformEvents
        try writeGenerationID()
        acpi.noteNewGeneration()
        rtc.selected = state.rtcRegister
        guard pci.restore(state.pci) else { throw SavedStateError(.mismatch, "the saved machine has other devices") }
        for (transport, image) in zip(transports, state.devices) { transport.restore(image) }
        for (controller, image) in zip(controllers, state.controllers) {
            guard controller.restore(image) else { throw SavedStateError(.damaged, "the state of an NVMe controller makes no sense") }
        }
    }

    /// So that two machines that go on from one state do not draw the same random numbers.
    func writeGenerationID() throws {
        var generator = SystemRandomNumberGenerator()
        try memory.store(generator.next() as UInt64, at: MachineLayout.generationID)
        try memory.store(generator.next() as UInt64, at: MachineLayout.generationID + 8)
    }

    // MARK: AccessBus

    func portRead(_ port: UInt16, size: Int) -> UInt32 {
        switch port {
        case MachineLayout.serialPort..<MachineLayout.serialPort + 8: return UInt32(uart.read(port - MachineLayout.serialPort))
        case MachineLayout.rtcPort, MachineLayout.rtcPort + 1: return UInt32(rtc.read(port - MachineLayout.rtcPort))
        case 0x64: return 0  // no i8042 data waits, none is taken
        case 0x60, 0x61: return 0
        case MachineLayout.acpiPort..<MachineLayout.acpiPort + MachineLayout.acpiPortSize: return acpi.read(port - MachineLayout.acpiPort)
        case MachineLayout.pciConfigPort..<MachineLayout.pciConfigPort + 8: return pci.portRead(port, size: size)
        default: return .max
        }
    }
    func portWrite(_ port: UInt16, _ value: UInt32, size: Int) {
        switch port {
        case MachineLayout.serialPort..<MachineLayout.serialPort + 8: uart.write(port - MachineLayout.serialPort, UInt8(truncatingIfNeeded: value))
        case MachineLayout.rtcPort, MachineLayout.rtcPort + 1: rtc.write(port - MachineLayout.rtcPort, UInt8(truncatingIfNeeded: value))
        case 0x64: if value & 0xFF == 0xFE { request(.reset) }
        case 0xCF9 where size == 1: if value & 4 != 0 { request(.reset) }
        case MachineLayout.acpiPort..<MachineLayout.acpiPort + MachineLayout.acpiPortSize: acpi.write(port - MachineLayout.acpiPort, value)
        case MachineLayout.pciConfigPort..<MachineLayout.pciConfigPort + 8: pci.portWrite(port, value, size: size)
        case MachineLayout.debugPort: debugMark?(UInt8(truncatingIfNeeded: value))
        default: break
        }
    }
    func memoryRead(_ address: UInt64, size: Int) -> UInt64 {
        if address &- MachineLayout.ecam < MachineLayout.ecamSize { return pci.ecamRead(address - MachineLayout.ecam, size: size) }
        guard let (function, offset) = pci.decode(address) else { return .max }
        return function.bar?.barRead(offset, size: size) ?? .max
    }
    func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int) {
        if address &- MachineLayout.ecam < MachineLayout.ecamSize { return pci.ecamWrite(address - MachineLayout.ecam, value, size: size) }
        guard let (function, offset) = pci.decode(address) else { return }
        function.bar?.barWrite(offset, value, size: size)
    }
}
