import CLinux
import Glibc
import HostNetwork
import LinuxSystem

struct EchoKey: Hashable {
    let isV4: Bool
    let identifier: UInt16
}

/// The pings of one program in the guest. Through a ping socket where the host lets this user have one
/// (net.ipv4.ping_group_range), else a raw one; where neither may be had, only the router answers.
final class EchoFlow: Endpoint {
    private static let lifetime: UInt64 = 30_000_000_000
    let key: EchoKey
    private let isRaw: Bool
    private let source: IPAddress

    init?(_ key: EchoKey, source: IPAddress, id: UInt64) {
        let family = key.isV4 ? AF_INET : AF_INET6
        let transport = key.isV4 ? Int32(IPPROTO_ICMP) : Int32(IPPROTO_ICMPV6)
        let flags = Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
        var fd = socket(family, Int32(SOCK_DGRAM.rawValue) | flags, transport)
        isRaw = fd < 0
        if fd < 0 { fd = socket(family, Int32(SOCK_RAW.rawValue) | flags, transport) }
        guard fd >= 0 else { return nil }
        self.key = key
        self.source = source
        super.init(id: id, fd: fd)
    }
    var requestKind: UInt8 { key.isV4 ? 8 : 128 }
    private var replyKind: UInt8 { key.isV4 ? 0 : 129 }

    func send(_ stack: Stack, _ count: Int, to target: IPAddress) {
        stack.setDeadline(self, stack.now() + Self.lifetime)
        stack.parts[0] = iovec(iov_base: stack.datagram, iov_len: count)
        _ = HostSocket.send(fd, stack.parts, 1, to: SocketAddress(target, 0), family: key.isV4 ? AF_INET : AF_INET6)
    }
    override func produce(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        while let (count, from) = HostSocket.receive(fd, stack.datagram, 65536) {
            var (start, count) = (0, count)
            // A raw socket gives the IPv4 header, too, and everybody's messages.
            if isRaw, key.isV4 {
                guard count >= 20 else { continue }
                start = Int(UnsafeRawPointer(stack.datagram).byte(0) & 15) * 4
                count -= start
                guard count >= 8 else { continue }
                memmove(stack.datagram, stack.datagram + start, count)
            }
            let bytes = UnsafeRawPointer(stack.datagram)
            guard count >= 8, bytes.byte(0) == replyKind, !isRaw || bytes.big16(4) == key.identifier else { continue }
            stack.datagram.storeBig16(key.identifier, 4)
            return stack.sendEchoReply(stack.guestView(SocketAddress(from.address, 0)).address, source, count, room)
        }
        return nil
    }
    override func expired(_ now: UInt64, _ stack: Stack) {
        stack.echoes[key] = nil
        stack.erase(self)
    }
}

extension Stack {
    func inputEcho(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        let isV4 = packet.source.isV4
        guard packet.headerCount >= 8, packet.header.byte(0) == (isV4 ? 8 : 128), packet.header.byte(1) == 0, packet.count <= 65000 else { return }
        let identifier = packet.header.big16(4)
        frame.copy(from: packet.offset, limit: packet.count, to: datagram)
        if packet.target == Addresses.router4 || packet.target == Addresses.router6 || packet.target == Addresses.routerLink {
            datagram.storeByte(isV4 ? 0 : 129, 0)
            _ = sendEchoReply(packet.target, packet.source, packet.count, nil)
            return
        }
        guard let target = hostTarget(SocketAddress(packet.target, 0)) else { return sendUnreachable(packet, port: false) }
        let key = EchoKey(isV4: isV4, identifier: identifier)
        if echoes[key] == nil {
            guard echoes.count < 256, let flow = EchoFlow(key, source: packet.source, id: takeID()) else { return }
            echoes[key] = flow
            insert(flow)
        }
        // The kernel fills in the checksum of a ping socket; a raw one wants it right.
        datagram.storeBig16(0, 2)
        if isV4 {
            var sum = InternetChecksum()
            sum.add(datagram, packet.count)
            datagram.storeBig16(sum.value, 2)
        }
        echoes[key]?.send(self, packet.count, to: target.address)
    }
    func sendEchoReply(_ source: IPAddress, _ target: IPAddress, _ count: Int, _ room: MemoryPieces?) -> Int? {
        let transport = target.isV4 ? ParsedPacket.Transport.icmp : ParsedPacket.Transport.icmp6
        datagram.storeBig16(0, 2)
        var sum = target.isV4 ? InternetChecksum() : PacketWriter.pseudoSum(source, target, transport, count)
        sum.add(datagram, count)
        datagram.storeBig16(sum.value, 2)
        return sendDatagram(source, target, transport, count, room: room)
    }
}
