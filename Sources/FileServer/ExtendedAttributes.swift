import CLinux
import Glibc

/// Extended attributes. The guest's `user.` ones are the host's. Its `trusted.` and `security.` ones (capabilities, what a layered file
/// system writes down) are for the guest's kernel alone: the host has them under names that mean nothing to its own.
///
/// Only regular files and directories can have `user.` attributes; of links and others, the host's root has them as `trusted.` ones.
extension FileServer {
    /// Ours on the host, and nothing that a guest's program could name.
    private static let ownPrefix = "user.vz."
    private static let rootsPrefix = "trusted.vz."
    private static let keptPrefixes = ["trusted.", "security."]
    private static let capability = ownPrefix + "security.capability"

    private func hostPrefix(_ node: Node) -> String? { node.isPlain ? Self.ownPrefix : isRoot ? Self.rootsPrefix : nil }

    /// - Returns: what the host calls it, and where in the request it ends.
    private func attribute(_ request: FuseRequest, at: Int, _ node: Node) throws(FuseError) -> (guest: String, host: String, next: Int) {
        let (name, next) = try request.text(at)
        let text = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        if Self.keptPrefixes.contains(where: text.hasPrefix), let prefix = hostPrefix(node) { return (text, prefix + text, next) }
        guard node.isPlain, text.hasPrefix("user."), !text.hasPrefix(Self.ownPrefix) else { throw FuseError(EOPNOTSUPP) }
        return (text, text, next)
    }

    func setExtended(_ request: FuseRequest) throws(FuseError) -> Outcome {
        try request.require(8)
        let (node, descriptor) = try writable(request.node)
        let (_, name, next) = try attribute(request, at: 8, node)
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
        let names = UnsafeRawBufferPointer(start: room, count: count).split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
        let shown: [UInt8] = names.compactMap { guestName($0, node, isPrivileged: request.user == 0) }.flatMap { $0.utf8 + [0 as UInt8] }
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
    private func guestName(_ name: String, _ node: Node, isPrivileged: Bool) -> String? {
        if let prefix = hostPrefix(node), name.hasPrefix(prefix) {
            let rest = String(name.dropFirst(prefix.count))
            return Self.keptPrefixes.contains(where: rest.hasPrefix) && (isPrivileged || !rest.hasPrefix("trusted.")) ? rest : nil
        }
        return node.isPlain && name.hasPrefix("user.") ? name : nil
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
