import CLinux
import Glibc

/// Which function answers what.
extension FileServer {
    /// Answers a request; once more with lent rights, where the modes of this user's own files were against it.
    func answer(_ request: FuseRequest, _ worker: Worker, _ answer: Answer) throws(FuseError) -> Outcome {
        do throws(FuseError) { return try perform(request, worker, answer) } catch {
            guard error.code == EACCES, !isRoot else { throw error }
            worker.reply.clear()
            guard let outcome = try rights.lend(of: owner.user, { file($0, of: request) }, { () throws(FuseError) in try perform(request, worker, answer) }) else { throw error }
            return outcome
        }
    }
    /// The files whose modes decide whether a request may be answered; none of a share that is only read.
    private func file(_ index: Int, of request: FuseRequest) -> Descriptor? {
        func node(_ id: UInt64) -> Descriptor? { (try? writable(id))?.1 }
        func child(_ directory: UInt64, _ name: Int) -> Descriptor? {
            guard let directory = node(directory), let name = try? request.name(name).name else { return nil }
            return try? NodeTable.open(directory, name)
        }
        switch (request.operation, index) {
        case (_, 0): return node(request.node)
        case (Fuse.Operation.create, 1): return child(request.node, 16)
        case (Fuse.Operation.rename, 1), (Fuse.Operation.rename2, 1), (Fuse.Operation.link, 1): return node(request.argument(0))
        // A directory that moves has its ".." written.
        case (Fuse.Operation.rename, 2): return child(request.node, 8)
        case (Fuse.Operation.rename2, 2): return child(request.node, 16)
        default: return nil
        }
    }

    private func perform(_ request: FuseRequest, _ worker: Worker, _ answer: Answer) throws(FuseError) -> Outcome {
        let reply = worker.reply
        switch request.operation {
        case Fuse.Operation.initialize: return try initialize(request, reply)
        case Fuse.Operation.destroy:
            reset()
            return .reply
        case Fuse.Operation.forget:
            try request.require(8)
            nodes.forget(request.node, request.argument(0))
            return .none
        case Fuse.Operation.batchForget: return try forgetMany(request)
        case Fuse.Operation.interrupt: return .none
        default: break
        }
        if hasListedRoot, request.node == Fuse.rootNode { return try performInList(request, reply) }
        switch request.operation {
        case Fuse.Operation.lookup: return try lookUp(request, reply)
        case Fuse.Operation.getAttributes: return try getAttributes(request, reply)
        case Fuse.Operation.setAttributes: return try setAttributes(request, reply)
        case Fuse.Operation.readLink: return try readLink(request, reply)
        case Fuse.Operation.symbolicLink: return try makeSymbolicLink(request, reply)
        case Fuse.Operation.makeNode: return try makeNode(request, reply)
        case Fuse.Operation.makeDirectory: return try makeDirectory(request, reply)
        case Fuse.Operation.unlink: return try remove(request, flags: 0)
        case Fuse.Operation.removeDirectory: return try remove(request, flags: AT_REMOVEDIR)
        case Fuse.Operation.rename: return try rename(request, at: 8, flags: 0)
        case Fuse.Operation.rename2:
            try request.require(16)
            return try rename(request, at: 16, flags: request.argument(8))
        case Fuse.Operation.link: return try link(request, reply)
        case Fuse.Operation.open: return try open(request, reply, directory: false)
        case Fuse.Operation.openDirectory: return try open(request, reply, directory: true)
        case Fuse.Operation.create: return try create(request, reply)
        case Fuse.Operation.temporaryFile: return try makeTemporary(request, reply)
        case Fuse.Operation.read: return try read(request, worker, answer)
        case Fuse.Operation.write: return try write(request, worker)
        case Fuse.Operation.release, Fuse.Operation.releaseDirectory:
            try request.require(8)
            handles.remove(request.argument(0))
            return .reply
        // Nothing to do at a close: Linux does not ask again, which saves a turn for each file.
        case Fuse.Operation.flush: throw FuseError(ENOSYS)
        case Fuse.Operation.synchronize, Fuse.Operation.synchronizeDirectory: return try synchronize(request)
        case Fuse.Operation.synchronizeFileSystem: return try synchronizeAll(request)
        case Fuse.Operation.readDirectory: return try readDirectory(request, worker, answer, plus: false)
        case Fuse.Operation.readDirectoryPlus: return try readDirectory(request, worker, answer, plus: true)
        case Fuse.Operation.fileSystemStatus: return try status(request, reply)
        case Fuse.Operation.allocate: return try allocate(request)
        case Fuse.Operation.seek: return try seek(request, reply)
        case Fuse.Operation.copyRange: return try copyRange(request, reply)
        case Fuse.Operation.setExtended: return try setExtended(request)
        case Fuse.Operation.getExtended: return try getExtended(request, reply)
        case Fuse.Operation.listExtended: return try listExtended(request, reply)
        case Fuse.Operation.removeExtended: return try removeExtended(request)
        case Fuse.Operation.setUpMapping: return try setUpMapping(request)
        case Fuse.Operation.removeMapping: return try removeMapping(request)
        default: throw FuseError(ENOSYS)
        }
    }

    private func initialize(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(16)
        guard request.argument(0, as: UInt32.self) == Fuse.major else { throw FuseError(EPROTO) }
        reset()
        reply.put(Fuse.major)
        reply.put(min(Fuse.minor, request.argument(4)))
        reply.put(request.argument(8, as: UInt32.self))  // as much read-ahead as it likes
        let offered: UInt32 = request.argument(12)
        let more: UInt32 = offered & Fuse.Flag.moreFlags != 0 && request.count >= Fuse.requestHeader + 20 ? request.argument(16) : 0
        // Both sides must know of windows, and that not every file is for them.
        let maps = window() != nil && offered & Fuse.Flag.mapAlignment != 0 && more & Fuse.Flag.directByFile != 0
        reply.put(offered & (Fuse.Flag.wanted | (maps ? Fuse.Flag.mapAlignment | Fuse.Flag.moreFlags : 0)))
        reply.put(UInt16(64))  // requests in the background, and when there are too many
        reply.put(UInt16(48))
        reply.put(UInt32(Fuse.largestWrite))
        reply.put(UInt32(1))  // nanoseconds that times are good for
        reply.put(UInt16(Fuse.largestWrite / 4096))
        reply.put(UInt16(maps ? DirectWindow.pieceSize.trailingZeroBitCount : 0))
        reply.put(maps ? Fuse.Flag.directByFile : 0)
        reply.zeroes(28)
        return .reply
    }
    private func forgetMany(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(8)
        let count = Int(request.argument(0, as: UInt32.self))
        guard count <= (request.count - Fuse.requestHeader - 8) / 16 else { throw FuseError(EINVAL) }
        for index in 0..<count { nodes.forget(request.argument(8 + 16 * index), request.argument(16 + 16 * index)) }
        return .none
    }

    // MARK: a root that lists shares

    private func performInList(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        switch request.operation {
        case Fuse.Operation.lookup:
            let name = try request.name(0).name
            guard let share = shares.first(where: { $0.name == name }) else { throw FuseError(ENOENT) }
            let node = nodes.insert(share.root, try NodeTable.status(share.root), share, parent: nil, name: [])
            try putEntry(node, share.root, reply)
            return .reply
        case Fuse.Operation.getAttributes:
            reply.put(Self.validSeconds)
            reply.put(UInt64(0))
            putListAttributes(reply)
            return .reply
        case Fuse.Operation.openDirectory:
            reply.put(UInt64(0))
            reply.put(UInt64(0))
            return .reply
        case Fuse.Operation.readDirectory, Fuse.Operation.readDirectoryPlus:
            let isPlus = request.operation == Fuse.Operation.readDirectoryPlus
            try request.require(20)
            return listShares(from: request.argument(8), limit: Int(request.argument(16, as: UInt32.self)), isPlus, reply)
        case Fuse.Operation.releaseDirectory, Fuse.Operation.flush, Fuse.Operation.synchronizeDirectory: return .reply
        case Fuse.Operation.fileSystemStatus:
            reply.zeroes(40)
            for value in [4096, 255, 4096, 0] as [UInt32] { reply.put(value) }
            reply.zeroes(24)
            return .reply
        case Fuse.Operation.getExtended, Fuse.Operation.listExtended: throw FuseError(EOPNOTSUPP)
        default: throw FuseError(EROFS)
        }
    }
    private func putListAttributes(_ reply: FuseReply) {
        reply.put(Fuse.rootNode)
        reply.zeroes(52)
        reply.put(FileKind.directory | 0o555)
        reply.put(UInt32(2))
        reply.zeroes(12)
        reply.put(UInt32(4096))
        reply.put(UInt32(0))
    }
    private func listShares(from offset: UInt64, limit: Int, _ isPlus: Bool, _ reply: FuseReply) -> Outcome {
        for (index, share) in shares.enumerated() where UInt64(index) >= offset {
            let length = share.name.count - 1
            let size = (isPlus ? Fuse.entrySize : 0) + (24 + length + 7) & ~7
            guard reply.count + size <= min(limit, FuseReply.capacity) else { break }
            // Without attributes: the guest asks for those it wants.
            if isPlus { reply.zeroes(Fuse.entrySize) }
            reply.put(UInt64(index + 2))
            reply.put(UInt64(index + 1))
            reply.put(UInt32(length))
            reply.put(UInt32(4))  // DT_DIR
            share.name.withUnsafeBytes { if let base = $0.baseAddress { reply.put(base, length) } }
            reply.zeroes((8 - (length & 7)) & 7)
        }
        return .reply
    }
}
