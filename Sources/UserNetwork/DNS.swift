import Glibc
import LinuxSystem

/// The router's name server: names of the network's own it answers itself, all else it passes to the host's name servers.
extension Stack {
    /// True when the question was for a name of ours, and is answered.
    func answerName(_ packet: ParsedPacket, _ frame: MemoryPieces, _ source: SocketAddress) -> Bool {
        let count = packet.count - 8
        guard (17...512).contains(count) else { return false }
        let question = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            if let base = buffer.baseAddress { initialized = frame.copy(from: packet.offset + 8, limit: count, to: base) }
        }
        guard let answer = NameQuestion(question)?.answer(options.names, reachesHost: options.reachesHost) else { return false }
        answer.withUnsafeBytes { bytes in
            if let base = bytes.baseAddress { memcpy(datagram + 8, base, bytes.count) }
        }
        _ = sendUDP(SocketAddress(Addresses.router4, 53), source, answer.count, nil)
        return true
    }
    /// The server to ask now: another one when the last question has had no answer for over a second.
    func serverForQuestion() -> IPAddress {
        resolver.refresh()
        let time = now()
        if resolver.waitingSince != 0, time > resolver.waitingSince + 1_500_000_000 {
            resolver.skip()
            resolver.waitingSince = 0
        }
        if resolver.waitingSince == 0 { resolver.waitingSince = time }
        return resolver.current
    }
    func questionWasAnswered() { resolver.waitingSince = 0 }
}

/// A question for one name. RFC 1035 § 4.1.
struct NameQuestion {
    private let bytes: [UInt8]
    private let end: Int
    let name: String
    let type: UInt16

    /// Nil for anything but one plain question.
    init?(_ bytes: [UInt8]) {
        guard bytes.count >= 17, bytes[2] & 0xF8 == 0, bytes[4] == 0, bytes[5] == 1 else { return nil }
        var labels: [String] = []
        var at = 12
        while at < bytes.count, bytes[at] != 0 {
            let length = Int(bytes[at])
            guard length < 64, at + 1 + length < bytes.count else { return nil }
            labels.append(String(decoding: bytes[at + 1..<at + 1 + length], as: UTF8.self).lowercased())
            at += 1 + length
        }
        guard at + 5 <= bytes.count else { return nil }
        self.bytes = bytes
        name = labels.joined(separator: ".")
        type = UInt16(bytes[at + 1]) << 8 | UInt16(bytes[at + 2])
        end = at + 5
    }

    /// The whole answer, or nil when the name is none of these.
    func answer(_ names: [String: IPAddress], reachesHost: Bool) -> [UInt8]? {
        guard let address = names[name] else { return nil }
        let matches = reachesHost && (type == 1 && address.isV4 || type == 28 && !address.isV4)
        // An answer, authoritative, recursion is available.
        var answer = [bytes[0], bytes[1], 0x84 | bytes[2] & 1, 0x80, 0, 1, 0, matches ? 1 : 0, 0, 0, 0, 0] + bytes[12..<end]
        guard matches else { return answer }
        answer += [0xC0, 12, 0, UInt8(type), 0, 1, 0, 0, 0, 60, 0, address.isV4 ? 4 : 16]
        answer += [UInt8](unsafeUninitializedCapacity: 16) { buffer, initialized in
            guard let base = buffer.baseAddress else { return }
            address.store(to: UnsafeMutableRawPointer(base))
            initialized = address.isV4 ? 4 : 16
        }
        return answer
    }
}
