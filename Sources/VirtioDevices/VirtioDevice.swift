import FileServer
import GuestMemory
import LinuxSystem

/// Feature bits that every device shares. VIRTIO 1.2 § 6.
package enum VirtioFeature {
    package static let indirectDescriptors: UInt64 = 1 << 28
    package static let eventIndex: UInt64 = 1 << 29
    package static let version1: UInt64 = 1 << 32
}

/// What a device gets when the driver is ready: its queues (nil where the driver set none up) and ways to reach the driver.
package struct VirtioActivation: Sendable {
    package let queues: [Virtqueue?]
    package let features: UInt64
    /// Where the device's threads wait while the machine's state is looked at.
    package let gate: DeviceGate
    /// What the device was when its state was saved; nil for a device that begins.
    package let image: DeviceImage?
    /// Tells the driver that the configuration space changed.
    package let configurationChanged: @Sendable () -> Void
    /// The driver broke the rules: the device is dead until it is reset.
    package let needsReset: @Sendable () -> Void
}

/// What a device holds that is neither in its configuration nor in the guest's memory.
package struct DeviceImage: Equatable, Sendable, Codable {
    package var numbers: [String: UInt64] = [:]
    package var lists: [String: [[UInt8]]] = [:]
    /// Of a file system device.
    package var files: FileServerImage?
    package init() {}
}

/// A virtio device: it sees its configuration, its queues and a reset; neither transport nor interrupts nor engines.
package protocol VirtioDevice: AnyObject, Sendable {
    /// VIRTIO 1.2 § 5.
    var deviceType: UInt16 { get }
    /// PCI class code for the function.
    var pciClass: UInt32 { get }
    /// Device-specific feature bits offered.
    var features: UInt64 { get }
    /// Largest size of each queue.
    var queueSizes: [UInt16] { get }
    /// Largest sizes that a driver may bring with it from a state that was saved: by versions that offered more.
    var restorableQueueSizes: [UInt16] { get }
    /// Guest-physical addresses that belong to the device, shared memory region 0, or nil. § 2.10.
    var sharedMemory: GuestMemory.Region? { get }
    func configRead(_ offset: Int, size: Int) -> UInt64
    func configWrite(_ offset: Int, _ value: UInt64, size: Int)
    /// The event that a kick of this queue signals; nil when `queueNotified` is to be called instead.
    func queueEvent(_ index: Int) -> EventFD?
    func queueNotified(_ index: Int)
    func activate(_ activation: VirtioActivation)
    /// Back to the state before activation; returns when no thread of the device touches guest memory any more.
    func reset()
    /// What a restored device is given at its activation. Called while the gate is closed and no processor runs.
    func makeImage() -> DeviceImage
}

extension VirtioDevice {
    package func configWrite(_ offset: Int, _ value: UInt64, size: Int) {}
    package var sharedMemory: GuestMemory.Region? { nil }
    package var restorableQueueSizes: [UInt16] { queueSizes }
    package func queueEvent(_ index: Int) -> EventFD? { nil }
    package func queueNotified(_ index: Int) {}
    package func makeImage() -> DeviceImage { DeviceImage() }
}

/// Reads a little-endian configuration structure as a driver does, in pieces.
func configField(_ bytes: [UInt8], _ offset: Int, _ size: Int) -> UInt64 {
    guard offset >= 0, size <= 8 else { return 0 }
    return (0..<size).reduce(0) { value, index in
        offset + index < bytes.count ? value | UInt64(bytes[offset + index]) << UInt64(8 * index) : value
    }
}
