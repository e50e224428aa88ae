import CLinux
import Glibc
import HostNetwork
import LinuxSystem

/// One UDP port of the guest's: a socket of the host's that speaks with whomever the guest speaks with.
final class UDPFlow: Endpoint {
    /// RFC 4787 § 4.3 asks for two minutes at least; name servers answer at once or not at all.
    private static let lifetime: UInt64 = 120_000_000_000
    private static let lookupLifetime: UInt64 = 20_000_000_000
    let guest: SocketAddress
    /// The name server that was asked in the router's name.
    private var server: IPAddress?
    private var asksOnly = true

    init?(_ guest: SocketAddress, id: UInt64) {
        let fd = HostSocket.open(SOCK_DGRAM)
        guard fd >= 0 else { return nil }
        self.guest = guest
        HostSocket.set(fd, SOL_SOCKET, SO_BROADCAST, 0)
        super.init(id: id, fd: fd)
    }

    /// - Parameter server: set when the packet was for the router's name server.
    func send(_ packet: ParsedPacket, _ frame: MemoryPieces, to target: SocketAddress, server: IPAddress?, _ stack: Stack) {
        if let server { self.server = server } else { asksOnly = false }
        stack.setDeadline(self, stack.now() + (asksOnly ? Self.lookupLifetime : Self.lifetime))
        let parts = frame.slice(from: packet.offset + 8, limit: packet.count - 8, to: stack.parts, capacity: Stack.partCapacity)
        if HostSocket.send(fd, stack.parts, parts, to: target) < 0, errno == ENETUNREACH || errno == EHOSTUNREACH {
            stack.sendUnreachable(packet, port: false)
        }
    }
    override func produce(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        while let (count, from) = HostSocket.receive(fd, stack.datagram + 8, 65507) {
            var source = stack.guestView(from)
            if let server, from.port == stack.options.nameServerPort, from.address == server {
                source = SocketAddress(Stack.Addresses.router4, 53)
                stack.questionWasAnswered()
            }
            guard source.address.isV4 == guest.address.isV4 else { continue }
            if !asksOnly { stack.setDeadline(self, stack.now() + Self.lifetime) }
            if let size = stack.sendUDP(source, guest, count, room) { return size }
        }
        return nil
    }
    override func expired(_ now: UInt64, _ stack: Stack) {
        stack.flows[guest] = nil
        stack.erase(self)
    }
}

extension Stack {
    private static let mostFlows = 2048

    func inputUDP(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        guard packet.headerCount >= 8, packet.count >= 8, Int(packet.header.big16(4)) <= packet.count else { return }
        let source = SocketAddress(packet.source, packet.header.big16(0))
        let target = SocketAddress(packet.target, packet.header.big16(2))
        if source.port == 68, target.port == 67 { return inputDHCP(packet, frame) }
        guard packet.source == guest || !packet.source.isV4 else { return }
        if target.address == Addresses.router4, answerForward(packet, frame, source, target) { return }
        var (host, server) = (hostTarget(target), nil as IPAddress?)
        if target == SocketAddress(Addresses.router4, 53) {
            if answerName(packet, frame, source) { return }
            let address = serverForQuestion()
            (host, server) = (SocketAddress(address, options.nameServerPort), address)
        }
        guard let host else {
            if !target.address.isMulticast, target.address.v4 & 255 != 255 { sendUnreachable(packet, port: false) }
            return
        }
        guard let flow = flow(source) else { return }
        flow.send(packet, frame, to: host, server: server, self)
    }
    private func flow(_ source: SocketAddress) -> UDPFlow? {
        if let flow = flows[source] { return flow }
        if flows.count >= Self.mostFlows, let oldest = flows.values.min(by: { $0.deadline < $1.deadline }) { oldest.expired(0, self) }
        guard let flow = UDPFlow(source, id: takeID()) else { return nil }
        flows[source] = flow
        insert(flow)
        return flow
    }
    /// `count` bytes of payload lie in `datagram` behind room for the header.
    func sendUDP(_ source: SocketAddress, _ target: SocketAddress, _ count: Int, _ room: MemoryPieces?) -> Int? {
        datagram.storeBig16(source.port, 0)
        datagram.storeBig16(target.port, 2)
        datagram.storeBig16(UInt16(truncatingIfNeeded: count + 8), 4)
        datagram.storeBig16(0, 6)
        var sum = PacketWriter.pseudoSum(source.address, target.address, ParsedPacket.Transport.udp, count + 8)
        sum.add(datagram, count + 8)
        datagram.storeBig16(sum.value == 0 ? 0xFFFF : sum.value, 6)
        return sendDatagram(source.address, target.address, ParsedPacket.Transport.udp, count + 8, room: room)
    }
}
