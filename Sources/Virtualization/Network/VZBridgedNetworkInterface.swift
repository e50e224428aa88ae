import Foundation
import HostNetwork

/// A host interface that guests can be bridged to.
open class VZBridgedNetworkInterface: NSObject {
    /// The kernel's name, such as br0.
    public let identifier: String
    public let localizedDisplayName: String?
    init(identifier: String) {
        self.identifier = identifier
        localizedDisplayName = nil
        super.init()
    }
    /// The bridges of this host. On Linux a bridge is made once, and the network card put on it: see `ip link add br0 type bridge`.
    open class var networkInterfaces: [VZBridgedNetworkInterface] { TapDevice.bridges.map { VZBridgedNetworkInterface(identifier: $0) } }
}
