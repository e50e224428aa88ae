import Foundation
import HostNetwork
import UserNetwork

/// A network of the guest's own, with the host as its router: DHCP, DNS, and whatever the host reaches, over IPv4 and IPv6. It
/// needs no privilege. The guest is 192.168.64.2 and up, the host 192.168.64.1.
open class VZNATNetworkDeviceAttachment: VZNetworkDeviceAttachment {
    var chosenNetwork: UserModeNetwork?
    var forwards: [PortForward] = []
    weak var port: UserNetworkPort?

    public override init() { super.init() }

    override func validate() throws {}
    override func makeBackend() throws -> any NetworkBackend {
        let port = try (chosenNetwork?.network ?? UserNetwork()).makePort()
        for forward in forwards { try port.add(try forward.translated()) }
        self.port = port
        return port
    }
}
