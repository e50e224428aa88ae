import Glibc
import LinuxSystem

/// A request in our own memory, but for the data of a write.
struct FuseRequest {
    let bytes: UnsafeRawPointer
    let count: Int
    /// The whole request where it lies in guest memory, and its size.
    let pieces: MemoryPieces
    let total: Int

    var operation: UInt32 { load(4) }
    var unique: UInt64 { load(8) }
    var node: UInt64 { load(16) }
    var user: UInt32 { load(24) }
    var group: UInt32 { load(28) }

    /// Only for offsets that were checked with `require`.
    func load<T: FixedWidthInteger>(_ at: Int, as: T.Type = T.self) -> T { T(littleEndian: bytes.loadUnaligned(fromByteOffset: at, as: T.self)) }
    /// An argument, `at` bytes behind the header.
    func argument<T: FixedWidthInteger>(_ at: Int, as: T.Type = T.self) -> T { load(Fuse.requestHeader + at) }
    /// There are at least this many bytes of arguments.
    func require(_ arguments: Int) throws(FuseError) { guard count >= Fuse.requestHeader + arguments else { throw FuseError(EINVAL) } }

    /// A text that ends with a NUL, `at` bytes behind the header; and where the next one starts.
    func text(_ at: Int) throws(FuseError) -> (text: [CChar], next: Int) {
        let start = Fuse.requestHeader + at
        guard start < count, let end = memchr(bytes + start, 0, count - start) else { throw FuseError(EINVAL) }
        let length = UnsafeRawPointer(end) - (bytes + start)
        let text = [CChar](unsafeUninitializedCapacity: length + 1) { buffer, initialized in
            if let base = buffer.baseAddress { memcpy(base, bytes + start, length + 1) }
            initialized = length + 1
        }
        return (text, at + length + 1)
    }
    /// A name of a directory entry: one component, and none that leads elsewhere.
    func name(_ at: Int) throws(FuseError) -> (name: [CChar], next: Int) {
        let (text, next) = try text(at)
        try Self.check(text)
        return (text, next)
    }
    static func check(_ name: [CChar]) throws(FuseError) {
        let dot = CChar(UInt8(ascii: "."))
        guard name.count > 1, !name.contains(CChar(UInt8(ascii: "/"))), name != [dot, 0], name != [dot, dot, 0] else { throw FuseError(EINVAL) }
        guard name.count <= 256 else { throw FuseError(ENAMETOOLONG) }
    }
}

/// The reply that is being made, in our own memory.
final class FuseReply {
    static let capacity = 256 << 10
    private let bytes = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
    private(set) var count = 0
    deinit { bytes.deallocate() }

    var start: UnsafeRawPointer { UnsafeRawPointer(bytes) }
    func clear() { count = 0 }
    func put<T: FixedWidthInteger>(_ value: T) {
        guard count + MemoryLayout<T>.size <= Self.capacity else { return }
        bytes.storeBytes(of: value.littleEndian, toByteOffset: count, as: T.self)
        count += MemoryLayout<T>.size
    }
    func put(_ source: UnsafeRawPointer, _ size: Int) {
        guard count + size <= Self.capacity else { return }
        memcpy(bytes + count, source, size)
        count += size
    }
    func zeroes(_ size: Int) {
        guard count + size <= Self.capacity else { return }
        memset(bytes + count, 0, size)
        count += size
    }
    /// Room for `size` bytes that a system call fills in.
    func room(_ size: Int) -> UnsafeMutableRawPointer? { count + size <= Self.capacity ? bytes + count : nil }
    func advance(_ size: Int) { count += size }
    func shrink(to size: Int) { count = min(count, size) }
}
