import CLinux
import Glibc

/// Extended attributes. The guest's `user.` ones are the host's. Its `trusted.` and `security.` ones (capabilities, what a layered file
/// system writes down) are for the guest's kernel alone: the host has them under names that mean nothing to its own.
///
/// Only regular files and directories can have `user.` attributes; of links and others, the host's root has them as `trusted.` ones.
extension FileServer {
    /// Ours on the host, and nothing that a guest's program could name.
    private static let ownPrefix = Array("user.vz.".utf8)
    private static let rootsPrefix = Array("trusted.vz.".utf8)
    private static let trusted = Array("trusted.".utf8)
    private static let user = Array("user.".utf8)
    private static let keptPrefixes = [trusted, Array("security.".utf8)]
    private static let capability = terminated(ownPrefix + "security.capability".utf8)

    private static func terminated(_ name: [UInt8]) -> [CChar] { name.map { CChar(bitPattern: $0) } + [0] }
    private func hostPrefix(_ node: Node) -> [UInt8]? { node.isPlain ? Self.ownPrefix : isRoot ? Self.rootsPrefix : nil }

    /// - Returns: what the host calls it, and where in the request it ends.
    private func attribute(_ request: FuseRequest, at: Int, _ node: Node) throws(FuseError) -> (host: [CChar], next: Int) {
        let (name, next) = try request.text(at)
        let text = name.dropLast().map { UInt8(bitPattern: $0) }
        if Self.keptPrefixes.contains(where: text.starts), let prefix = hostPrefix(node) { return (Self.terminated(prefix + text), next) }
        guard node.isPlain, text.starts(with: Self.user), !text.starts(with: Self.ownPrefix) else { throw FuseError(EOPNOTSUPP) }
        return (name, next)
    }

    func setExtended(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(8)
        let (node, descriptor) = try writable(request.node)
        let (name, next) = try attribute(request, at: 8, node)
        let size = Int(request.argument(0, as: UInt32.self))
        guard size <= request.count - Fuse.requestHeader - next else { throw FuseError(E2BIG) }
        // Before it is there: who writes the file from now on looks.
        if name == Self.capability { capabilitiesMade.add(1, ordering: .sequentiallyConsistent) }
        try check(setxattr(descriptor.path, name, request.bytes + Fuse.requestHeader + next, size, Int32(request.argument(4, as: UInt32.self) & 3)))
        return .reply
    }
    func getExtended(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(8)
        let (node, descriptor) = try descriptor(request.node)
        let name = try attribute(request, at: 8, node).host
        return try value(request, reply) {
            let count = getxattr(descriptor.path, name, $0, $1)
            // A file that its owner may not read, which each write of the guest's asks for: no reason to lend rights, which changes its time.
            if count < 0, errno == EACCES, name == Self.capability { errno = ENODATA }
            return count
        }
    }
    func listExtended(_ request: FuseRequest, _ reply: FuseReply) throws(FuseError) -> Outcome {
        try request.require(8)
        let (node, descriptor) = try descriptor(request.node)
        // Only those that may be read, too.
        guard let room = reply.room(65536) else { throw FuseError(ENOMEM) }
        let count = listxattr(descriptor.path, room.assumingMemoryBound(to: CChar.self), 65536)
        guard count >= 0 else { throw FuseError(errno) }
        let names = UnsafeRawBufferPointer(start: room, count: count).split(separator: 0).map { Array($0) }
        let shown: [UInt8] = names.compactMap { guestName($0, node, isPrivileged: request.user == 0) }.flatMap { $0 + [0] }
        return try value(request, reply) { target, size in
            guard size > 0 else { return shown.count }
            guard size >= shown.count, let target else {
                errno = ERANGE
                return -1
            }
            memcpy(target, shown, shown.count)
            return shown.count
        }
    }
    /// - Parameter isPrivileged: whether `trusted.` ones are told of, too.
    private func guestName(_ name: [UInt8], _ node: Node, isPrivileged: Bool) -> [UInt8]? {
        if let prefix = hostPrefix(node), name.starts(with: prefix) {
            let rest = Array(name.dropFirst(prefix.count))
            return Self.keptPrefixes.contains(where: rest.starts) && (isPrivileged || !rest.starts(with: Self.trusted)) ? rest : nil
        }
        return node.isPlain && name.starts(with: Self.user) ? name : nil
    }
    /// The guest asks for the size first, then for as much.
    private func value(
        _ request: FuseRequest, _ reply: FuseReply, _ get: (UnsafeMutableRawPointer?, Int) -> Int
    ) throws(FuseError) -> Outcome {
        let size = min(Int(request.argument(0, as: UInt32.self)), 65536)
        guard size > 0 else {
            let count = get(nil, 0)
            guard count >= 0 else { throw FuseError(errno) }
            reply.put(UInt32(count))
            reply.put(UInt32(0))
            return .reply
        }
        let count = get(reply.room(size), size)
        guard count >= 0 else { throw FuseError(errno) }
        reply.advance(count)
        return .reply
    }
    func removeExtended(_ request: FuseRequest) throws(FuseError) -> Outcome {
        let (node, descriptor) = try writable(request.node)
        try check(removexattr(descriptor.path, try attribute(request, at: 0, node).host))
        return .reply
    }

    // MARK: capabilities

    /// A file that is written has no capabilities any more. Linux removes them by itself but where it writes past its page cache: then each
    /// handle's first write looks here, and the next one after somebody has set any.
    func removeCapability(before file: OpenFile) {
        let made = capabilitiesMade.load(ordering: .sequentiallyConsistent)
        if file.capabilitiesSeen.exchange(made, ordering: .relaxed) != made { removeCapability(file.descriptor) }
    }
    func removeCapability(_ descriptor: Descriptor) { _ = removexattr(descriptor.path, Self.capability) }
}
