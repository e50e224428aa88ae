import CLinux

/// CRC-32C (Castagnoli), as in RFC 3720 § 12.1.
package struct Checksum: Sendable {
    private var value: UInt32 = .max
    package init() {}
    package mutating func update(_ bytes: UnsafeRawBufferPointer) {
        guard let base = bytes.baseAddress else { return }
        value = clinux_crc32c(value, base, bytes.count)
    }
    package var result: UInt32 { ~value }
    package static func of(_ bytes: [UInt8]) -> UInt32 {
        var sum = Checksum()
        bytes.withUnsafeBytes { sum.update($0) }
        return sum.result
    }
}
