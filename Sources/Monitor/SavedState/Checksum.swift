/// CRC-32C (Castagnoli), as in RFC 3720 § 12.1.
package struct Checksum: Sendable {
    private var value: UInt32 = .max
    private static let table: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in value & 1 != 0 ? value >> 1 ^ 0x82F6_3B78 : value >> 1 }
    }
    package init() {}
    package mutating func update(_ bytes: UnsafeRawBufferPointer) {
        var crc = value
        Self.table.withUnsafeBufferPointer { table in for byte in bytes { crc = crc >> 8 ^ table[Int(UInt8(truncatingIfNeeded: crc) ^ byte)] } }
        value = crc
    }
    package var result: UInt32 { ~value }
    package static func of(_ bytes: [UInt8]) -> UInt32 {
        var sum = Checksum()
        bytes.withUnsafeBytes { sum.update($0) }
        return sum.result
    }
}
