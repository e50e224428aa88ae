import Glibc
import LinuxSystem
import Synchronization

/// A disk of overlays: a layer that takes what is written, over others and a raw image, which are never written. Any thread.
///
/// Data goes to its place at once; the table that says where it is reaches the file when the guest flushes, after the data. So what
/// a guest has flushed is there after a crash, and what it has not is as it was before: never something else.
package final class OverlayDisk: BlockBackend, @unchecked Sendable {  // `top` changes only while no request is under way (`OverlayBranch`)
    private(set) nonisolated(unsafe) var top: OverlayLayer
    /// What keeps a new layer from being found after a crash; a flush sees to it first.
    private let pending = Mutex<OverlayBranch?>(nil)

    /// Makes an overlay of `base`, empty to begin with. The file must not exist.
    /// - Parameter size: of the disk, in bytes; nil for the base's. A larger disk has zeroes behind the base's end.
    package static func create(path: String, base: String, baseIsOverlay: Bool, size: UInt64? = nil) throws(DiskError) {
        try OverlayLayer.create(path: path, base: base, baseIsOverlay: baseIsOverlay, size: size)
    }
    package init(path: String, readOnly: Bool, synchronization: RawDisk.Synchronization = .full) throws(DiskError) {
        top = try OverlayLayer(path: path, readOnly: readOnly, synchronization: synchronization)
    }

    package var byteCount: UInt64 { top.byteCount }
    package var isReadOnly: Bool { top.isReadOnly }
    package var path: String { top.path }
    package var basePath: String { top.basePath }
    /// Clusters of the disk, and how many of them the top layer has itself.
    package var usage: (clusters: Int, own: Int) { top.usage }
    /// Claims the overlay for a running machine, and its bases for reading.
    package func lock() throws(DiskError) {
        try top.lock()
        // What a killed process left of a layer that it was about to begin.
        if !isReadOnly, pending.withLock({ $0 == nil }) { unlink(OverlayBranch.temporary(for: path)) }
    }
    package func unlock() { top.unlock() }

    package func read(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 { top.read(at: offset, vectors, count) }
    package func readPromptly(at offset: UInt64, _ vectors: UnsafePointer<iovec>, _ count: Int, _ total: Int) -> FileTransfer.PromptRead {
        top.readPromptly(at: offset, vectors, count, total)
    }
    package func waits(_ kind: DiskOperation.Kind) -> Bool { top.waits(kind) }
    package func write(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 { top.write(at: offset, vectors, count) }
    package func discard(at offset: UInt64, count: UInt64) -> Int32 { top.discard(at: offset, count: count) }
    package func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) -> Int32 { top.writeZeroes(at: offset, count: count, mayUnmap: mayUnmap) }
    package func flush() -> Int32 {
        let sealed = seal()
        return sealed == 0 ? top.flush() : sealed
    }
    package func finish() {
        _ = seal()
        top.finish()
    }

    /// Writes what the top layer has into its base, which nothing else may use; the layer is of no use then.
    package func merge(progress: (Double) -> Void) throws(DiskError) { try top.merge(progress: progress) }
    /// Takes over what the base, an overlay, has, and stands on the base's base then. Nothing else may use either.
    package func absorbBase(progress: (Double) -> Void) throws(DiskError) { try top.absorbBase(progress: progress) }
    /// The disk becomes larger; opened anew, it is. Nothing else may use the file.
    package func grow(to size: UInt64, progress: (Double) -> Void) throws(DiskError) { try top.grow(to: size, progress: progress) }

    // MARK: branching

    /// Only while no request is under way.
    func switchOver(_ branch: OverlayBranch) {
        top = branch.layer
        pending.withLock { $0 = branch }
    }
    func seal() -> Int32 {
        guard let branch = pending.withLock({ $0 }) else { return 0 }
        let result = branch.seal()
        if result == 0 { pending.withLock { if $0 === branch { $0 = nil } } }
        return result
    }
}
