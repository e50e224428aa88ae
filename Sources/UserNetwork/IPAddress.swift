import CLinux
import Glibc

/// An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d.
package struct IPAddress: Hashable, Sendable, CustomStringConvertible {
    /// The first and last eight bytes, as numbers.
    package let high: UInt64
    package let low: UInt64

    package init(high: UInt64, low: UInt64) { (self.high, self.low) = (high, low) }
    package init(v4 value: UInt32) { self.init(high: 0, low: 0xFFFF_0000_0000 | UInt64(value)) }
    package init(_ a: UInt8, _ b: UInt8, _ c: UInt8, _ d: UInt8) {
        self.init(v4: UInt32(a) << 24 | UInt32(b) << 16 | UInt32(c) << 8 | UInt32(d))
    }
    /// Reads text as `inet_pton` does; nil when it is no address.
    package init?(_ text: some StringProtocol) {
        var four = in_addr()
        var six = in6_addr()
        if inet_pton(AF_INET, String(text), &four) == 1 {
            self.init(v4: UInt32(bigEndian: four.s_addr))
        } else if inet_pton(AF_INET6, String(text), &six) == 1 {
            self = withUnsafeBytes(of: &six) { IPAddress(reading: $0.baseAddress, v4: false) ?? .unspecified }
        } else {
            return nil
        }
    }
    private init?(reading bytes: UnsafeRawPointer?, v4: Bool) {
        guard let bytes else { return nil }
        self.init(at: bytes, v4: v4)
    }
    /// Four or sixteen bytes in network order.
    init(at bytes: UnsafeRawPointer, v4: Bool) {
        if v4 { self.init(v4: bytes.big32(0)) } else { self.init(high: bytes.big64(0), low: bytes.big64(8)) }
    }
    func store(to bytes: UnsafeMutableRawPointer) {
        if isV4 {
            bytes.storeBig32(v4, 0)
        } else {
            bytes.storeBig64(high, 0)
            bytes.storeBig64(low, 8)
        }
    }

    package var isV4: Bool { high == 0 && low >> 32 == 0xFFFF }
    package var v4: UInt32 { UInt32(truncatingIfNeeded: low) }
    package static let unspecified = IPAddress(v4: 0)
    package static let loopback4 = IPAddress(127, 0, 0, 1)
    package static let loopback6 = IPAddress(high: 0, low: 1)

    package var isLoopback: Bool { isV4 ? v4 >> 24 == 127 : self == .loopback6 }
    package var isMulticast: Bool { isV4 ? v4 >> 28 == 14 : high >> 56 == 0xFF }
    /// Addresses of one wire: 169.254.0.0/16 (there clouds keep their machines' credentials) and fe80::/10.
    package var isLinkLocal: Bool { isV4 ? v4 >> 16 == 0xA9FE : high >> 54 == 0x3FA }
    /// Nothing that a packet may be sent to: 0.0.0.0/8, 240.0.0.0/4, ::/96 and other ways to write IPv4 addresses.
    package var isReserved: Bool { isV4 ? v4 >> 24 == 0 || v4 >> 28 == 15 : high == 0 }

    package var description: String {
        if isV4 { return "\(v4 >> 24).\(v4 >> 16 & 255).\(v4 >> 8 & 255).\(v4 & 255)" }
        var bytes = in6_addr()
        withUnsafeMutableBytes(of: &bytes) { if let base = $0.baseAddress { store(to: base) } }
        var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
        inet_ntop(AF_INET6, &bytes, &text, socklen_t(text.count))
        return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

/// An address and a port.
package struct SocketAddress: Hashable, Sendable, CustomStringConvertible {
    package var address: IPAddress
    package var port: UInt16
    package init(_ address: IPAddress, _ port: UInt16) { (self.address, self.port) = (address, port) }
    package var description: String { address.isV4 ? "\(address):\(port)" : "[\(address)]:\(port)" }

    /// As the system calls want it, for a socket of this family.
    func withSystem<R>(family: Int32, _ body: (UnsafeRawPointer, UInt32) -> R) -> R {
        if family == AF_INET {
            var system = sockaddr_in()
            system.sin_family = sa_family_t(AF_INET)
            system.sin_port = port.bigEndian
            system.sin_addr.s_addr = address.v4.bigEndian
            return body(&system, UInt32(MemoryLayout<sockaddr_in>.size))
        }
        var system = sockaddr_in6()
        system.sin6_family = sa_family_t(AF_INET6)
        system.sin6_port = port.bigEndian
        withUnsafeMutableBytes(of: &system.sin6_addr) { raw in
            raw.storeBytes(of: address.high.bigEndian, toByteOffset: 0, as: UInt64.self)
            raw.storeBytes(of: address.low.bigEndian, toByteOffset: 8, as: UInt64.self)
        }
        return body(&system, UInt32(MemoryLayout<sockaddr_in6>.size))
    }
    /// What a system call wrote.
    init(system: sockaddr_in6) {
        let isV4 = system.sin6_family == sa_family_t(AF_INET)
        self = withUnsafeBytes(of: system) { raw in
            guard let base = raw.baseAddress else { return SocketAddress(.unspecified, 0) }
            return SocketAddress(IPAddress(at: base + (isV4 ? 4 : 8), v4: isV4), base.big16(2))
        }
    }
}

/// Addresses that share their first bits.
package struct AddressBlock: Hashable, Sendable, CustomStringConvertible {
    package let base: IPAddress
    /// 0...32 of an IPv4 address, 0...128 of an IPv6 address.
    package let prefix: Int

    /// `192.168.0.0/16`, `fd00::/8`, or one address. Nil when it is neither.
    package init?(_ text: String) {
        let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        guard let first = parts.first, let base = IPAddress(first) else { return nil }
        let most = base.isV4 ? 32 : 128
        guard let prefix = parts.count == 1 ? most : Int(parts[1]), (0...most).contains(prefix) else { return nil }
        (self.base, self.prefix) = (base, prefix)
    }
    package func contains(_ address: IPAddress) -> Bool {
        guard address.isV4 == base.isV4 else { return false }
        let bits = base.isV4 ? prefix + 96 : prefix
        let high = bits >= 64 ? UInt64.max : ~(UInt64.max >> UInt64(bits))
        let low = bits <= 64 ? 0 : bits == 128 ? UInt64.max : ~(UInt64.max >> UInt64(bits - 64))
        return (address.high ^ base.high) & high == 0 && (address.low ^ base.low) & low == 0
    }
    package var description: String { "\(base)/\(prefix)" }
}

/// Numbers in network order.
extension UnsafeRawPointer {
    func byte(_ at: Int) -> UInt8 { load(fromByteOffset: at, as: UInt8.self) }
    func big16(_ at: Int) -> UInt16 { UInt16(bigEndian: loadUnaligned(fromByteOffset: at, as: UInt16.self)) }
    func big32(_ at: Int) -> UInt32 { UInt32(bigEndian: loadUnaligned(fromByteOffset: at, as: UInt32.self)) }
    func big64(_ at: Int) -> UInt64 { UInt64(bigEndian: loadUnaligned(fromByteOffset: at, as: UInt64.self)) }
}
extension UnsafeMutableRawPointer {
    func storeByte(_ value: UInt8, _ at: Int) { storeBytes(of: value, toByteOffset: at, as: UInt8.self) }
    func storeBig16(_ value: UInt16, _ at: Int) { storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt16.self) }
    func storeBig32(_ value: UInt32, _ at: Int) { storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt32.self) }
    func storeBig64(_ value: UInt64, _ at: Int) { storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt64.self) }
}
