import Foundation

/// A virtio network device.
open class VZVirtioNetworkDeviceConfiguration: VZNetworkDeviceConfiguration {
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioNetworkDeviceConfiguration()
        copy.macAddress = macAddress
        copy.attachment = attachment
        return copy
    }
}
