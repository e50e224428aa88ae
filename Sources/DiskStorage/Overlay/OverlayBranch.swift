import Glibc
import LinuxSystem
import Synchronization

/// A disk's contents of one instant get a name, and the disk goes on in a new layer above them.
///
/// Before the instant, everything is made that could fail. At the instant, `switchOver` changes the layers. Afterwards, `seal` makes
/// the lower layer permanent and gives the new one the disk's name; until then a crash leaves the disk as it was at its last flush.
package final class OverlayBranch: Sendable {
    let layer: OverlayLayer
    private let disk: OverlayDisk
    private let frozenPath: String
    private let temporary: String
    private let isSealed = Mutex(false)

    /// Where the next layer of a disk is until it has the disk's name.
    static func temporary(for path: String) -> String { path + ".next" }
    /// - Parameter frozenPath: a name for what the disk has now, on the same file system; there must be no such file.
    package init(_ disk: OverlayDisk, frozenPath: String) throws(DiskError) {
        let path = disk.path
        temporary = Self.temporary(for: path)
        self.frozenPath = frozenPath
        self.disk = disk
        guard link(path, frozenPath) == 0 else {
            throw DiskError(.system, "cannot name \(path) \(frozenPath): \(String(cString: strerror(errno)).lowercased())", errno: errno)
        }
        do throws(DiskError) { layer = try OverlayLayer(over: disk.top, basePath: frozenPath, temporary: temporary) } catch {
            unlink(frozenPath)
            throw error
        }
    }
    /// Nothing has happened, if the disk has not switched over.
    package func abandon() {
        unlink(temporary)
        unlink(frozenPath)
    }
    /// What was written so far becomes permanent, so that little is left to do later. Any time.
    package func prepare() { _ = disk.flush() }
    /// At the instant: no request may be under way.
    package func switchOver() { disk.switchOver(self) }
    /// Returns 0 or an errno; may be tried again. May wait.
    package func seal() -> Int32 {
        isSealed.withLock { isSealed in
            if isSealed { return 0 }
            let result = layer.adopt()
            if result != 0 { return result }
            guard HostDirectory.synchronize(of: frozenPath), rename(temporary, layer.path) == 0, HostDirectory.synchronize(of: layer.path) else { return errno }
            isSealed = true
            return 0
        }
    }
    /// As `seal`; throws what went wrong.
    package func complete() throws(DiskError) {
        let result = disk.seal()
        guard result == 0 else { throw DiskError(.system, "cannot make the snapshot of \(layer.path) permanent: \(String(cString: strerror(result)).lowercased())", errno: result) }
    }
}
