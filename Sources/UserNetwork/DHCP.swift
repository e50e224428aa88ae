import Glibc
import LinuxSystem

/// The router's DHCP server: each port has one address. RFC 2131.
extension Stack {
    private enum Message {
        static let discover: UInt8 = 1
        static let offer: UInt8 = 2
        static let request: UInt8 = 3
        static let acknowledge: UInt8 = 5
        static let refuse: UInt8 = 6
        static let inform: UInt8 = 8
    }
    private static let leaseSeconds: UInt32 = 86400

    func inputDHCP(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        let count = packet.count - 8
        guard (240...1500).contains(count) else { return }
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            if let base = buffer.baseAddress { initialized = frame.copy(from: packet.offset + 8, limit: count, to: base) }
        }
        guard bytes.count == count, bytes[0] == 1, bytes[236..<240] == [99, 130, 83, 99] else { return }
        let options = Self.options(bytes[240...])
        switch options[53]?.first {
        case Message.discover: answerDHCP(bytes, Message.offer)
        case Message.inform: answerDHCP(bytes, Message.acknowledge)
        case Message.request:
            // Asked for by option, or, when it renews, by its own address field.
            let wanted = options[50].flatMap(Self.address) ?? Self.address(bytes[12..<16])
            let server = options[54].flatMap(Self.address)
            guard server == nil || server == Addresses.router4 else { return }
            answerDHCP(bytes, wanted == nil || wanted == guest || wanted == .unspecified ? Message.acknowledge : Message.refuse)
        default: break
        }
    }
    private static func options(_ bytes: ArraySlice<UInt8>) -> [UInt8: ArraySlice<UInt8>] {
        var options: [UInt8: ArraySlice<UInt8>] = [:]
        var at = bytes.startIndex
        while at < bytes.endIndex, bytes[at] != 255 {
            if bytes[at] == 0 {
                at += 1
                continue
            }
            guard at + 1 < bytes.endIndex, at + 2 + Int(bytes[at + 1]) <= bytes.endIndex else { break }
            options[bytes[at]] = bytes[at + 2..<at + 2 + Int(bytes[at + 1])]
            at += 2 + Int(bytes[at + 1])
        }
        return options
    }
    private static func address(_ bytes: ArraySlice<UInt8>) -> IPAddress? {
        guard bytes.count == 4 else { return nil }
        return IPAddress(v4: bytes.reduce(0) { $0 << 8 | UInt32($1) })
    }

    private func answerDHCP(_ question: [UInt8], _ kind: UInt8) {
        if kind == Message.acknowledge { isGuestKnown = true }
        func bytes(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * $0)) } }
        let router = bytes(Addresses.router4.v4)
        var answer: [UInt8] = [2, 1, 6, 0] + question[4..<8] + [0, 0] + question[10..<12] + question[12..<16]
        answer += (kind == Message.refuse ? [0, 0, 0, 0] : bytes(guest.v4)) + router + [0, 0, 0, 0]
        answer += question[28..<44] + [UInt8](repeating: 0, count: 192) + [99, 130, 83, 99]
        answer += [53, 1, kind, 54, 4] + router
        if kind != Message.refuse {
            resolver.refresh()
            answer += [1, 4] + bytes(Addresses.mask4) + [3, 4] + router + [6, 4] + router + [26, 2, 5, 0xDC]
            answer += [51, 4] + bytes(Self.leaseSeconds)
            if let domain = resolver.searchDomains.first?.utf8, (1...200).contains(domain.count) {
                answer += [15, UInt8(domain.count)] + domain
            }
        }
        answer.append(255)
        answer += [UInt8](repeating: 0, count: max(0, 300 - answer.count))
        answer.withUnsafeBytes { raw in
            if let base = raw.baseAddress { memcpy(datagram + 8, base, raw.count) }
        }
        let everybody = IPAddress(255, 255, 255, 255)
        _ = sendUDP(SocketAddress(Addresses.router4, 67), SocketAddress(everybody, 68), answer.count, nil)
    }
}
