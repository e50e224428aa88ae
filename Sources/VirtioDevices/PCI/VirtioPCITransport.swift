import GuestMemory
import Hypervisor
import LinuxSystem
import PlatformDevices
import Synchronization

/// Ties a virtio device to a PCI function. VIRTIO 1.2 § 4.1.
///
/// BAR 2: shared memory of the device, if it has any.
/// BAR 0:  0x0000 common configuration   0x1000 ISR   0x2000 device configuration   0x3000 notification, 4 bytes a queue
///         0x4000 MSI-X table   0x4800 pending bits
package final class VirtioPCITransport: PCIBarHandler, PCIBarRelocation, Sendable {
    private enum Window {
        static let common: UInt64 = 0x0000
        static let isr: UInt64 = 0x1000
        static let device: UInt64 = 0x2000
        static let notify: UInt64 = 0x3000
        static let msix: UInt64 = 0x4000
        static let pending: UInt64 = 0x4800
        static let size: UInt64 = 0x8000
    }
    /// Offsets in the common configuration. § 4.1.4.3.
    private enum Common {
        static let deviceFeatureSelect = 0x00
        static let deviceFeature = 0x04
        static let driverFeatureSelect = 0x08
        static let driverFeature = 0x0C
        static let configMSIXVector = 0x10
        static let numQueues = 0x12
        static let deviceStatus = 0x14
        static let configGeneration = 0x15
        static let queueSelect = 0x16
        static let queueSize = 0x18
        static let queueMSIXVector = 0x1A
        static let queueEnable = 0x1C
        static let queueNotifyOff = 0x1E
        static let queueDesc = 0x20
        static let queueDriver = 0x28
        static let queueDevice = 0x30
    }
    /// § 2.1.
    private enum Status {
        static let driverOK: UInt8 = 4
        static let featuresOK: UInt8 = 8
        static let needsReset: UInt8 = 64
    }
    fileprivate struct State: Equatable, Codable, Sendable {
        var deviceFeatureSelect: UInt32 = 0
        var driverFeatureSelect: UInt32 = 0
        var driverFeatures: UInt64 = 0
        var configVector: UInt16 = 0xFFFF
        var status: UInt8 = 0
        var generation: UInt8 = 0
        var queueSelect: UInt16 = 0
        var isr: UInt8 = 0
        var queues: [Virtqueue.Setup]
        var active = false
    }
    package let function: PCIFunction
    private let device: any VirtioDevice
    private let memory: GuestMemory
    private let machine: any HypervisorMachine
    private let state: Mutex<State>
    private let bindings = Mutex<[(address: UInt64, descriptor: Int32)]>([])
    private let sizes: [UInt16]
    private let gate: DeviceGate

    package init(device: any VirtioDevice, memory: GuestMemory, machine: any HypervisorMachine, gate: DeviceGate) {
        self.gate = gate
        self.device = device
        self.memory = memory
        self.machine = machine
        sizes = device.queueSizes
        state = Mutex(State(queues: sizes.map { Virtqueue.Setup(size: $0) }))
        function = PCIFunction(
            vendor: 0x1AF4, device: 0x1040 + device.deviceType, classCode: device.pciClass, revision: 1, subsystemVendor: 0x1AF4,
            subsystem: 0x1040 + device.deviceType, barSize: Window.size, msixVectors: sizes.count + 1,
            msixTableOffset: UInt32(Window.msix), sink: MSIXSink(machine))
        addCapability(type: 1, Window.common, 0x38)
        addCapability(type: 2, Window.notify, UInt64(sizes.count) * 4, extra: [4, 0, 0, 0])
        addCapability(type: 3, Window.isr, 4)
        addCapability(type: 4, Window.device, 0x1000)
        if let region = device.sharedMemory {
            function.addMemoryBar(at: region.base, size: region.size)
            // Region 0, and the upper halves of offset and length. § 4.1.4.7.
            let upper = (0..<4).map { UInt8(truncatingIfNeeded: region.size >> UInt64(32 + 8 * $0)) }
            addCapability(type: 8, bar: 2, 0, region.size & 0xFFFF_FFFF, extra: [0, 0, 0, 0] + upper)
        }
        function.bar = self
    }
    private func addCapability(type: UInt8, bar: UInt8 = 0, _ offset: UInt64, _ length: UInt64, extra: [UInt8] = []) {
        func little(_ value: UInt64) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
        function.addCapability(id: 0x09, [UInt8(16 + extra.count), type, bar, 0, 0, 0] + little(offset) + little(length) + extra)
    }

    private var offeredFeatures: UInt64 {
        device.features | VirtioFeature.version1 | VirtioFeature.indirectDescriptors | VirtioFeature.eventIndex
    }

    // MARK: BAR

    package func barRead(_ offset: UInt64, size: Int) -> UInt64 {
        switch offset {
        case Window.common..<0x1000: return commonRead(Int(offset), size: size)
        case Window.isr..<0x1004:
            return state.withLock { state in
                defer { state.isr = 0 }
                return UInt64(state.isr)
            }
        case Window.device..<0x3000: return device.configRead(Int(offset - Window.device), size: size)
        case Window.msix..<Window.pending: return function.msix?.tableRead(Int(offset - Window.msix), size: size) ?? 0
        case Window.pending..<0x5000: return function.msix?.pendingRead(Int(offset - Window.pending)) ?? 0
        default: return 0
        }
    }
    package func barWrite(_ offset: UInt64, _ value: UInt64, size: Int) {
        switch offset {
        case Window.common..<0x1000: commonWrite(Int(offset), value, size: size)
        case Window.device..<0x3000: device.configWrite(Int(offset - Window.device), value, size: size)
        case Window.notify..<Window.msix: notified(Int(offset - Window.notify) / 4)
        case Window.msix..<Window.pending: function.msix?.tableWrite(Int(offset - Window.msix), value, size: size)
        default: break
        }
    }
    private func notified(_ queue: Int) {
        guard queue < sizes.count, state.withLock({ $0.active && $0.queues[queue].enabled }) else { return }
        if let event = device.queueEvent(queue) { event.signal() } else { device.queueNotified(queue) }
    }

    private func commonRead(_ offset: Int, size: Int) -> UInt64 {
        let offered = offeredFeatures
        return state.withLock { state in
            let selected = Int(state.queueSelect) < state.queues.count ? state.queues[Int(state.queueSelect)] : nil
            switch offset {
            case Common.deviceFeatureSelect: return UInt64(state.deviceFeatureSelect)
            case Common.deviceFeature: return state.deviceFeatureSelect < 2 ? offered >> UInt64(32 * state.deviceFeatureSelect) & 0xFFFF_FFFF : 0
            case Common.driverFeatureSelect: return UInt64(state.driverFeatureSelect)
            case Common.driverFeature:
                return state.driverFeatureSelect < 2 ? state.driverFeatures >> UInt64(32 * state.driverFeatureSelect) & 0xFFFF_FFFF : 0
            case Common.configMSIXVector: return UInt64(state.configVector)
            case Common.numQueues: return UInt64(sizes.count)
            case Common.deviceStatus: return UInt64(state.status)
            case Common.configGeneration: return UInt64(state.generation)
            case Common.queueSelect: return UInt64(state.queueSelect)
            case Common.queueSize: return UInt64(selected?.size ?? 0)
            case Common.queueMSIXVector: return UInt64(selected?.vector ?? 0xFFFF)
            case Common.queueEnable: return selected?.enabled == true ? 1 : 0
            case Common.queueNotifyOff: return UInt64(state.queueSelect)
            case Common.queueDesc, Common.queueDesc + 4: return Self.half(selected?.descriptors, offset & 4, size)
            case Common.queueDriver, Common.queueDriver + 4: return Self.half(selected?.available, offset & 4, size)
            case Common.queueDevice, Common.queueDevice + 4: return Self.half(selected?.used, offset & 4, size)
            default: return 0
            }
        }
    }
    private static func half(_ value: UInt64?, _ offset: Int, _ size: Int) -> UInt64 {
        let shifted = (value ?? 0) >> UInt64(offset * 8)
        return size == 8 ? shifted : shifted & 0xFFFF_FFFF
    }
    private static func setHalf(_ target: inout UInt64, _ offset: Int, _ size: Int, _ value: UInt64) {
        if size == 8 {
            target = value
        } else if offset == 0 {
            target = target & ~0xFFFF_FFFF | value & 0xFFFF_FFFF
        } else {
            target = target & 0xFFFF_FFFF | value << 32
        }
    }

    private func commonWrite(_ offset: Int, _ value: UInt64, size: Int) {
        if offset == Common.deviceStatus { return setStatus(UInt8(truncatingIfNeeded: value)) }
        state.withLock { state in
            switch offset {
            case Common.deviceFeatureSelect: state.deviceFeatureSelect = UInt32(truncatingIfNeeded: value)
            case Common.driverFeatureSelect: state.driverFeatureSelect = UInt32(truncatingIfNeeded: value)
            case Common.driverFeature:
                guard state.status & Status.featuresOK == 0, state.driverFeatureSelect < 2 else { return }
                let shift = UInt64(32 * state.driverFeatureSelect)
                state.driverFeatures = state.driverFeatures & ~(0xFFFF_FFFF << shift) | (value & 0xFFFF_FFFF) << shift
            case Common.configMSIXVector: state.configVector = vector(value)
            case Common.queueSelect: state.queueSelect = UInt16(truncatingIfNeeded: value)
            default: setQueue(&state, offset, value, size: size)
            }
        }
    }
    /// A vector of the table, or none (0xFFFF).
    private func vector(_ value: UInt64) -> UInt16 {
        let vector = UInt16(truncatingIfNeeded: value)
        return Int(vector) <= sizes.count ? vector : 0xFFFF
    }
    private func setQueue(_ state: inout State, _ offset: Int, _ value: UInt64, size: Int) {
        let index = Int(state.queueSelect)
        guard index < state.queues.count else { return }
        switch offset {
        case Common.queueMSIXVector:
            // The table has a vector for each queue and one for the configuration. § 4.1.5.1.2.
            state.queues[index].vector = vector(value)
        case _ where state.queues[index].enabled: break
        case Common.queueSize:
            let size = UInt16(truncatingIfNeeded: value)
            if size > 0, size & (size - 1) == 0, size <= sizes[index] { state.queues[index].size = size }
        case Common.queueEnable: if value == 1 { state.queues[index].enabled = true }
        case Common.queueDesc, Common.queueDesc + 4: Self.setHalf(&state.queues[index].descriptors, offset & 4, size, value)
        case Common.queueDriver, Common.queueDriver + 4: Self.setHalf(&state.queues[index].available, offset & 4, size, value)
        case Common.queueDevice, Common.queueDevice + 4: Self.setHalf(&state.queues[index].used, offset & 4, size, value)
        default: break
        }
    }

    // MARK: life of the device

    private func setStatus(_ value: UInt8) {
        if value == 0 { return reset() }
        let offered = offeredFeatures
        let activates = state.withLock { state -> Bool in
            var value = value
            // FEATURES_OK stays only if the driver took a subset we can serve. § 2.2.2.
            if value & Status.featuresOK != 0, state.status & Status.featuresOK == 0,
                state.driverFeatures & ~offered != 0 || state.driverFeatures & VirtioFeature.version1 == 0
            {
                value &= ~Status.featuresOK
            }
            let was = state.status
            state.status = value | state.status & Status.needsReset
            guard value & Status.driverOK != 0, was & Status.driverOK == 0, !state.active else { return false }
            state.active = value & Status.featuresOK != 0
            return state.active
        }
        if activates { activate() }
    }

    private func activate(_ image: DeviceImage? = nil) {
        let (setups, features) = state.withLock { ($0.queues, $0.driverFeatures) }
        var queues: [Virtqueue?] = []
        for (index, setup) in setups.enumerated() {
            guard setup.enabled else {
                queues.append(nil)
                continue
            }
            do throws(QueueError) {
                queues.append(
                    try Virtqueue(
                        index: index, setup: setup, memory: memory, indirect: features & VirtioFeature.indirectDescriptors != 0,
                        eventIndex: features & VirtioFeature.eventIndex != 0, resuming: image != nil,
                        interrupt: { [weak self] in self?.interrupt(queue: index) }))
            } catch {
                needsReset()
                return
            }
        }
        bindNotifications(setups)
        device.activate(
            VirtioActivation(
                queues: queues, features: features, gate: gate, image: image, configurationChanged: { [weak self] in self?.configurationChanged() },
                needsReset: { [weak self] in self?.needsReset() }))
    }

    private func interrupt(queue: Int) {
        let vector = state.withLock { state -> UInt16 in
            state.isr |= 1
            return state.queues[queue].vector
        }
        function.msix?.signal(vector)
    }
    private func configurationChanged() {
        let vector = state.withLock { state -> UInt16 in
            state.isr |= 2
            state.generation &+= 1
            return state.configVector
        }
        function.msix?.signal(vector)
    }
    private func needsReset() {
        state.withLock { $0.status |= Status.needsReset }
        configurationChanged()
    }

    /// Whether the device told the driver that it needs a reset.
    package var isBroken: Bool { state.withLock { $0.status & Status.needsReset != 0 } }

    /// By the driver, or when the machine goes: the device is quiet when this returns.
    package func reset() {
        state.withLock { $0.active = false }
        unbindNotifications()
        device.reset()
        state.withLock { $0 = State(queues: sizes.map { Virtqueue.Setup(size: $0) }) }
    }

    // MARK: images

    /// The transport and the device behind it.
    package struct Image: Equatable, Sendable, Codable {
        package var deviceType: UInt16
        /// Features offered, and queue sizes: what makes a device another one.
        package var features: UInt64
        package var queueSizes: [UInt16]
        fileprivate var state: State
        package var device: DeviceImage
    }
    /// While the gate is closed and no processor runs.
    package func makeImage() -> Image {
        Image(deviceType: device.deviceType, features: offeredFeatures, queueSizes: sizes, state: state.withLock { $0 }, device: device.makeImage())
    }
    /// What is different here from the device that was saved; nil when nothing is.
    package func difference(to image: Image) -> String? {
        if image.deviceType != device.deviceType { return "a device is of another kind" }
        // A driver keeps the queues it has; a state of before may have others.
        let largest = device.restorableQueueSizes
        let haveRoom = image.queueSizes.count == sizes.count && zip(image.queueSizes, largest).allSatisfy { $0 <= $1 }
        if !haveRoom || image.state.queues.count != sizes.count { return "a device of type \(device.deviceType) has other queues" }
        // The file may say anything: devices have room for queues of these sizes.
        let areSound = zip(image.state.queues, largest).allSatisfy { $0.size > 0 && $0.size & ($0.size - 1) == 0 && $0.size <= $1 }
        if !areSound { return "the queues of a device of type \(device.deviceType) make no sense" }
        if image.features != offeredFeatures || image.state.driverFeatures & ~offeredFeatures != 0 { return "a device of type \(device.deviceType) offers other features" }
        return nil
    }
    /// Goes on where the saved device was. Before the guest runs, with its memory in place.
    package func restore(_ image: Image) {
        state.withLock { $0 = image.state }
        guard image.state.active else { return }
        activate(image.device)
        // Whatever was on its way is raised once more; drivers take an interrupt too many.
        for (index, queue) in image.state.queues.enumerated() where queue.enabled { interrupt(queue: index) }
        configurationChanged()
    }

    // MARK: notifications without an exit

    private func bindNotifications(_ setups: [Virtqueue.Setup]) {
        let base = function.barAddress
        bindings.withLock { bindings in
            for (index, setup) in setups.enumerated() where setup.enabled {
                guard let event = device.queueEvent(index) else { continue }
                let address = base + Window.notify + UInt64(index) * 4
                if machine.bindNotify(address: address, eventFileDescriptor: event.fileDescriptor) {
                    bindings.append((address, event.fileDescriptor))
                }
            }
        }
    }
    private func unbindNotifications() {
        bindings.withLock { bindings in
            for binding in bindings { machine.unbindNotify(address: binding.address, eventFileDescriptor: binding.descriptor) }
            bindings = []
        }
    }
    package func barMoved(to base: UInt64?) {
        unbindNotifications()
        let setups = state.withLock { $0.active ? $0.queues : [] }
        if base != nil { bindNotifications(setups) }
    }
}
