import Glibc

/// The checksum of one piece of a saved state's memory: CRC-32C of its pages that are not all zeroes, one after the other, each behind
/// its number in the memory (8 bytes, little-endian).
struct MemorySum: Sendable {
    /// Bytes that one sum is for; the memory's last piece may be shorter.
    static let pieceSize = 1 << 20
    static let pageSize = 4096
    private var sum = Checksum()

    /// The next page in use, which lies at `offset` in the memory.
    mutating func add(_ page: UnsafeRawPointer, at offset: Int) {
        withUnsafeBytes(of: UInt64(offset / Self.pageSize).littleEndian) { sum.update($0) }
        sum.update(UnsafeRawBufferPointer(start: page, count: Self.pageSize))
    }
    var result: UInt32 { sum.result }

    /// Of the piece at `offset`; `bytes` are whole pages.
    static func of(_ bytes: UnsafeRawBufferPointer, at offset: Int) -> UInt32 {
        var sum = Self()
        if let base = bytes.baseAddress {
            for page in stride(from: 0, to: bytes.count, by: pageSize) where !isZero(base + page) { sum.add(base + page, at: offset + page) }
        }
        return sum.result
    }
    static func isZero(_ page: UnsafeRawPointer) -> Bool {
        if page.load(as: UInt64.self) != 0 || page.load(fromByteOffset: 2048, as: UInt64.self) != 0 { return false }
        return memcmp(page, page + 8, pageSize - 8) == 0
    }
    static func count(memory: Int) -> Int { (memory + pieceSize - 1) / pieceSize }
}
