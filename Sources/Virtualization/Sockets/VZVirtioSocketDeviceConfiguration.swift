import Foundation

/// A socket device: streams between programs of the guest and of the host, without a network. At most one a machine. The guest
/// is context 3, the host 2.
open class VZVirtioSocketDeviceConfiguration: VZSocketDeviceConfiguration {
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any { VZVirtioSocketDeviceConfiguration() }
}
