import Foundation

/// A virtio file system (virtiofs): directories of the host, mounted in the guest by tag.
open class VZVirtioFileSystemDeviceConfiguration: VZDirectorySharingDeviceConfiguration {
    /// What the guest mounts: `mount -t virtiofs TAG /mnt`.
    open var tag: String
    open var share: VZDirectoryShare?
    /// See `areFilesMapped`.
    var mapsFiles = false

    public init(tag: String) {
        self.tag = tag
        super.init()
    }
    /// Not empty and under 36 bytes of UTF-8.
    open class func validateTag(_ tag: String) throws {
        guard !tag.isEmpty else { throw VZError.configuration("The file system device tag is empty.") }
        guard tag.utf8.count < 36 else { throw VZError.configuration("The file system device tag is longer than 35 bytes.") }
    }
    open class var macOSGuestAutomountTag: String { "com.apple.virtio-fs.automount" }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioFileSystemDeviceConfiguration(tag: tag)
        copy.share = share
        copy.mapsFiles = mapsFiles
        return copy
    }
}
