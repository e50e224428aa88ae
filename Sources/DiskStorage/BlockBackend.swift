import Glibc

/// Where a disk's bytes come from. Called on queue workers, several at a time; returns 0 or an errno.
package protocol BlockBackend: AnyObject, Sendable {
    /// A multiple of 512.
    var byteCount: UInt64 { get }
    var isReadOnly: Bool { get }
    /// `vectors` may be changed by the call.
    func read(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32
    func write(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32
    func flush() -> Int32
    func discard(at offset: UInt64, count: UInt64) -> Int32
    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) -> Int32
}
