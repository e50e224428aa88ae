import Foundation

/// A network device. Use a subclass.
open class VZNetworkDeviceConfiguration: NSObject, NSCopying {
    private var address = VZMACAddress.randomLocallyAdministered()
    /// Random, unicast and locally administered by default.
    open var macAddress: VZMACAddress {
        get { address }
        set { address = newValue.copy() as? VZMACAddress ?? newValue }
    }
    open var attachment: VZNetworkDeviceAttachment?
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
