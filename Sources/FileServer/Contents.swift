import CLinux
import Glibc

/// What is in files and directories.
extension FileServer {
    /// Straight into the guest's memory.
    func read(_ request: FuseRequest, _ worker: Worker, _ answer: Answer) throws(FuseError) -> Outcome {
        try request.require(24)
        let file = try handles.file(request.argument(0))
        let size = min(Int(request.argument(16, as: UInt32.self)), max(0, answer.room - Fuse.replyHeader))
        let parts = answer.pieces.slice(from: Fuse.replyHeader, limit: size, to: worker.parts, capacity: Worker.partCapacity)
        let count = preadv(file.descriptor.fd, worker.parts, Int32(parts), Int(truncatingIfNeeded: request.argument(8, as: Int64.self)))
        guard count >= 0 else { throw FuseError(errno) }
        return .inPlace(count)
    }
    /// Straight from the guest's memory.
    func write(_ request: FuseRequest, _ worker: Worker) throws(FuseError) -> Outcome {
        try request.require(40)
        let file = try handles.file(request.argument(0))
        let size = Int(request.argument(16, as: UInt32.self))
        guard file.isWritable else { throw FuseError(EBADF) }
        guard size <= request.total - Fuse.requestHeader - 40 else { throw FuseError(EINVAL) }
        let flags: UInt32 = request.argument(20)
        if flags & Fuse.writeOfCachedPages == 0 { removeCapability(before: file) }
        if flags & Fuse.writeTakesPrivileges != 0 { try takePrivileges(file.descriptor) }
        let parts = request.pieces.slice(from: Fuse.requestHeader + 40, limit: size, to: worker.parts, capacity: Worker.partCapacity)
        let count = pwritev(file.descriptor.fd, worker.parts, Int32(parts), Int(truncatingIfNeeded: request.argument(8, as: Int64.self)))
        guard count >= 0 else { throw FuseError(errno) }
        window()?.becameLonger(file.descriptor)
        worker.reply.put(UInt32(truncatingIfNeeded: count))
        worker.reply.put(UInt32(0))
        return .reply
    }
    func synchronize(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(12)
        let file = try handles.file(request.argument(0))
        try check(request.argument(8, as: UInt32.self) & 1 != 0 ? fdatasync(file.descriptor.fd) : fsync(file.descriptor.fd))
        return .reply
    }
    func synchronizeAll(_ request: FuseRequest) throws(FuseError) -> Outcome {
        let descriptor = try self.descriptor(request.node).1
        let fd = clinux_open(descriptor.path, O_RDONLY | O_CLOEXEC, 0)
        guard fd >= 0 else { throw FuseError(errno) }
        defer { close(fd) }
        try check(syncfs(fd))
        return .reply
    }
    func allocate(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(28)
        let file = try handles.file(request.argument(0))
        guard file.isWritable else { throw FuseError(EBADF) }
        if request.user != 0 { try takePrivileges(file.descriptor) }
        try check(
            clinux_fallocate(
                file.descriptor.fd, request.argument(24, as: Int32.self), request.argument(8, as: Int64.self), request.argument(16, as: Int64.self)))
        // FALLOC_FL_PUNCH_HOLE makes no file longer.
        if request.argument(24, as: Int32.self) & 2 == 0 { try sizeChanged(file.descriptor) }
        return .reply
    }
    func seek(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(20)
        let file = try handles.file(request.argument(0))
        let whence: UInt32 = request.argument(16)
        // SEEK_DATA and SEEK_HOLE: the rest the guest knows itself.
        guard whence == 3 || whence == 4 else { throw FuseError(EINVAL) }
        let place = file.lock.withLock { _ in lseek(file.descriptor.fd, Int(truncatingIfNeeded: request.argument(8, as: Int64.self)), Int32(whence)) }
        guard place >= 0 else { throw FuseError(errno) }
        reply.put(UInt64(place))
        return .reply
    }
    func copyRange(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(56)
        let (source, target) = (try handles.file(request.argument(0)), try handles.file(request.argument(24)))
        guard target.isWritable else { throw FuseError(EBADF) }
        if request.user != 0 { try takePrivileges(target.descriptor) }
        var from: Int64 = request.argument(8)
        var to: Int64 = request.argument(32)
        // The answer has 32 bits for the count.
        let size = min(request.argument(40, as: UInt64.self), 1 << 30)
        let count = clinux_copy_file_range(source.descriptor.fd, &from, target.descriptor.fd, &to, UInt(size))
        guard count >= 0 else { throw FuseError(errno) }
        try sizeChanged(target.descriptor)
        reply.put(UInt32(truncatingIfNeeded: count))
        reply.put(UInt32(0))
        return .reply
    }
    func status(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        let descriptor = try self.descriptor(request.node).1
        var status = statvfs()
        try check(fstatvfs(descriptor.fd, &status))
        for value in [status.f_blocks, status.f_bfree, status.f_bavail, status.f_files, status.f_ffree] { reply.put(UInt64(value)) }
        for value in [status.f_bsize, status.f_namemax, status.f_frsize, 0] { reply.put(UInt32(truncatingIfNeeded: value)) }
        reply.zeroes(24)
        return .reply
    }

    // MARK: directories

    func readDirectory(_ request: FuseRequest, _ worker: Worker, _ answer: Answer, plus: Bool) throws(FuseError) -> Outcome {
        try request.require(20)
        let (node, path) = try descriptor(request.node)
        let file = try handles.file(request.argument(0))
        let limit = min(Int(request.argument(16, as: UInt32.self)), answer.room - Fuse.replyHeader, FuseReply.capacity)
        let offset = Int(truncatingIfNeeded: request.argument(8, as: Int64.self))
        let size = 32 << 10
        return try withUnsafeTemporaryAllocation(byteCount: size, alignment: 8) { buffer throws(FuseError) in
            guard let base = buffer.baseAddress else { throw FuseError(ENOMEM) }
            let count = file.lock.withLock { _ in
                lseek(file.descriptor.fd, offset, SEEK_SET) < 0 ? -1 : clinux_getdents(file.descriptor.fd, base, UInt(size))
            }
            guard count >= 0 else { throw FuseError(errno) }
            var at = 0
            while at < count {
                let entry = UnsafeRawPointer(base) + at
                guard put(entry, node, path, worker.reply, limit: limit, plus: plus) else { break }
                at += Int(entry.loadUnaligned(fromByteOffset: 16, as: UInt16.self))
            }
            return .reply
        }
    }
    /// One linux_dirent64 as a fuse_dirent; false when it does not fit any more.
    private func put(_ entry: UnsafeRawPointer, _ parent: Node, _ directory: Descriptor, _ reply: FuseReply, limit: Int, plus: Bool) -> Bool {
        let text = (entry + 19).assumingMemoryBound(to: CChar.self)
        let length = strlen(text)
        guard reply.count + (plus ? Fuse.entrySize : 0) + (24 + length + 7) & ~7 <= limit else { return false }
        if plus { putPlus(Array(UnsafeBufferPointer(start: text, count: length + 1)), parent, directory, reply) }
        reply.put(entry.loadUnaligned(as: UInt64.self))
        reply.put(entry.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        reply.put(UInt32(length))
        reply.put(UInt32(entry.load(fromByteOffset: 18, as: UInt8.self)))
        reply.put(text, length)
        reply.zeroes((8 - (length & 7)) & 7)
        return true
    }
    /// With what a lookup would say, so that the guest need not ask for each; zeroes for what is none of an entry's.
    private func putPlus(_ name: [CChar], _ parent: Node, _ directory: Descriptor, _ reply: FuseReply) {
        let start = reply.count
        do throws(FuseError) {
            try FuseRequest.check(name)
            try enter(try NodeTable.open(directory, name), parent, name, reply)
        } catch {
            reply.shrink(to: start)
            reply.zeroes(Fuse.entrySize)
        }
    }
}
