import Foundation

/// A virtio source of random numbers, fed by the host's generator.
open class VZVirtioEntropyDeviceConfiguration: VZEntropyDeviceConfiguration {
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any { VZVirtioEntropyDeviceConfiguration() }
}
