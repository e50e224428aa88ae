import DiskStorage
import Foundation

/// Where a storage device's bytes are. Use a subclass.
open class VZStorageDeviceAttachment: NSObject {
    override init() { super.init() }

    /// Throws what keeps it from being used.
    func validate() throws { throw VZError.configuration("A storage device attachment of type \(type(of: self)) is not supported yet.") }
    /// The disk, for one run of a machine whose queue this is.
    func makeStorage(_ queue: DispatchQueue) throws -> any BlockStorage { throw VZError.configuration("\(type(of: self)) is not supported yet.") }
    /// Claims the disk for a machine that starts, and lets go of it when it has ended.
    func claim() throws {}
    func release() {}
}
