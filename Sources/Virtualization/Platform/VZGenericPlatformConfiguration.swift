import Foundation

/// A plain machine, for Linux.
open class VZGenericPlatformConfiguration: VZPlatformConfiguration {
    private var identifier = VZGenericMachineIdentifier()
    /// Identifies the machine's hardware to the guest. Two running machines must not share one.
    open var machineIdentifier: VZGenericMachineIdentifier {
        get { identifier }
        set { identifier = newValue.copy() as? VZGenericMachineIdentifier ?? newValue }
    }
    /// Whether guests can run virtual machines of their own: not yet on this host.
    open class var isNestedVirtualizationSupported: Bool { false }
    open var isNestedVirtualizationEnabled: Bool = false

    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZGenericPlatformConfiguration()
        copy.identifier = identifier
        copy.isNestedVirtualizationEnabled = isNestedVirtualizationEnabled
        return copy
    }
}
