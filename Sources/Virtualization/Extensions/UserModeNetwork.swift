import Foundation
import HostNetwork
import UserNetwork

/// Beyond Apple's API: a network that several machines of this process share, and what it lets them reach.
/// Without one, each `VZNATNetworkDeviceAttachment` is a network of its own. Any thread.
public final class UserModeNetwork: Sendable {
    let network: UserNetwork

    /// - Parameters:
    ///   - reachesHost: whether guests reach, at the router's address (192.168.64.1, `host.vz.internal`), services that listen on
    ///     the host's loopback addresses.
    ///   - blocked: networks that guests do not reach, such as `10.0.0.0/8`. Link-local networks are never reached.
    ///   - names: host names that the network's DNS answers itself, with their addresses.
    /// - Throws: `VZError.invalidVirtualMachineConfiguration` for text that is no network or address.
    public init(reachesHost: Bool = true, blocked: [String] = [], names: [String: String] = [:]) throws {
        var options = UserNetwork.Options()
        options.reachesHost = reachesHost
        options.blocked = try blocked.map { text in
            guard let block = AddressBlock(text) else { throw VZError.configuration("“\(text)” is not a network such as 10.0.0.0/8.") }
            return block
        }
        for (name, text) in names {
            guard let address = IPAddress(text) else { throw VZError.configuration("“\(text)” is not an address.") }
            options.names[name.lowercased()] = address
        }
        network = UserNetwork(options)
    }
}

/// Beyond Apple's API: a port of the host that leads to one of the guest.
public struct PortForward: Hashable, Sendable {
    public enum Transport: String, Sendable, CaseIterable { case tcp, udp }
    public var transport: Transport
    /// The host's address that is listened at: an IPv4 or IPv6 address; 0.0.0.0 and :: are all of them.
    public var hostAddress: String
    public var hostPort: UInt16
    public var guestPort: UInt16

    public init(_ transport: Transport = .tcp, hostAddress: String = "127.0.0.1", hostPort: UInt16, guestPort: UInt16) {
        self.transport = transport
        self.hostAddress = hostAddress
        self.hostPort = hostPort
        self.guestPort = guestPort
    }
    func translated() throws -> ForwardedPort {
        guard let address = IPAddress(hostAddress) else { throw NetworkError("“\(hostAddress)” is not an address of the host") }
        return ForwardedPort(transport == .tcp ? .tcp : .udp, host: SocketAddress(address, hostPort), guestPort: guestPort)
    }
}

extension VZNATNetworkDeviceAttachment {
    /// Beyond Apple's API: the network to join; nil for one of its own. Set it before the machine starts.
    public var network: UserModeNetwork? {
        get { chosenNetwork }
        set { chosenNetwork = newValue }
    }
    /// Beyond Apple's API: what `publish` has added.
    public var publishedPorts: [PortForward] { forwards }
    /// Beyond Apple's API: the address that the guest is given; nil while no machine uses the attachment.
    public var guestAddress: String? { port?.guestAddress.description }

    /// Beyond Apple's API: opens a port of the host, at once or when the machine starts. Until the guest is on its network,
    /// connections to it are reset. On the machine's queue.
    ///
    /// - Throws: `VZError.networkError` when the host refuses, such as for an address in use; a machine's start throws it, too.
    public func publish(_ forward: PortForward) throws {
        guard !forwards.contains(forward) else { return }
        do { try port?.add(try forward.translated()) } catch { throw VZError(.networkError, reason: "\(error)") }
        forwards.append(forward)
    }
    /// Beyond Apple's API: closes a published port. Connections that go through it stay. On the machine's queue.
    public func unpublish(_ forward: PortForward) {
        guard let index = forwards.firstIndex(of: forward) else { return }
        forwards.remove(at: index)
        if let translated = try? forward.translated() { port?.remove(translated) }
    }
}
