import Foundation

/// One directory as the root of the mount.
open class VZSingleDirectoryShare: VZDirectoryShare {
    public let directory: VZSharedDirectory
    public init(directory: VZSharedDirectory) {
        self.directory = directory
        super.init()
    }
}
