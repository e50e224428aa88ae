import Foundation

/// A network of the guest's own, behind the host. Declared; running a machine with it is not supported yet.
open class VZNATNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    public override init() { super.init() }
}
