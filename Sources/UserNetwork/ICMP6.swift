import CLinux
import Glibc
import HostNetwork
import LinuxSystem

/// Neighbour and router discovery (RFC 4861), and echo.
extension Stack {
    private enum Kind {
        static let echo: UInt8 = 128
        static let routerSolicitation: UInt8 = 133
        static let neighbourSolicitation: UInt8 = 135
    }

    func inputICMP6(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        guard packet.headerCount >= 8 else { return }
        switch packet.header.byte(0) {
        case Kind.echo: inputEcho(packet, frame)
        case Kind.routerSolicitation where packet.hopLimit == 255: advertiseRouter(packet.source)
        case Kind.neighbourSolicitation where packet.hopLimit == 255 && packet.headerCount >= 24: answerNeighbour(packet)
        default: break
        }
    }

    private func answerNeighbour(_ packet: ParsedPacket) {
        let wanted = IPAddress(at: packet.header + 8, v4: false)
        guard wanted == Addresses.router6 || wanted == Addresses.routerLink else { return }
        // Nobody asks from :: but for an address of its own, which this is not.
        guard packet.source.high != 0 || packet.source.low != 0 else { return }
        datagram.storeBig32(0x8800_0000, 0)
        datagram.storeBig32(0xE000_0000, 4)  // a router, asked, override
        wanted.store(to: datagram + 8)
        datagram.storeBig16(0x0201, 24)  // option: our Ethernet address
        datagram.storeHardware(Addresses.routerHardware, 26)
        sendICMP6(wanted, packet.source, 32)
    }
    /// One prefix, from which the guest makes its address. We are its way out only where the host has one.
    private func advertiseRouter(_ target: IPAddress) {
        let target = target.high == 0 ? Addresses.everyNode : target
        memset(datagram, 0, 64)
        datagram.storeBig32(0x8600_0000, 0)
        datagram.storeByte(64, 4)
        datagram.storeBig16(Self.hostHasIPv6() ? 9000 : 0, 6)
        datagram.storeBig16(0x0101, 16)
        datagram.storeHardware(Addresses.routerHardware, 18)
        datagram.storeBig32(0x0304_40C0, 24)  // prefix of 64 bits, on the link, for addresses
        datagram.storeBig32(86400, 28)
        datagram.storeBig32(86400, 32)
        datagram.storeBig64(Addresses.router6.high, 40)
        datagram.storeBig16(0x0501, 56)
        datagram.storeBig32(1500, 60)
        sendICMP6(Addresses.routerLink, target, 64)
    }
    private func sendICMP6(_ source: IPAddress, _ target: IPAddress, _ count: Int) {
        datagram.storeBig16(0, 2)
        var sum = PacketWriter.pseudoSum(source, target, ParsedPacket.Transport.icmp6, count)
        sum.add(datagram, count)
        datagram.storeBig16(sum.value, 2)
        sendDatagram(source, target, ParsedPacket.Transport.icmp6, count, hopLimit: 255)
    }
    /// Whether the host has a route to the world: connecting a datagram socket sends nothing.
    private static func hostHasIPv6() -> Bool {
        let fd = HostSocket.open(SOCK_DGRAM)
        guard fd >= 0 else { return false }
        defer { close(fd) }
        return HostSocket.connect(fd, SocketAddress(IPAddress(high: 0x2001_4860_4860_0000, low: 0x8888), 53))
    }

    /// Destination unreachable, quoting the guest's packet (RFC 792, RFC 4443).
    func sendUnreachable(_ packet: ParsedPacket, port: Bool) {
        let isV4 = packet.source.isV4
        let quoted = min(packet.offset - 14 + min(packet.headerCount, isV4 ? 8 : 64), 14 + ParsedPacket.headerCapacity - 14)
        guard packet.offset >= 14 else { return }
        datagram.storeBig32(isV4 ? (port ? 0x0303_0000 : 0x0301_0000) : (port ? 0x0104_0000 : 0x0100_0000), 0)
        datagram.storeBig32(0, 4)
        memcpy(datagram + 8, headers + 14, quoted)
        let router = isV4 ? Addresses.router4 : Addresses.router6
        if isV4 {
            var sum = InternetChecksum()
            sum.add(datagram, 8 + quoted)
            datagram.storeBig16(sum.value, 2)
            sendDatagram(router, packet.source, ParsedPacket.Transport.icmp, 8 + quoted)
        } else {
            sendICMP6(router, packet.source, 8 + quoted)
        }
    }
}
