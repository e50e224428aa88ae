import HostNetwork
import LinuxSystem
import Synchronization

/// A network in this process, with the host as its router: a guest on it reaches what the host reaches, from the host's own
/// sockets, and nobody needs a privilege. Guests on one network reach each other. Any thread.
///
/// | address | who |
/// |---|---|
/// | 192.168.64.1, fd5a:5654::1, fe80::1 | the host: router, DNS, DHCP; its services on 127.0.0.1 and ::1 |
/// | 192.168.64.2… | guests, in the order they joined |
package final class UserNetwork: Sendable {
    package struct Options: Sendable {
        /// Whether the guest reaches services that listen on the host's loopback addresses, at the router's address.
        package var reachesHost = true
        /// Addresses that the guest does not reach. 169.254.0.0/16 and fe80::/10 are never reached.
        package var blocked: [AddressBlock] = []
        /// Names that the router's DNS answers itself.
        package var names: [String: IPAddress] = ["host.vz.internal": Addresses.router4]
        package var resolverPath = "/etc/resolv.conf"
        /// Where name servers listen.
        package var nameServerPort: UInt16 = 53
        package init() {}
    }
    enum Addresses {
        static let router4 = IPAddress(192, 168, 64, 1)
        static let mask4: UInt32 = 0xFFFF_FF00
        static let router6 = IPAddress(high: 0xFD5A_5654_0000_0000, low: 1)
        static let routerLink = IPAddress(high: 0xFE80 << 48, low: 1)
        static let everyNode = IPAddress(high: 0xFF02 << 48, low: 1)
        /// "VZ", locally administered.
        static let routerHardware: UInt64 = 0x5A56_5A00_0001
        static let broadcast: UInt64 = 0xFFFF_FFFF_FFFF
    }
    package let options: Options
    private struct State {
        var ports: [WeakPort] = []
        var taken: Set<UInt8> = []
    }
    private struct WeakPort { weak var port: UserNetworkPort? }
    private let state = Mutex(State())

    package init(_ options: Options = Options()) { self.options = options }

    /// A place for one more network device; gone with its last reference.
    package func makePort() throws -> UserNetworkPort {
        let number = try state.withLock { state throws -> UInt8 in
            guard let free = (2...254 as ClosedRange<UInt8>).first(where: { !state.taken.contains($0) }) else {
                throw NetworkError("the network has no address left for another machine")
            }
            state.taken.insert(free)
            return free
        }
        do {
            let port = try UserNetworkPort(self, number: number)
            state.withLock { $0.ports.append(WeakPort(port: port)) }
            return port
        } catch {
            release(number)
            throw error
        }
    }
    func release(_ number: UInt8) {
        state.withLock { state in
            state.taken.remove(number)
            state.ports.removeAll { $0.port == nil }
        }
    }
    /// The other ports that a frame for `hardware` goes to: one, or all of them for a group address.
    func neighbours(of port: UserNetworkPort, for hardware: UInt64) -> [UserNetworkPort] {
        let isGroup = hardware >> 40 & 1 != 0
        return state.withLock { state in
            state.ports.count < 2 ? [] : state.ports.compactMap { $0.port }.filter { $0 !== port && (isGroup || $0.hardware == hardware) }
        }
    }
}
