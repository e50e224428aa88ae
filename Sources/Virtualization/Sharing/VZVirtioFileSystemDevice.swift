import FileServer
import Foundation

/// A file system device of a machine.
open class VZVirtioFileSystemDevice: VZDirectorySharingDevice {
    public let tag: String
    /// Can be replaced while the machine runs, on its queue: what the guest has of the old one is stale. A share whose directory
    /// is not there leaves the device with nothing to show.
    open var share: VZDirectoryShare? { didSet { show() } }
    /// Of the running machine.
    var server: FileServer?
    let mapsFiles: Bool

    init(tag: String, share: VZDirectoryShare?, mapsFiles: Bool) {
        self.mapsFiles = mapsFiles
        self.tag = tag
        self.share = share
        super.init()
    }
    private func show() {
        guard let server else { return }
        do { try server.replace(share?.translated() ?? .empty) } catch { try? server.replace(.empty) }
    }
}

extension VZDirectoryShare {
    /// What the file server is to show.
    func translated() -> FileShare {
        switch self {
        case let single as VZSingleDirectoryShare: return FileShare(.single(single.directory.translated()))
        case let several as VZMultipleDirectoryShare: return FileShare(.several(several.directories.mapValues { $0.translated() }))
        default: return .empty
        }
    }
    /// Throws for a directory that is not there, or a name that is none.
    func validate() throws {
        switch self {
        case let single as VZSingleDirectoryShare: try single.directory.validate()
        case let several as VZMultipleDirectoryShare:
            for (name, directory) in several.directories {
                try VZMultipleDirectoryShare.validateName(name)
                try directory.validate()
            }
        default: throw VZError.configuration("A directory share of type \(type(of: self)) is not supported.")
        }
    }
}
extension VZSharedDirectory {
    fileprivate func translated() -> FileShare.Directory { FileShare.Directory(path: url.path, isReadOnly: isReadOnly) }
    fileprivate func validate() throws {
        var isDirectory: ObjCBool = false
        guard url.isFileURL, FileManager.default.fileExists(atPath: url.path, isDirectory: &isDirectory), isDirectory.boolValue else {
            throw VZError.configuration("The shared directory \(url.path) is not a directory.")
        }
        guard access(url.path, R_OK | X_OK) == 0 else {
            throw VZError.configuration("The shared directory \(url.path) cannot be read: \(String(cString: strerror(errno))).")
        }
    }
}
