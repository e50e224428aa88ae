import Glibc
import LinuxSystem

/// A disk's bytes: reached by calls that wait (`BlockBackend`) or through channels (`ChannelBackend`).
package protocol BlockStorage: AnyObject, Sendable {
    /// A multiple of the block size.
    var byteCount: UInt64 { get }
    var isReadOnly: Bool { get }
    /// Smallest piece that can be read or written, in bytes: a power of two from 512 to 4096.
    var blockSize: Int { get }
    /// A machine with the disk is powered on: throws, in a sentence, what keeps it from being used. May wait.
    func prepare() throws
    /// The machine is off: what is only in this process goes to where it belongs. May wait.
    func finish()
}
extension BlockStorage {
    package var blockSize: Int { 512 }
    package func prepare() throws {}
    package func finish() {}
}

/// A disk whose calls wait until they are done. Called on queue workers, several at a time; they return 0 or an errno.
package protocol BlockBackend: BlockStorage {
    /// `vectors` may be changed by the call.
    func read(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32
    /// Reads `total` bytes into `vectors`, if that needs no waiting for the medium.
    func readPromptly(at offset: UInt64, _ vectors: UnsafePointer<iovec>, _ count: Int, _ total: Int) -> FileTransfer.PromptRead
    /// Whether such a call waits for the medium as a rule; for reads, whatever is in memory.
    func waits(_ kind: DiskOperation.Kind) -> Bool
    func write(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32
    func flush() -> Int32
    func discard(at offset: UInt64, count: UInt64) -> Int32
    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) -> Int32
}
extension BlockBackend {
    package func readPromptly(at offset: UInt64, _ vectors: UnsafePointer<iovec>, _ count: Int, _ total: Int) -> FileTransfer.PromptRead { .unknown }
    package func waits(_ kind: DiskOperation.Kind) -> Bool { false }
}
