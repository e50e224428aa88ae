import DiskStorage
import Foundation

/// A raw disk image file; its size is a multiple of 512 bytes.
open class VZDiskImageStorageDeviceAttachment: VZStorageDeviceAttachment {
    public let url: URL
    public let isReadOnly: Bool
    public let cachingMode: VZDiskImageCachingMode
    public let synchronizationMode: VZDiskImageSynchronizationMode
    let disk: RawDisk
    private let machines = DiskClaim()

    public convenience init(url: URL, readOnly: Bool) throws {
        try self.init(url: url, readOnly: readOnly, cachingMode: .automatic, synchronizationMode: .full)
    }
    /// Opens and checks the file: throws `VZError.invalidDiskImage` for what is not a disk image, a POSIX error for what
    /// cannot be opened.
    public init(
        url: URL, readOnly: Bool, cachingMode: VZDiskImageCachingMode, synchronizationMode: VZDiskImageSynchronizationMode
    ) throws {
        self.url = url
        isReadOnly = readOnly
        self.cachingMode = cachingMode
        self.synchronizationMode = synchronizationMode
        guard url.isFileURL else { throw VZError(.invalidDiskImage, reason: "\(url) is not a file URL.") }
        do throws(DiskError) {
            disk = try RawDisk(
                path: url.path, readOnly: readOnly, caching: cachingMode == .uncached ? .uncached : .cached,
                synchronization: synchronizationMode == .none ? .none : .full)
        } catch {
            if error.kind == .notADisk { throw VZError(.invalidDiskImage, reason: error.description + ".") }
            throw NSError(
                domain: NSPOSIXErrorDomain, code: Int(error.errno),
                userInfo: [NSLocalizedDescriptionKey: error.description, NSFilePathErrorKey: url.path])
        }
        super.init()
    }

    override func validate() throws {}
    override func makeStorage(_ queue: DispatchQueue) throws -> any BlockStorage { disk }
    /// Claims the image for a machine that starts.
    override func claim() throws { try machines.claim(isShared: isReadOnly, "disk image \(url.path)") { try disk.lock(path: url.path) } }
    override func release() { machines.release { disk.unlock() } }
}
