import CLinux
import Glibc

/// Making, naming and removing files.
extension FileServer {
    /// Opens what was just made and tells the guest of it.
    private func enterMade(
        _ request: FuseRequest, _ parent: Node, _ directory: Descriptor, _ name: [CChar], mode: UInt32? = nil, _ reply: FuseReply
    ) throws(FuseError) -> Outcome {
        let made = try NodeTable.open(directory, name)
        own(made, request, in: directory, mode: mode)
        try enter(made, parent, name, reply)
        return .reply
    }
    func makeSymbolicLink(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        let (parent, directory) = try writable(request.node)
        let (name, next) = try request.name(0)
        try check(symlinkat(try request.text(next).text, directory.fd, name))
        return try enterMade(request, parent, directory, name, reply)
    }
    func makeDirectory(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(8)
        let (parent, directory) = try writable(request.node)
        let name = try request.name(8).name
        let mode = request.argument(0, as: UInt32.self) & 0o7777
        try check(mkdirat(directory.fd, name, mode))
        return try enterMade(request, parent, directory, name, mode: mode, reply)
    }
    /// Regular files, pipes and sockets, and what a layered file system puts in the place of what was removed, a device of number 0. Other
    /// devices of the host are nothing for a guest to make.
    func makeNode(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(16)
        let (parent, directory) = try writable(request.node)
        let name = try request.name(16).name
        let mode: UInt32 = request.argument(0)
        let isWhiteout = mode & FileKind.mask == FileKind.characterDevice && request.argument(4, as: UInt32.self) == 0
        guard isWhiteout || [FileKind.regular, FileKind.pipe, FileKind.socket].contains(mode & FileKind.mask) else { throw FuseError(EPERM) }
        try check(mknodat(directory.fd, name, mode, 0))
        return try enterMade(request, parent, directory, name, mode: mode & 0o7777, reply)
    }
    func link(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(8)
        let (parent, directory) = try writable(request.node)
        let (node, old) = try writable(request.argument(0))
        guard node.share === parent.share else { throw FuseError(EXDEV) }
        let name = try request.name(8).name
        // A symbolic link itself cannot be reached through /proc, but by AT_EMPTY_PATH where that is allowed.
        let result =
            node.isSymbolicLink
            ? linkat(old.fd, "", directory.fd, name, Self.emptyPath) : linkat(AT_FDCWD, old.path, directory.fd, name, AT_SYMLINK_FOLLOW)
        try check(result)
        nodes.moved(directory, to: parent, name)
        try enter(try NodeTable.open(directory, name), parent, name, reply)
        return .reply
    }
    func remove(_ request: FuseRequest, flags: Int32) throws(FuseError) -> Outcome {
        let directory = try writable(request.node).1
        let name = try request.name(0).name
        nodes.pin(directory, name)
        try check(unlinkat(directory.fd, name, flags))
        return .reply
    }
    func rename(_ request: FuseRequest, at: Int, flags: UInt32) throws(FuseError) -> Outcome {
        try request.require(at)
        let (source, from) = try writable(request.node)
        let (target, to) = try writable(request.argument(0))
        guard source.share === target.share else { throw FuseError(EXDEV) }
        let (old, next) = try request.name(at)
        let new = try request.name(next).name
        guard flags & ~7 == 0 else { throw FuseError(EINVAL) }
        if flags & 3 == 0 { nodes.pin(to, new) }
        try check(clinux_renameat2(from.fd, old, to.fd, new, flags))
        nodes.moved(to, to: target, new)
        if flags & 2 != 0 { nodes.moved(from, to: source, old) }
        return .reply
    }
    func readLink(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        let descriptor = try self.descriptor(request.node).1
        guard let room = reply.room(4096) else { throw FuseError(ENOMEM) }
        let count = readlinkat(descriptor.fd, "", room.assumingMemoryBound(to: CChar.self), 4096)
        guard count >= 0 else { throw FuseError(errno) }
        reply.advance(count)
        return .reply
    }

    // MARK: opening

    /// What the host is asked to open with: how to write, and that it be nothing but a file or a directory.
    private static let passedFlags = O_ACCMODE | O_APPEND | O_TRUNC | O_DSYNC | O_SYNC | O_NOATIME

    private static func isWriting(_ flags: Int32) -> Bool { flags & O_ACCMODE != O_RDONLY || flags & O_TRUNC != 0 }

    func open(_ request: FuseRequest, _ reply: FuseReply, directory: Bool) throws(FuseError) -> Outcome {
        try request.require(8)
        let (node, descriptor) = try descriptor(request.node)
        let flags = request.argument(0, as: Int32.self)
        guard directory ? node.isDirectory : node.isRegular else { throw FuseError(directory ? ENOTDIR : node.isDirectory ? EISDIR : ENXIO) }
        let isWriting = Self.isWriting(flags)
        guard !isWriting || !node.share.isReadOnly else { throw FuseError(EROFS) }
        let wanted = directory ? O_RDONLY | O_DIRECTORY : flags & Self.passedFlags
        let seen = flags & O_TRUNC != 0 ? capabilitiesMade.load(ordering: .sequentiallyConsistent) : .max
        if isWriting, node.isRegular { try truncating(descriptor, flags, takesPrivileges: request.argument(4, as: UInt32.self) & Fuse.openTakesPrivileges != 0) }
        let file = OpenFile(try reopen(descriptor, wanted), isWritable: isWriting, capabilitiesSeen: seen)
        if let window = window(), node.isRegular { window.look(at: try NodeTable.status(file.descriptor)) }
        try putOpen(file, reply, isFresh: flags & O_TRUNC != 0 && flags & O_ACCMODE == O_WRONLY)
        return .reply
    }
    /// Before a file is opened to be written.
    private func truncating(_ descriptor: Descriptor, _ flags: Int32, takesPrivileges: Bool) throws(FuseError) {
        guard flags & O_TRUNC != 0 else { return }
        if takesPrivileges { try takePrivileges(descriptor) } else { removeCapability(descriptor) }
    }
    private func reopen(_ descriptor: Descriptor, _ flags: Int32) throws(FuseError) -> Descriptor {
        var fd = clinux_open(descriptor.path, flags | O_CLOEXEC | O_NONBLOCK, 0)
        // Only a file's owner may read without leaving a trace.
        if fd < 0, errno == EPERM, flags & O_NOATIME != 0 { fd = clinux_open(descriptor.path, flags & ~O_NOATIME | O_CLOEXEC | O_NONBLOCK, 0) }
        guard fd >= 0 else { throw FuseError(errno) }
        return Descriptor(fd)
    }
    /// - Parameter isFresh: empty, and only to be written: then what is written comes here from where the program has it, past the
    ///   guest's page cache. Nobody can have pages of it that would go stale, and nobody can map it by this handle.
    private func putOpen(_ file: OpenFile, _ reply: FuseReply, isFresh: Bool = false) throws(FuseError) {
        reply.put(try handles.insert(file))
        reply.put(isFresh ? Fuse.directAccess : Fuse.keepCache)
        reply.put(UInt32(0))
    }
    func create(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(16)
        let (parent, directory) = try writable(request.node)
        let name = try request.name(16).name
        let flags = request.argument(0, as: Int32.self)
        let mode = request.argument(4, as: UInt32.self) & 0o7777
        // Made anew, or, when the guest does not insist on that, what is there: but never a pipe or a device.
        let base = flags & Self.passedFlags | O_NOFOLLOW
        let handle: Descriptor
        var isFresh = flags & O_ACCMODE == O_WRONLY
        let seen = capabilitiesMade.load(ordering: .sequentiallyConsistent)
        do throws(FuseError) {
            handle = try NodeTable.open(directory, name, flags: base | O_CREAT | O_EXCL, mode: mode)
            own(handle, request, in: directory, mode: mode)
        } catch {
            guard error.code == EEXIST, flags & O_EXCL == 0 else { throw error }
            let found = try NodeTable.open(directory, name)
            guard try NodeTable.status(found).st_mode & FileKind.mask == FileKind.regular else { throw FuseError(EEXIST) }
            if Self.isWriting(flags) { try truncating(found, flags, takesPrivileges: request.argument(12, as: UInt32.self) & Fuse.openTakesPrivileges != 0) }
            handle = try reopen(found, flags & Self.passedFlags)
            isFresh = isFresh && flags & O_TRUNC != 0
        }
        return try enterOpen(handle, flags, parent, name, reply, isFresh: isFresh, seen: isFresh ? seen : .max)
    }
    private func enterOpen(
        _ handle: Descriptor, _ flags: Int32, _ parent: Node, _ name: [CChar], _ reply: FuseReply, isFresh: Bool = false, seen: UInt64 = .max
    ) throws(FuseError) -> Outcome {
        // The node's descriptor is of the very file that was opened.
        let fd = clinux_open(handle.path, O_PATH | O_CLOEXEC, 0)
        guard fd >= 0 else { throw FuseError(errno) }
        try enter(Descriptor(fd), parent, name, reply)
        try putOpen(OpenFile(handle, isWritable: flags & O_ACCMODE != O_RDONLY, capabilitiesSeen: seen), reply, isFresh: isFresh)
        return .reply
    }
    func makeTemporary(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(16)
        let (parent, directory) = try writable(request.node)
        let flags = request.argument(0, as: Int32.self)
        let access = flags & O_ACCMODE == O_RDONLY ? O_RDWR : flags & O_ACCMODE
        let fd = clinux_open_beneath(
            directory.fd, ".", UInt64(UInt32(bitPattern: access | Self.temporary | O_CLOEXEC)), UInt64(request.argument(4, as: UInt32.self) & 0o7777))
        guard fd >= 0 else { throw FuseError(errno) }
        let handle = Descriptor(fd)
        own(handle, request, in: directory, mode: request.argument(4, as: UInt32.self) & 0o7777)
        let result = try enterOpen(handle, access, parent, [0], reply)
        return result
    }
    /// O_TMPFILE.
    private static let temporary: Int32 = 0o20000000 | O_DIRECTORY
}
