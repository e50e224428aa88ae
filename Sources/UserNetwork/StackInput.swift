import Glibc
import HostNetwork
import LinuxSystem

/// Frames from the guest: what they are and where they go.
extension Stack {
    /// Takes a frame. Returns its target address when other guests may want it.
    func input(_ frame: MemoryPieces, _ size: Int) -> UInt64? {
        let available = frame.copy(from: 0, limit: 14 + ParsedPacket.headerCapacity, to: headers)
        let bytes = UnsafeRawPointer(headers)
        guard available >= 14 else { return nil }
        let source = UInt64(bytes.big16(6)) << 32 | UInt64(bytes.big32(8))
        // Only the card's own address: as on the Mac.
        guard source == hardware else { return nil }
        let target = UInt64(bytes.big16(0)) << 32 | UInt64(bytes.big32(2))
        let isGroup = target >> 40 & 1 != 0
        if isGroup || target == Addresses.routerHardware {
            switch bytes.big16(12) {
            case 0x0806: neighbourQuestion4(bytes + 14, available - 14)
            case 0x0800:
                if let packet = ParsedPacket(v4: bytes + 14, available: available - 14, frameCount: size) { input(packet, frame) }
            case 0x86DD:
                if let packet = ParsedPacket(v6: bytes + 14, available: available - 14, frameCount: size) { input(packet, frame) }
            default: break
            }
        }
        return target == Addresses.routerHardware ? nil : target
    }

    private func input(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        guard packet.fragment != nil else { return dispatch(packet, frame) }
        guard let whole = reassembler.add(packet, frame) else { return }
        whole.withUnsafeBytes { raw in
            guard let base = raw.baseAddress else { return }
            var piece = iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: raw.count)
            withUnsafePointer(to: &piece) { pieces in
                dispatch(ParsedPacket(packet, reassembled: base, count: raw.count), MemoryPieces(pieces: pieces, count: 1))
            }
        }
    }
    private func dispatch(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        if packet.source == guest { isGuestKnown = true }
        switch packet.transport {
        case ParsedPacket.Transport.tcp: inputTCP(packet, frame)
        case ParsedPacket.Transport.udp: inputUDP(packet, frame)
        case ParsedPacket.Transport.icmp where packet.source.isV4: inputEcho(packet, frame)
        case ParsedPacket.Transport.icmp6 where !packet.source.isV4: inputICMP6(packet, frame)
        default: break
        }
    }

    /// Where on the host something for `target` goes; nil when the guest may not go there.
    func hostTarget(_ target: SocketAddress) -> SocketAddress? {
        let address = target.address
        if address == Addresses.router4 { return options.reachesHost ? SocketAddress(.loopback4, target.port) : nil }
        if address == Addresses.router6 || address == Addresses.routerLink {
            return options.reachesHost ? SocketAddress(.loopback6, target.port) : nil
        }
        guard !address.isLoopback, !address.isMulticast, !address.isLinkLocal, !address.isReserved,
            !(address.isV4 && address.v4 & Addresses.mask4 == Addresses.router4.v4 & Addresses.mask4),
            address.high != Addresses.router6.high, !options.blocked.contains(where: { $0.contains(address) })
        else { return nil }
        return target
    }
    /// How the guest knows an address of the host's.
    func guestView(_ source: SocketAddress) -> SocketAddress {
        guard source.address.isLoopback else { return source }
        return SocketAddress(source.address.isV4 ? Addresses.router4 : Addresses.router6, source.port)
    }

    // MARK: ARP, RFC 826

    private func neighbourQuestion4(_ bytes: UnsafeRawPointer, _ count: Int) {
        guard count >= 28, bytes.big32(0) == 0x0001_0800, bytes.big32(4) == 0x0604_0001 else { return }
        if IPAddress(at: bytes + 14, v4: true) == guest { isGuestKnown = true }
        guard IPAddress(at: bytes + 24, v4: true) == Addresses.router4 else { return }
        emit(
            [UInt8](unsafeUninitializedCapacity: 42) { buffer, initialized in
                guard let base = buffer.baseAddress else { return }
                let answer = UnsafeMutableRawPointer(base)
                answer.storeHardware(hardware, 0)
                answer.storeHardware(Addresses.routerHardware, 6)
                answer.storeBig16(0x0806, 12)
                answer.storeBig32(0x0001_0800, 14)
                answer.storeBig32(0x0604_0002, 18)
                answer.storeHardware(Addresses.routerHardware, 22)
                Addresses.router4.store(to: answer + 28)
                answer.storeHardware(hardware, 32)
                memcpy(answer + 38, bytes + 14, 4)
                initialized = 42
            })
    }
}

extension ParsedPacket {
    /// A packet whose fragments are together; `bytes` is its transport header and payload.
    init(_ first: ParsedPacket, reassembled bytes: UnsafeRawPointer, count: Int) {
        source = first.source
        target = first.target
        transport = first.transport
        hopLimit = first.hopLimit
        header = bytes
        headerCount = count
        offset = 0
        self.count = count
        fragment = nil
    }
}
extension UnsafeMutableRawPointer {
    func storeHardware(_ value: UInt64, _ at: Int) {
        storeBig16(UInt16(truncatingIfNeeded: value >> 32), at)
        storeBig32(UInt32(truncatingIfNeeded: value), at + 2)
    }
}
