import Foundation

/// A virtio memory balloon; a machine takes one at most.
open class VZVirtioTraditionalMemoryBalloonDeviceConfiguration: VZMemoryBalloonDeviceConfiguration {
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any { VZVirtioTraditionalMemoryBalloonDeviceConfiguration() }
}
