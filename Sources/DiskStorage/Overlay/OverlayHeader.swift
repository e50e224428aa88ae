import CLinux
import Glibc

/// The first page of an overlay. Documentation/overlay.md; numbers are little-endian.
struct OverlayHeader: Equatable {
    static let magic: [UInt8] = Array("VZOVERL\n".utf8)
    static let version: UInt32 = 1
    static let size = 4096
    static let clusterSize = 65536
    /// 16 TiB: the table of such a disk has 1 GiB.
    static let largestDisk: UInt64 = 1 << 44
    private static let pathOffset = 64
    private static let longestPath = 3072

    /// Bytes of the disk.
    var diskSize: UInt64
    /// What the base was when the overlay was made: another one would make nonsense of both.
    var baseSize: UInt64
    var baseModified: UInt64
    /// Whether the base is an overlay itself.
    var baseIsOverlay: Bool
    var basePath: String

    var clusterCount: Int { Int((diskSize + UInt64(Self.clusterSize) - 1) / UInt64(Self.clusterSize)) }
    /// The table behind the header: 32 bits for each cluster.
    var tableSize: Int { clusterCount * 4 }
    /// Where cluster 1 of the data begins.
    var dataOffset: Int { (Self.size + tableSize + Self.clusterSize - 1) / Self.clusterSize * Self.clusterSize }

    init(diskSize: UInt64, baseSize: UInt64, baseModified: UInt64, baseIsOverlay: Bool, basePath: String) {
        self.diskSize = diskSize
        self.baseSize = baseSize
        self.baseModified = baseModified
        self.baseIsOverlay = baseIsOverlay
        self.basePath = basePath
    }
    var bytes: [UInt8]? {
        func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
        let path = Array(basePath.utf8)
        guard path.count <= Self.longestPath else { return nil }
        var bytes = Self.magic + little(Self.version) + little(UInt32(Self.clusterSize)) + little(diskSize) + little(baseSize) + little(baseModified)
        bytes += little(UInt32(baseIsOverlay ? 1 : 0)) + little(UInt32(path.count))
        bytes += [UInt8](repeating: 0, count: Self.pathOffset - bytes.count) + path
        bytes += [UInt8](repeating: 0, count: Self.size - 4 - bytes.count)
        return bytes + little(Self.checksum(bytes))
    }
    /// A sentence's end when the bytes are no header.
    init(_ bytes: [UInt8], _ path: String) throws(DiskError) {
        func number<T: FixedWidthInteger>(_ offset: Int, _: T.Type = T.self) -> T {
            (0..<MemoryLayout<T>.size).reduce(0 as T) { $0 | T(truncatingIfNeeded: bytes[offset + $1]) << T(8 * $1) }
        }
        guard bytes.count == Self.size, Array(bytes[0..<8]) == Self.magic else { throw DiskError(.notADisk, "\(path) is no overlay") }
        let version: UInt32 = number(8)
        guard version <= Self.version else { throw DiskError(.notADisk, "the overlay \(path) has format version \(version); this program reads up to \(Self.version)") }
        let count = Int(number(44, UInt32.self))
        guard version > 0, number(Self.size - 4) == Self.checksum(Array(bytes[..<(Self.size - 4)])), number(12, UInt32.self) == UInt32(Self.clusterSize),
            count <= Self.longestPath
        else { throw DiskError(.notADisk, "the header of the overlay \(path) is damaged") }
        self.init(
            diskSize: number(16), baseSize: number(24), baseModified: number(32), baseIsOverlay: number(40, UInt32.self) & 1 != 0,
            basePath: String(decoding: bytes[Self.pathOffset..<Self.pathOffset + count], as: UTF8.self))
        guard diskSize > 0, diskSize % 512 == 0, diskSize <= Self.largestDisk else { throw DiskError(.notADisk, "the header of the overlay \(path) makes no sense") }
    }
    /// FNV-1a, 32 bits: against accidents.
    private static func checksum(_ bytes: [UInt8]) -> UInt32 { bytes.reduce(0x811C_9DC5) { ($0 ^ UInt32($1)) &* 0x0100_0193 } }

    /// When a file's bytes changed last, in nanoseconds since 1970.
    static func modified(_ info: stat) -> UInt64 { UInt64(bitPattern: Int64(info.st_mtim.tv_sec)) &* 1_000_000_000 &+ UInt64(info.st_mtim.tv_nsec) }
}
