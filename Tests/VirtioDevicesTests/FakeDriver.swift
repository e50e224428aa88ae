import GuestMemory
import Hypervisor
import LinuxSystem
import PlatformDevices
import VirtioDevices

/// A guest driver without a guest: writes real descriptors into real guest memory and touches the device only through the
/// registers of its PCI function, as a hostile guest would.
final class FakeDriver {
    /// Takes the interrupts.
    final class Machine: HypervisorMachine, @unchecked Sendable {  // only the count changes, under the driver's polling
        nonisolated(unsafe) var interrupts = 0
        /// Where messages go beyond being counted.
        nonisolated(unsafe) var controller: (any InterruptController)?
        var vcpus: [any VirtualCPU] { [] }
        func signal(_ message: MSIMessage) {
            interrupts += 1
            controller?.signal(message)
        }
        func makeMessageRoute() -> (any MessageRoute)? { nil }
        func setLine(_ gsi: UInt32, level: Bool) {}
        func bindNotify(address: UInt64, eventFileDescriptor: Int32) -> Bool { false }
        func unbindNotify(address: UInt64, eventFileDescriptor: Int32) {}
        func makeImage() throws -> MachineImage { throw EngineError("There is nothing behind this machine.") }
        func restore(_ image: MachineImage) throws { throw EngineError("There is nothing behind this machine.") }
    }
    struct Descriptor {
        var address: UInt64
        var count: UInt32
        var flags: UInt16 = 0
        var next: UInt16 = 0
        static func readable(_ address: UInt64, _ count: UInt32, next: UInt16? = nil) -> Self { .init(address: address, count: count, flags: next == nil ? 0 : 1, next: next ?? 0) }
        static func writable(_ address: UInt64, _ count: UInt32, next: UInt16? = nil) -> Self { .init(address: address, count: count, flags: next == nil ? 2 : 3, next: next ?? 0) }
        static func indirect(_ address: UInt64, _ count: UInt32) -> Self { .init(address: address, count: count, flags: 4) }
    }
    static let size: UInt16 = 16
    let memory: GuestMemory
    let machine = Machine()
    let transport: VirtioPCITransport
    let gate: DeviceGate
    private var available: [UInt16] = Array(repeating: 0, count: 64)
    private let queueCount: Int

    init(_ device: any VirtioDevice, memory: GuestMemory) throws {
        self.memory = memory
        gate = try DeviceGate()
        queueCount = device.queueSizes.count
        transport = VirtioPCITransport(device: device, memory: memory, machine: machine, gate: gate)
        initialise()
    }
    deinit { transport.reset() }

    func common(_ offset: UInt64, _ value: UInt64, size: Int = 4) { transport.barWrite(offset, value, size: size) }
    var status: UInt64 { transport.barRead(0x14, size: 1) }
    var needsReset: Bool { status & 64 != 0 }

    static func table(_ queue: Int) -> UInt64 { 0x1_0000 + UInt64(queue) * 0x1000 }
    static func availableRing(_ queue: Int) -> UInt64 { table(queue) + 0x400 }
    static func usedRing(_ queue: Int) -> UInt64 { table(queue) + 0x800 }

    /// Reset, features, queues, DRIVER_OK. VIRTIO 1.2 § 3.1.1.
    func initialise() {
        common(0x14, 0, size: 1)
        common(0x14, 3, size: 1)
        for half in 0..<UInt64(2) {
            common(0x00, half)
            common(0x08, half)
            common(0x0C, transport.barRead(0x04, size: 4) & (half == 0 ? ~(1 << 29) : .max))
        }
        common(0x14, 11, size: 1)
        for queue in 0..<queueCount {
            available[queue] = 0
            try? memory.write([UInt8](repeating: 0, count: 0x1000), at: Self.table(queue))
            common(0x16, UInt64(queue), size: 2)
            common(0x18, UInt64(Self.size), size: 2)
            common(0x1A, UInt64(queue), size: 2)
            common(0x20, Self.table(queue), size: 8)
            common(0x28, Self.availableRing(queue), size: 8)
            common(0x30, Self.usedRing(queue), size: 8)
            common(0x1C, 1, size: 2)
        }
        common(0x14, 15, size: 1)
    }
    func describe(_ descriptors: [Descriptor], at table: UInt64) {
        for (index, descriptor) in descriptors.enumerated() {
            let at = table + UInt64(index) * 16
            try? memory.store(descriptor.address, at: at)
            try? memory.store(descriptor.count, at: at + 8)
            try? memory.store(descriptor.flags, at: at + 12)
            try? memory.store(descriptor.next, at: at + 14)
        }
    }
    /// Puts a chain into the table, makes its head available and kicks.
    func publish(_ descriptors: [Descriptor], queue: Int = 0, head: UInt16 = 0, skip: UInt16 = 1) {
        describe(descriptors, at: Self.table(queue))
        try? memory.store(head, at: Self.availableRing(queue) + 4 + UInt64(available[queue] % Self.size) * 2)
        available[queue] &+= skip
        try? memory.store(available[queue], at: Self.availableRing(queue) + 2)
        transport.barWrite(0x3000 + UInt64(queue) * 4, UInt64(queue), size: 2)
    }
    /// Turns MSI-X on, with all vectors as vector 0x40 of processor 0. PCI Local Bus 3.0 § 6.8.2.
    func enableMSIX() {
        guard let msix = transport.function.msix else { return }
        for vector in 0..<msix.count {
            msix.tableWrite(vector * 16, 0xFEE0_0000, size: 8)
            msix.tableWrite(vector * 16 + 8, 0x40, size: 8)
        }
        var capability = transport.function.configRead(0x34, size: 1)
        while transport.function.configRead(Int(capability), size: 1) != 0x11 { capability = transport.function.configRead(Int(capability) + 1, size: 1) }
        _ = transport.function.configWrite(Int(capability) + 2, 0x8000, size: 2)
    }
    func usedIndex(_ queue: Int = 0) -> UInt16 { (try? memory.load(Self.usedRing(queue) + 2)) ?? 0 }
    func usedLength(_ slot: Int, queue: Int = 0) -> UInt32 { (try? memory.load(Self.usedRing(queue) + 8 + UInt64(slot) * 8)) ?? 0 }

    /// Polls for up to two seconds.
    func eventually(_ condition: () -> Bool) -> Bool {
        for _ in 0..<2000 {
            if condition() { return true }
            usleepMilliseconds(1)
        }
        return false
    }
    func waitForUsed(_ index: UInt16, queue: Int = 0) -> Bool { eventually { usedIndex(queue) == index } }
}
