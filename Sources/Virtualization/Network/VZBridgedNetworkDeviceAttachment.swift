import Foundation
import HostNetwork

/// A guest on a bridge of the host: a machine of its own on that network. Needs CAP_NET_ADMIN when the machine starts.
open class VZBridgedNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    public let interface: VZBridgedNetworkInterface
    public init(interface: VZBridgedNetworkInterface) {
        self.interface = interface
        super.init()
    }
    override func validate() throws {
        guard TapDevice.isBridge(interface.identifier) else {
            throw VZError.configuration("The network interface \(interface.identifier) is not a bridge of this host.")
        }
    }
    override func makeBackend() throws -> any NetworkBackend { try TapDevice(bridge: interface.identifier) }
}
