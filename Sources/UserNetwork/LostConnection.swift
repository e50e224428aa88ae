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
        [UInt8](unsafeUninitializedCapacity: Self.size) { buffer, count in
            guard let base = UnsafeMutableRawPointer(buffer.baseAddress) else { return }
            for (offset, end) in [(0, key.guest), (18, key.remote)] {
                base.storeBig64(end.address.high, offset)
                base.storeBig64(end.address.low, offset + 8)
                base.storeBig16(end.port, offset + 16)
            }
            base.storeBig32(next.value, 36)
            base.storeBig32(expected.value, 40)
            count = Self.size
        }
    }
    init?(_ bytes: [UInt8]) {
        guard bytes.count == Self.size, let read = bytes.withUnsafeBytes({ $0.baseAddress.map(Self.init(at:)) }) else { return nil }
        // A packet has addresses of one kind.
        guard read.key.guest.address.isV4 == read.key.remote.address.isV4 else { return nil }
        self = read
    }
    private init(at bytes: UnsafeRawPointer) {
        func end(_ offset: Int) -> SocketAddress { SocketAddress(IPAddress(high: bytes.big64(offset), low: bytes.big64(offset + 8)), bytes.big16(offset + 16)) }
        key = TCPKey(guest: end(0), remote: end(18))
        next = SequenceNumber(value: bytes.big32(36))
        expected = SequenceNumber(value: bytes.big32(40))
    }
}
