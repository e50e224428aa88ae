/// The ones' complement sum of RFC 1071, over bytes that may come in pieces.
package struct InternetChecksum {
    private var sum: UInt64 = 0
    private var isOdd = false

    package init() {}

    package mutating func add(_ bytes: UnsafeRawPointer, _ count: Int) {
        var (at, left) = (bytes, count)
        if isOdd, left > 0 {
            add(big: UInt16(at.load(as: UInt8.self)))
            (at, left, isOdd) = (at + 1, left - 1, false)
        }
        var wide: UInt64 = 0
        while left >= 8 {
            // Two halves of 32 bits: the carries of a 64 KiB frame fit above them.
            let word = at.loadUnaligned(as: UInt64.self)
            wide &+= (word & 0xFFFF_FFFF) &+ (word >> 32)
            (at, left) = (at + 8, left - 8)
        }
        while left >= 2 {
            wide &+= UInt64(at.loadUnaligned(as: UInt16.self))
            (at, left) = (at + 2, left - 2)
        }
        add(native: wide)
        if left == 1 {
            add(big: UInt16(at.load(as: UInt8.self)) << 8)
            isOdd = true
        }
    }
    /// A number of 16 bits, as it is read.
    package mutating func add(big value: UInt16) { sum &+= UInt64(value) }
    /// Words as they lie in memory, summed: ones' complement sums do not care for byte order but at the end.
    private mutating func add(native words: UInt64) { sum &+= UInt64(UInt16(Self.fold(words)).byteSwapped) }

    private static func fold(_ value: UInt64) -> UInt64 {
        var value = value
        while value >> 16 != 0 { value = (value & 0xFFFF) &+ (value >> 16) }
        return value
    }
    /// The sum itself, as a pseudo header's goes into the field.
    package var partial: UInt16 { UInt16(Self.fold(sum)) }
    package var value: UInt16 { ~partial }
}
