import CLinux
import Glibc

/// Files that the guest reads and writes where the host has them. `fuse_setupmapping_in` and `fuse_removemapping_in`.
extension FileServer {
    /// Smaller files go through the guest's page cache: one request for all of the file, and no piece of the window is taken.
    static let smallestDirectFile = 1 << 20

    func setUpMapping(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(40)
        guard let window = window() else { throw FuseError(ENOSYS) }
        let (offset, length, flags) = (request.argument(8, as: UInt64.self), request.argument(16, as: UInt64.self), request.argument(24, as: UInt64.self))
        let piece = UInt64(DirectWindow.pieceSize)
        let place: UInt64 = request.argument(32)
        guard length == piece, offset % piece == 0, place % piece == 0, offset < 1 << 62, place < UInt64(window.size) else { throw FuseError(EINVAL) }
        try map(request.node, Int64(offset), isWritable: flags & 1 != 0, at: Int(place / piece), in: window)
        return .reply
    }
    private func map(_ id: UInt64, _ offset: Int64, isWritable: Bool, at index: Int, in window: DirectWindow) throws(FuseError) {
        let (node, descriptor) = try isWritable ? writable(id) : descriptor(id)
        guard node.isRegular else { throw FuseError(EINVAL) }
        let fd = clinux_open(descriptor.path, (isWritable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK, 0)
        guard fd >= 0 else { throw FuseError(errno) }
        let file = Descriptor(fd)
        let status = try NodeTable.status(file)
        if isWritable { try fillHoles(file, offset, status) }
        guard window.place(.init(node: id, descriptor: file, offset: offset, isWritable: isWritable, status: status), at: index) else { throw FuseError(ENOSPC) }
    }
    /// A write to mapped memory cannot say that the disk is full: what may be written has its place on the disk before.
    private func fillHoles(_ file: Descriptor, _ offset: Int64, _ status: stat) throws(FuseError) {
        let end = min(Int64(status.st_size), offset + Int64(DirectWindow.pieceSize))
        guard offset < end else { return }
        let hole = lseek(file.fd, off_t(offset), 4)  // SEEK_HOLE
        guard hole >= 0, hole < Int(end) else { return }
        let result = clinux_fallocate(file.fd, 1, offset, end - offset)  // FALLOC_FL_KEEP_SIZE
        // Not every file system can; those that can say when there is no room.
        if result != 0, errno == ENOSPC || errno == EDQUOT { throw FuseError(errno) }
    }
    /// After the guest has changed a file's size.
    func sizeChanged(_ descriptor: Descriptor) throws(FuseError) {
        guard let window = window() else { return }
        window.becameLonger(descriptor)
        let status = try NodeTable.status(descriptor)
        for piece in window.writablePieces(of: Node.Key(status)) { try fillHoles(piece.descriptor, piece.offset, status) }
    }
    func removeMapping(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(4)
        guard let window = window() else { throw FuseError(ENOSYS) }
        let count = Int(request.argument(0, as: UInt32.self))
        guard count <= (request.count - Fuse.requestHeader - 4) / 16 else { throw FuseError(EINVAL) }
        let piece = UInt64(DirectWindow.pieceSize)
        for entry in 0..<count {
            let (place, length) = (request.argument(4 + 16 * entry, as: UInt64.self), request.argument(12 + 16 * entry, as: UInt64.self))
            guard place % piece == 0, length % piece == 0, place < UInt64(window.size), length <= UInt64(window.size) - place else { throw FuseError(EINVAL) }
            for index in Int(place / piece)..<Int((place + length) / piece) { window.remove(at: index) }
        }
        return .reply
    }
    /// Whether the guest is to map this file, for fuse_attr.flags. Not one whose set-user-ID bit a write may have to take away: nobody
    /// would hear of that.
    func attributeFlags(_ status: stat) -> UInt32 {
        guard window() != nil, status.st_mode & FileKind.mask == FileKind.regular, status.st_size >= Self.smallestDirectFile, status.st_mode & 0o6000 == 0
        else { return 0 }
        return Fuse.directAttribute
    }

    // MARK: states

    /// What is mapped where.
    func placements() -> [FileServerImage.Placement]? {
        window()?.list().map { index, piece in .init(place: index, file: piece.node, offset: piece.offset, isWritable: piece.isWritable) }
    }
    func restore(_ placements: [FileServerImage.Placement]) {
        guard let window = window() else { return }
        let last = Int64(1) << 62
        for placement in placements where placement.place >= 0 && placement.offset >= 0 && placement.offset < last {
            guard placement.offset % Int64(DirectWindow.pieceSize) == 0 else { continue }
            try? map(placement.file, placement.offset, isWritable: placement.isWritable, at: placement.place, in: window)
        }
    }
}
