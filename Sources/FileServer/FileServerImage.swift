import CLinux
import Glibc

/// What a file server holds of its guest's: which files it knows by which numbers, and which it has open.
package struct FileServerImage: Equatable, Sendable, Codable {
    package struct File: Equatable, Sendable, Codable {
        package var number: UInt64
        /// The directory it was found in; nil for the root of a shared directory.
        package var parent: UInt64?
        package var name: [UInt8]
        /// Which shared directory it is in.
        package var share: Int
        package var inode: UInt64
        package var kind: UInt32
        package var lookups: UInt64
        /// User and group, where they are kept in memory.
        package var owner: [UInt32]?
    }
    package struct Handle: Equatable, Sendable, Codable {
        package var number: UInt64
        package var file: UInt64
        package var flags: Int32
        package var offset: Int64
    }
    /// A piece of a file that the guest has mapped.
    package struct Placement: Equatable, Sendable, Codable {
        package var place: Int
        package var file: UInt64
        package var offset: Int64
        package var isWritable: Bool
    }
    package var files: [File]
    package var nextFile: UInt64
    package var handles: [Handle]
    package var nextHandle: UInt64
    /// nil without a window.
    package var placements: [Placement]?
}

extension FileServer {
    /// While no request is under way. What has no name any more is left out: it cannot be found again.
    package func makeImage() -> FileServerImage {
        let shares = shares
        let (files, nextFile, byKey) = nodes.list { share in shares.firstIndex { $0 === share } }
        let (open, nextHandle) = handles.list()
        let handles = open.compactMap { number, file -> FileServerImage.Handle? in
            guard let status = try? NodeTable.status(file.descriptor), let node = byKey[Node.Key(status)] else { return nil }
            return .init(
                number: number, file: node, flags: clinux_fcntl_getfl(file.descriptor.fd) & (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC),
                offset: Int64(lseek(file.descriptor.fd, 0, SEEK_CUR)))
        }
        return FileServerImage(files: files, nextFile: nextFile, handles: handles, nextHandle: nextHandle, placements: placements())
    }
    /// Knows again what it knew, as far as it is still where it was; the rest is stale for the guest.
    package func restore(_ image: FileServerImage) {
        nodes.restore(image, shares)
        var files: [UInt64: OpenFile] = [:]
        for handle in image.handles {
            guard let node = try? nodes.node(handle.file), node.isPlain, let descriptor = try? nodes.descriptor(node) else { continue }
            let isWritable = handle.flags & O_ACCMODE != O_RDONLY
            guard !isWritable || !node.share.isReadOnly && node.isRegular else { continue }
            let wanted = node.isDirectory ? O_RDONLY | O_DIRECTORY : handle.flags & (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC)
            func open() -> Int32 { clinux_open(descriptor.path, wanted | O_CLOEXEC | O_NONBLOCK, 0) }
            var fd = open()
            if fd < 0, errno == EACCES, !isRoot, !node.share.isReadOnly {
                fd = (try? rights.lend(of: owner.user, descriptor, open)) ?? -1
            }
            guard fd >= 0 else { continue }
            if node.isDirectory { lseek(fd, off_t(handle.offset), SEEK_SET) }
            files[handle.number] = OpenFile(Descriptor(fd), isWritable: isWritable)
        }
        handles.restore(files, next: image.nextHandle)
        restore(image.placements ?? [])
    }
}
