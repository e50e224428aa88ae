import HostNetwork

/// A connection that a saved machine had: what is needed to tell the guest, when it goes on elsewhere, that it is over. Otherwise a
/// program that waits for an answer would do so for ever.
struct LostConnection: Equatable {
    let key: TCPKey
    /// The next numbers from us to the guest and from the guest to us.
    let next: SequenceNumber
    let expected: SequenceNumber

    init(_ connection: TCPConnection) { (key, next, expected) = (connection.key, connection.highest, connection.expected) }

    /// Twice an address (16 bytes) and a port, then the two numbers; in network order.
    private static let size = 44
    var bytes: [UInt8] {
        func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian, Array.init) }
        func end(_ address: SocketAddress) -> [UInt8] { big(address.address.high) + big(address.address.low) + big(address.port) }
        return end(key.guest) + end(key.remote) + big(next.value) + big(expected.value)
    }
    init?(_ bytes: [UInt8]) {
        guard bytes.count == Self.size else { return nil }
        func big<T: FixedWidthInteger>(_ offset: Int, _: T.Type = T.self) -> T {
            (0..<MemoryLayout<T>.size).reduce(0 as T) { $0 << 8 | T(truncatingIfNeeded: bytes[offset + $1]) }
        }
        func end(_ offset: Int) -> SocketAddress { SocketAddress(IPAddress(high: big(offset), low: big(offset + 8)), big(offset + 16)) }
        key = TCPKey(guest: end(0), remote: end(18))
        next = SequenceNumber(value: big(36))
        expected = SequenceNumber(value: big(40))
        // A packet has addresses of one kind.
        guard key.guest.address.isV4 == key.remote.address.isV4 else { return nil }
    }
}
