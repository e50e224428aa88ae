import CLinux
import Glibc
import HostNetwork
import LinuxSystem

/// A port of the host that leads to one of the guest.
package struct ForwardedPort: Hashable, Sendable, CustomStringConvertible {
    package enum Transport: String, Sendable { case tcp, udp }
    package var transport: Transport
    /// Where the host listens.
    package var host: SocketAddress
    package var guestPort: UInt16
    package init(_ transport: Transport, host: SocketAddress, guestPort: UInt16) {
        (self.transport, self.host, self.guestPort) = (transport, host, guestPort)
    }
    package var description: String { "\(host)/\(transport)" }
}

/// Where the host listens for a forwarded port. It outlives the guest's driver.
class ForwardListener: Endpoint {
    let forward: ForwardedPort
    init(_ forward: ForwardedPort, id: UInt64, fd: Int32) {
        self.forward = forward
        super.init(id: id, fd: fd)
    }
    final override var endsWithGuest: Bool { false }
}

/// Connections to a forwarded port.
final class TCPListener: ForwardListener {
    override func produce(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        while true {
            var address = sockaddr_in6()
            var length = UInt32(MemoryLayout<sockaddr_in6>.size)
            let fd = clinux_accept(self.fd, &address, &length)
            if fd >= 0 {
                stack.open(forward, fd)
                continue
            }
            switch errno {
            case EINTR, ECONNABORTED: continue
            // No descriptors: those that end make room.
            case EMFILE, ENFILE, ENOBUFS, ENOMEM: stack.setDeadline(self, stack.now() + 100_000_000)
            default: break
            }
            return nil
        }
    }
    override func expired(_ now: UInt64, _ stack: Stack) { stack.makeReady(self) }
}

/// Datagrams to a forwarded port. Each sender is shown to the guest as a port of the router's.
final class UDPListener: ForwardListener {
    private static let mostPeers = 1024
    private var aliases: [SocketAddress: UInt16] = [:]
    private var peers: [UInt16: SocketAddress] = [:]
    private var order: [UInt16] = []

    override func produce(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        while let (count, from) = HostSocket.receive(fd, stack.datagram + 8, 65507) {
            guard stack.isGuestKnown else { continue }
            let source = SocketAddress(Stack.Addresses.router4, alias(from, stack))
            if let size = stack.sendUDP(source, SocketAddress(stack.guest, forward.guestPort), count, room) { return size }
        }
        return nil
    }
    private func alias(_ peer: SocketAddress, _ stack: Stack) -> UInt16 {
        if let known = aliases[peer] { return known }
        if order.count >= Self.mostPeers, let old = peers.removeValue(forKey: order.removeFirst()) { aliases[old] = nil }
        let alias = stack.takeAlias()
        aliases[peer] = alias
        peers[alias] = peer
        order.append(alias)
        return alias
    }
    /// Sends the guest's answer to whom `alias` stands for; false when it stands for nobody.
    func answer(_ alias: UInt16, _ packet: ParsedPacket, _ frame: MemoryPieces, _ stack: Stack) -> Bool {
        guard let peer = peers[alias] else { return false }
        let parts = frame.slice(from: packet.offset + 8, limit: packet.count - 8, to: stack.parts, capacity: Stack.partCapacity)
        _ = HostSocket.send(fd, stack.parts, parts, to: peer, family: forward.host.address.isV4 ? AF_INET : AF_INET6)
        return true
    }
}

extension Stack {
    func add(_ forward: ForwardedPort) throws {
        let kind = forward.transport == .tcp ? SOCK_STREAM : SOCK_DGRAM
        let fd = HostSocket.listen(kind, forward.host)
        guard fd >= 0 else {
            let reason = String(cString: strerror(errno))
            throw NetworkError("cannot publish \(forward): \(reason.lowercased())")
        }
        let listener = forward.transport == .tcp ? TCPListener(forward, id: takeID(), fd: fd) : UDPListener(forward, id: takeID(), fd: fd)
        listeners.append(listener)
        insert(listener)
    }
    func remove(_ forward: ForwardedPort) {
        for listener in listeners where listener.forward == forward { erase(listener) }
        listeners.removeAll { $0.forward == forward }
    }
    /// Ports by which the guest knows who came through a forward.
    func takeAlias() -> UInt16 {
        nextAlias = nextAlias < 40000 || nextAlias == .max ? 40000 : nextAlias + 1
        return nextAlias
    }
    /// Somebody connected to a forwarded port: the guest is asked, in the router's name.
    func open(_ forward: ForwardedPort, _ fd: Int32) {
        for _ in 0..<64 where isGuestKnown {
            let key = TCPKey(guest: SocketAddress(guest, forward.guestPort), remote: SocketAddress(Addresses.router4, takeAlias()))
            if connections[key] != nil { continue }
            let connection = TCPConnection(key, phase: .synSent, id: takeID(), fd: fd)
            connections[key] = connection
            insert(connection)
            makeReady(connection)
            return
        }
        // The guest is not up yet: whoever waits for it can try again.
        HostSocket.abort(fd)
    }
    /// The guest's answer to a datagram that came through a forward.
    func answerForward(_ packet: ParsedPacket, _ frame: MemoryPieces, _ source: SocketAddress, _ target: SocketAddress) -> Bool {
        guard target.port >= 40000 else { return false }
        for case let listener as UDPListener in listeners where listener.forward.guestPort == source.port {
            if listener.answer(target.port, packet, frame, self) { return true }
        }
        return false
    }
}
