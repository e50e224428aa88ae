import CLinux
import Glibc

/// Names and attributes.
extension FileServer {
    func descriptor(_ id: UInt64) throws(FuseError) -> (Node, Descriptor) {
        let node = try nodes.node(id)
        return (node, try nodes.descriptor(node))
    }
    /// As `descriptor`, for what changes the directory or the file.
    func writable(_ id: UInt64) throws(FuseError) -> (Node, Descriptor) {
        let (node, descriptor) = try descriptor(id)
        guard !node.share.isReadOnly else { throw FuseError(EROFS) }
        return (node, descriptor)
    }

    /// A file's status as the guest may see it.
    private func shown(_ descriptor: Descriptor) throws(FuseError) -> stat {
        isRoot ? try NodeTable.status(descriptor) : try rights.status(descriptor)
    }

    func putEntry(_ node: Node, _ descriptor: Descriptor, _ reply: FuseReply) throws(FuseError) {
        putEntry(node, descriptor, try shown(descriptor), reply)
    }
    func putEntry(_ node: Node, _ descriptor: Descriptor, _ status: stat, _ reply: FuseReply) {
        reply.put(node.id)
        reply.put(UInt64(0))
        reply.put(Self.validSeconds)
        reply.put(Self.validSeconds)
        reply.put(UInt64(0))
        putAttributes(status, descriptor, reply)
    }
    /// fuse_attr.
    func putAttributes(_ status: stat, _ descriptor: Descriptor, _ reply: FuseReply) {
        let owner = guestOwner(status, descriptor)
        reply.put(nodes.inode(status))
        reply.put(UInt64(bitPattern: Int64(status.st_size)))
        reply.put(UInt64(bitPattern: Int64(status.st_blocks)))
        for time in [status.st_atim, status.st_mtim, status.st_ctim] { reply.put(UInt64(bitPattern: Int64(time.tv_sec))) }
        for time in [status.st_atim, status.st_mtim, status.st_ctim] { reply.put(UInt32(truncatingIfNeeded: time.tv_nsec)) }
        reply.put(status.st_mode)
        reply.put(UInt32(truncatingIfNeeded: status.st_nlink))
        reply.put(owner.user)
        reply.put(owner.group)
        reply.put(UInt32(truncatingIfNeeded: status.st_rdev))
        reply.put(UInt32(truncatingIfNeeded: status.st_blksize))
        reply.put(attributeFlags(status))
    }

    func lookUp(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        let (parent, directory) = try descriptor(request.node)
        let name = try request.name(0).name
        let found: Descriptor
        do throws(FuseError) { found = try NodeTable.open(directory, name) } catch {
            guard error.code == ENOENT else { throw error }
            // "Nothing there" is an answer, too, and good for as long.
            reply.zeroes(16)
            reply.put(Self.validSeconds)
            reply.zeroes(Fuse.entrySize - 24)
            return .reply
        }
        try enter(found, parent, name, reply)
        return .reply
    }
    /// Tells the guest of a file.
    func enter(_ found: Descriptor, _ parent: Node, _ name: [CChar], _ reply: FuseReply) throws(FuseError) {
        let status = try shown(found)
        putEntry(nodes.insert(found, status, parent.share, parent: parent, name: name), found, status, reply)
    }

    func getAttributes(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        let descriptor = try self.descriptor(request.node).1
        let status = try shown(descriptor)
        window()?.look(at: status)
        reply.put(Self.validSeconds)
        reply.put(UInt64(0))
        putAttributes(status, descriptor, reply)
        return .reply
    }
    func setAttributes(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(88)
        let (node, descriptor) = try writable(request.node)
        let valid: UInt32 = request.argument(0)
        if valid & (Fuse.Valid.user | Fuse.Valid.group) != 0 {
            try setOwner(
                node, descriptor, user: valid & Fuse.Valid.user != 0 ? request.argument(76) : .max, group: valid & Fuse.Valid.group != 0 ? request.argument(80) : .max)
            if node.isRegular { try takePrivileges(descriptor) }
        }
        if valid & Fuse.Valid.size != 0 {
            let size = Int(truncatingIfNeeded: request.argument(16, as: UInt64.self))
            guard node.isRegular else { throw FuseError(node.isDirectory ? EISDIR : EINVAL) }
            if valid & Fuse.Valid.takePrivileges != 0 { try takePrivileges(descriptor) }
            if valid & Fuse.Valid.handle != 0, let file = try? handles.file(request.argument(8)), file.isWritable {
                try check(ftruncate(file.descriptor.fd, size))
            } else {
                try check(truncate(descriptor.path, size))
            }
            try sizeChanged(descriptor)
        }
        // Behind what it may forbid.
        if valid & Fuse.Valid.mode != 0 {
            guard !node.isSymbolicLink else { throw FuseError(EOPNOTSUPP) }
            try setMode(descriptor, request.argument(68, as: UInt32.self) & 0o7777)
        }
        try setTimes(request, valid, descriptor)
        return try getAttributes(request, reply)
    }
    private func setMode(_ descriptor: Descriptor, _ mode: UInt32) throws(FuseError) {
        try check(isRoot ? chmod(descriptor.path, mode) : rights.setMode(descriptor, mode))
    }
    /// A file that somebody without the right to keep them changes, and one that gets another owner, loses what it gives to those
    /// that run it: capabilities, the set-user-ID bit, and the set-group-ID bit of what its group may run.
    func takePrivileges(_ descriptor: Descriptor) throws(FuseError) {
        removeCapability(descriptor)
        let mode = try shown(descriptor).st_mode & 0o7777
        let left = mode & ~(mode & 0o2010 == 0o2010 ? 0o6000 : 0o4000)
        if left != mode { try setMode(descriptor, left) }
    }
    private func setTimes(_ request: FuseRequest, _ valid: UInt32, _ descriptor: Descriptor) throws(FuseError) {
        guard valid & (Fuse.Valid.accessTime | Fuse.Valid.modificationTime | Fuse.Valid.accessNow | Fuse.Valid.modificationNow) != 0 else { return }
        func time(_ set: UInt32, _ now: UInt32, _ seconds: Int, _ nanoseconds: Int) -> timespec {
            if valid & now != 0 { return timespec(tv_sec: 0, tv_nsec: Self.timeNow) }
            guard valid & set != 0 else { return timespec(tv_sec: 0, tv_nsec: Self.timeOmitted) }
            return timespec(tv_sec: Int(request.argument(seconds, as: Int64.self)), tv_nsec: Int(request.argument(nanoseconds, as: UInt32.self)))
        }
        let times = [
            time(Fuse.Valid.accessTime, Fuse.Valid.accessNow, 32, 56), time(Fuse.Valid.modificationTime, Fuse.Valid.modificationNow, 40, 60),
        ]
        try check(utimensat(descriptor.fd, "", times, Self.emptyPath))
    }
    /// UTIME_NOW, UTIME_OMIT, AT_EMPTY_PATH.
    private static let timeNow = 0x3FFF_FFFF
    private static let timeOmitted = 0x3FFF_FFFE
    static let emptyPath: Int32 = 0x1000

    func check(_ result: Int32) throws(FuseError) { if result < 0 { throw FuseError(errno) } }

    // MARK: owners

    private static let ownerAttribute = "user.vz.owner"

    /// Who owns a file as the guest sees it.
    private func guestOwner(_ status: stat, _ descriptor: Descriptor) -> Node.Owner {
        if isRoot { return Node.Owner(user: status.st_uid, group: status.st_gid) }
        return (status.st_uid == owner.user ? keptOwner(status, descriptor) : nil) ?? plainOwner(status)
    }
    private func plainOwner(_ status: stat) -> Node.Owner {
        Node.Owner(user: status.st_uid == owner.user ? 0 : status.st_uid, group: status.st_gid == owner.group ? 0 : status.st_gid)
    }
    private func keptOwner(_ status: stat, _ descriptor: Descriptor) -> Node.Owner? {
        guard FileKind.isPlain(status.st_mode) else { return nodes.owner(status) }
        if let kept = readOwner(descriptor) { return kept }
        // A file that its owner may not read: each look would change its time of change, so one has to do.
        guard errno == EACCES else { return nil }
        if let known = nodes.owner(status) { return known }
        guard nodes.isWritable(status) else { return nil }
        let kept = (try? rights.lend(of: owner.user, descriptor) { readOwner(descriptor) }) ?? nil
        nodes.keep(kept ?? plainOwner(status), status)
        return kept
    }
    /// nil, and `errno`, when there is none.
    private func readOwner(_ descriptor: Descriptor) -> Node.Owner? {
        var pair: (UInt32, UInt32) = (0, 0)
        let count = getxattr(descriptor.path, Self.ownerAttribute, &pair, 8)
        if count == 8 { return Node.Owner(user: UInt32(littleEndian: pair.0), group: UInt32(littleEndian: pair.1)) }
        if count >= 0 { errno = ENODATA }
        return nil
    }
    /// False, and `errno`, when it cannot be kept.
    private func writeOwner(_ new: Node.Owner, _ descriptor: Descriptor) -> Bool {
        if new == Node.Owner(user: 0, group: 0) { return removexattr(descriptor.path, Self.ownerAttribute) == 0 || errno == ENODATA }
        var pair = (new.user.littleEndian, new.group.littleEndian)
        return setxattr(descriptor.path, Self.ownerAttribute, &pair, 8, 0) == 0
    }
    /// `.max` leaves one of them as it is.
    func setOwner(_ node: Node, _ descriptor: Descriptor, user: UInt32, group: UInt32) throws(FuseError) {
        if isRoot { return try check(fchownat(descriptor.fd, "", user, group, Self.emptyPath)) }
        let status = try NodeTable.status(descriptor)
        let now = guestOwner(status, descriptor)
        let new = Node.Owner(user: user == .max ? now.user : user, group: group == .max ? now.group : group)
        guard !node.isPlain || writeOwner(new, descriptor) else { throw FuseError(errno) }
        if !node.isPlain || nodes.owner(status) != nil { nodes.keep(new, status) }
    }
    /// What the guest has just made belongs to who made it; the group of a directory with the set-group-ID bit stays.
    /// - Parameter mode: what the guest asked for. Where this thread could have no umask of its own, the process's has taken
    ///   some of it away.
    func own(_ made: Descriptor, _ request: FuseRequest, in directory: Descriptor, mode: UInt32?) {
        defer {
            if let mode, let now = try? NodeTable.status(made).st_mode, now & 0o777 != mode & 0o777 { _ = chmod(made.path, now & 0o7000 | mode) }
        }
        let keepsGroup = (try? NodeTable.status(directory)).map { $0.st_mode & 0o2000 != 0 } ?? false
        let group: UInt32 = keepsGroup ? .max : request.group
        if isRoot {
            _ = fchownat(made.fd, "", request.user, group, Self.emptyPath)
        } else if let status = try? NodeTable.status(made) {
            let group = keepsGroup ? (try? NodeTable.status(directory)).map { guestOwner($0, directory).group } ?? 0 : request.group
            let new = Node.Owner(user: request.user, group: group)
            guard request.user != 0 || group != 0 else { return nodes.drop(status) }
            // Links, pipes and sockets have no such attributes; their owners are known while the machine runs.
            guard FileKind.isPlain(status.st_mode) else { return nodes.keep(new, status) }
            if !writeOwner(new, made), errno == EACCES { _ = try? rights.lend(of: owner.user, made) { writeOwner(new, made) } }
        }
    }
}
