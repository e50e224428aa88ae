import Glibc
import HostNetwork

/// An IP packet from the guest: its headers are read once into our own memory and checked there, its payload stays where it is.
struct ParsedPacket {
    /// As far as headers may reach: Ethernet 14, IP 60, TCP 60.
    static let headerCapacity = 134

    let source: IPAddress
    let target: IPAddress
    let transport: UInt8
    let hopLimit: UInt8
    /// The transport header, in our memory; `headerCount` bytes of it are there.
    let header: UnsafeRawPointer
    let headerCount: Int
    /// Where the transport header starts in the frame, and how many bytes it has with its payload.
    let offset: Int
    let count: Int
    /// Of an IPv4 fragment: identification, offset in bytes, whether more follow.
    let fragment: (identification: UInt16, offset: Int, more: Bool)?

    enum Transport {
        static let icmp: UInt8 = 1
        static let tcp: UInt8 = 6
        static let udp: UInt8 = 17
        static let icmp6: UInt8 = 58
    }

    /// - Parameters:
    ///   - bytes: the frame's first `available` bytes, behind the Ethernet header.
    ///   - frameCount: bytes of the whole frame.
    init?(v4 bytes: UnsafeRawPointer, available: Int, frameCount: Int) {
        guard available >= 20, bytes.byte(0) >> 4 == 4 else { return nil }
        let length = Int(bytes.byte(0) & 15) * 4
        let total = Int(bytes.big16(2))
        guard length >= 20, length <= available, total >= length, total <= frameCount - 14 else { return nil }
        source = IPAddress(at: bytes + 12, v4: true)
        target = IPAddress(at: bytes + 16, v4: true)
        transport = bytes.byte(9)
        hopLimit = bytes.byte(8)
        header = bytes + length
        headerCount = min(available, total) - length
        offset = 14 + length
        count = total - length
        let word = bytes.big16(6)
        fragment = word & 0x3FFF == 0 ? nil : (bytes.big16(4), Int(word & 0x1FFF) * 8, word & 0x2000 != 0)
    }
    init?(v6 bytes: UnsafeRawPointer, available: Int, frameCount: Int) {
        guard available >= 40, bytes.byte(0) >> 4 == 6 else { return nil }
        let length = Int(bytes.big16(4))
        guard length <= frameCount - 54 else { return nil }
        source = IPAddress(at: bytes + 8, v4: false)
        target = IPAddress(at: bytes + 24, v4: false)
        transport = bytes.byte(6)
        hopLimit = bytes.byte(7)
        header = bytes + 40
        headerCount = min(available - 40, length)
        offset = 54
        count = length
        fragment = nil
    }
}
