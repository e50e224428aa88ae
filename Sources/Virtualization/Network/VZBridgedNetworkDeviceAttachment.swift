import Foundation

/// A layer 2 bridge to a host interface. Declared; running a machine with it is not supported yet.
open class VZBridgedNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    public let interface: VZBridgedNetworkInterface
    public init(interface: VZBridgedNetworkInterface) {
        self.interface = interface
        super.init()
    }
}
