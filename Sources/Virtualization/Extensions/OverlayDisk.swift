import DiskStorage
import Foundation

/// Beyond Apple's API: a disk that keeps what is written in a file of its own and reads everything else from a base: a raw image or
/// another overlay, which is never written and may be shared by many. The file's format is in Documentation/overlay.md.
public final class OverlayDiskAttachment: VZStorageDeviceAttachment {
    public let url: URL
    public let isReadOnly: Bool
    private let disk: OverlayDisk
    private let machines = DiskClaim()

    /// Makes an overlay file, empty to begin with; there must be no file of that name.
    /// - Parameters:
    ///   - baseIsOverlay: whether `base` is an overlay; a raw image otherwise. It is never guessed: a guest could write what looks
    ///     like one.
    ///   - size: of the disk, in bytes, a multiple of 512 and no less than the base's; nil for the base's.
    public static func create(at url: URL, base: URL, baseIsOverlay: Bool = false, size: UInt64? = nil) throws {
        do throws(DiskError) { try OverlayDisk.create(path: url.path, base: base.path, baseIsOverlay: baseIsOverlay, size: size) } catch { throw Self.error(error, url) }
    }
    /// Opens and checks an overlay and its bases. A base that has changed since the overlay was made is an error.
    public init(url: URL, readOnly: Bool = false, synchronizationMode: VZDiskSynchronizationMode = .full) throws {
        self.url = url
        isReadOnly = readOnly
        do throws(DiskError) {
            disk = try OverlayDisk(path: url.path, readOnly: readOnly, synchronization: synchronizationMode == .none ? .none : .full)
        } catch { throw Self.error(error, url) }
        super.init()
    }
    /// Bytes of the disk, and of those that the overlay has itself, in pieces of 64 KiB.
    public var usage: (size: UInt64, own: UInt64) { (disk.byteCount, UInt64(disk.usage.own) * 65536) }
    public var base: URL { URL(fileURLWithPath: disk.basePath) }
    /// Writes what the overlay has into its base, which nothing may be using; the overlay is of no use then, and so is every other one
    /// over that base. A raw image grows when the overlay is larger.
    /// - Parameter progress: from 0 to 1, on this thread.
    public func merge(progress: (Double) -> Void = { _ in }) throws {
        try claim()
        defer { release() }
        do throws(DiskError) { try disk.merge(progress: progress) } catch { throw Self.error(error, url) }
    }
    /// What the overlay has gets another name, on the same file system, and the overlay goes on as a new one over that. Nothing may be
    /// using it.
    public func branch(keeping kept: URL) throws {
        try claim()
        defer { release() }
        do throws(DiskError) {
            let branch = try OverlayBranch(disk, frozenPath: kept.path)
            branch.switchOver()
            try branch.complete()
        } catch { throw Self.error(error, url) }
    }
    /// Takes over what its base, which must be an overlay, has, and stands on the base's base then; the disk's contents are the same.
    /// Nothing may be writing to either.
    /// - Parameter progress: from 0 to 1, on this thread.
    public func absorbBase(progress: (Double) -> Void = { _ in }) throws {
        do throws(DiskError) { try disk.absorbBase(progress: progress) } catch { throw Self.error(error, url) }
    }
    /// Makes the disk larger, with zeroes behind its old end. Nothing may be using it; attachments that exist still have the old disk.
    /// - Parameters:
    ///   - size: in bytes, a multiple of 512, no less than it has, at most 16 TiB.
    ///   - progress: from 0 to 1, on this thread.
    public func grow(to size: UInt64, progress: (Double) -> Void = { _ in }) throws {
        try claim()
        defer { release() }
        do throws(DiskError) { try disk.grow(to: size, progress: progress) } catch { throw Self.error(error, url) }
    }
    /// Writes the disk's contents to a raw image, a new file with holes where there are zeroes.
    /// - Parameter progress: from 0 to 1, on this thread.
    public func copy(to image: URL, progress: (Double) -> Void = { _ in }) throws {
        do throws(DiskError) { try RawDisk.write(disk, to: image.path, progress: progress) } catch { throw Self.error(error, image) }
    }
    private static func error(_ error: DiskError, _ url: URL) -> any Error {
        if error.kind != .system { return VZError(.invalidDiskImage, reason: error.description.capitalizedFirst + ".") }
        return NSError(
            domain: NSPOSIXErrorDomain, code: Int(error.errno), userInfo: [NSLocalizedDescriptionKey: error.description.capitalizedFirst, NSFilePathErrorKey: url.path])
    }

    override func validate() throws {}
    override func makeStorage(_ queue: DispatchQueue) throws -> any BlockStorage { disk }
    override func claim() throws { try machines.claim(isShared: isReadOnly, "overlay \(url.path)") { try disk.lock() } }
    override func release() { machines.release { disk.unlock() } }
}
