import DiskStorage
import Foundation

/// A block device of the host.
open class VZDiskBlockDeviceStorageDeviceAttachment: VZStorageDeviceAttachment {
    /// Open when a machine starts.
    public let fileHandle: FileHandle
    public let isReadOnly: Bool
    public let synchronizationMode: VZDiskSynchronizationMode
    private let disk: RawDisk

    /// Throws `VZError.invalidDiskImage` for a handle that is no block device's, or not open for what is wanted.
    public init(fileHandle: FileHandle, readOnly: Bool, synchronizationMode: VZDiskSynchronizationMode) throws {
        self.fileHandle = fileHandle
        isReadOnly = readOnly
        self.synchronizationMode = synchronizationMode
        do throws(DiskError) {
            disk = try RawDisk(
                blockDevice: fileHandle.fileDescriptor, readOnly: readOnly, synchronization: synchronizationMode == .none ? .none : .full)
        } catch { throw VZError(.invalidDiskImage, reason: error.description.capitalizedFirst + ".") }
        super.init()
    }
    override func validate() throws {
        var info = stat()
        guard fstat(fileHandle.fileDescriptor, &info) == 0 else {
            throw VZError.configuration("The storage device attachment is invalid. The file handle of the block device is closed.")
        }
    }
    override func makeStorage(_ queue: DispatchQueue) throws -> any BlockStorage { disk }
}

extension String {
    var capitalizedFirst: String { prefix(1).uppercased() + dropFirst() }
}
