import CLinux
import Glibc
import Synchronization

/// A descriptor that closes with its last reference.
final class Descriptor: Sendable {
    let fd: Int32
    init(_ fd: Int32) { self.fd = fd }
    deinit { close(fd) }
    /// A name by which the kernel finds the same file again, whatever happens to its path.
    var path: String { "/proc/self/fd/\(fd)" }
}

/// The kinds of files in a mode.
enum FileKind {
    static let mask: UInt32 = 0o170000
    static let pipe: UInt32 = 0o010000
    static let characterDevice: UInt32 = 0o020000
    static let directory: UInt32 = 0o040000
    static let regular: UInt32 = 0o100000
    static let symbolicLink: UInt32 = 0o120000
    static let socket: UInt32 = 0o140000
    /// Whether a file of that mode can be opened here, and can have extended attributes: regular files and directories.
    static func isPlain(_ mode: UInt32) -> Bool { mode & mask == regular || mode & mask == directory }
}

/// A file that the guest knows, by device and inode. Its table's lock guards what changes.
final class Node: @unchecked Sendable {  // see above
    struct Key: Hashable {
        let device: UInt64
        let inode: UInt64
        let kind: UInt32
        init(_ status: stat) { (device, inode, kind) = (UInt64(status.st_dev), UInt64(status.st_ino), status.st_mode & FileKind.mask) }
    }
    struct Owner: Equatable, Sendable {
        let user: UInt32
        let group: UInt32
    }
    let id: UInt64
    let key: Key
    let share: Share
    /// How often the guest was told of it and has not forgotten it.
    fileprivate(set) var lookups: UInt64 = 0
    /// O_PATH; nil while it is closed to save descriptors. Then it is found again by its parent and name.
    fileprivate var descriptor: Descriptor?
    fileprivate var parent: Node?
    fileprivate var name: [CChar]
    /// Its name has gone: the descriptor is the only way to it.
    fileprivate var isPinned: Bool

    fileprivate init(_ id: UInt64, _ key: Key, _ share: Share, _ descriptor: Descriptor, parent: Node?, name: [CChar]) {
        (self.id, self.key, self.share, self.descriptor) = (id, key, share, descriptor)
        (self.parent, self.name, isPinned) = (parent, name, parent == nil)
    }
    var isDirectory: Bool { key.kind == FileKind.directory }
    var isRegular: Bool { key.kind == FileKind.regular }
    var isPlain: Bool { FileKind.isPlain(key.kind) }
    var isSymbolicLink: Bool { key.kind == FileKind.symbolicLink }
}

/// A directory of the host that is shared.
final class Share: Sendable {
    let name: [CChar]
    let isReadOnly: Bool
    let root: Descriptor
    init(name: [CChar], isReadOnly: Bool, root: Descriptor) { (self.name, self.isReadOnly, self.root) = (name, isReadOnly, root) }
}

/// All nodes of a file server. Any thread.
final class NodeTable: Sendable {
    private struct State {
        var byID: [UInt64: Node] = [:]
        var byKey: [Node.Key: Node] = [:]
        var nextID: UInt64 = 2
        /// Nodes in the order they were opened; some are closed by now.
        var opened: [Node] = []
        var openCount = 0
        var devices: [UInt64: UInt64] = [:]
        /// Who owns what, as the guest sees it, where that cannot be kept beside the file, or not be read there.
        var owners: [Node.Key: Node.Owner] = [:]
    }
    private static let mostOwners = 32768
    private let state = Mutex(State())
    private let mostOpen: Int

    /// - Parameter mostOpen: how many descriptors it may hold.
    init(mostOpen: Int) { self.mostOpen = mostOpen }

    // Descriptors are closed outside the lock: the last one of a removed file is when the host's file system frees it, which takes a
    // while, and every request asks for a node.

    func clear() {
        let old = state.withLock { state in
            var new = State()
            new.owners = state.owners
            let old = (state.byID, state.opened)
            state = new
            return old
        }
        withExtendedLifetime(old) {}
    }

    /// The node of a file that was just opened with O_PATH, with one more lookup.
    func insert(_ descriptor: Descriptor, _ status: stat, _ share: Share, parent: Node?, name: [CChar], id: UInt64? = nil) -> Node {
        let key = Node.Key(status)
        let (node, closed) = state.withLock { state in
            if let known = state.byKey[key], known.share === share {
                known.lookups += 1
                if let parent, known.parent != nil { (known.parent, known.name) = (parent, name) }
                return (known, known.descriptor == nil ? reopen(known, descriptor, &state) : [])
            }
            let number = id ?? state.nextID
            if id == nil { state.nextID += 1 }
            let node = Node(number, key, share, descriptor, parent: parent, name: name)
            node.lookups = 1
            state.byID[number] = node
            state.byKey[key] = node
            return (node, reopen(node, descriptor, &state))
        }
        withExtendedLifetime(closed) {}
        return node
    }
    /// - Returns: what is to be closed for that.
    private func reopen(_ node: Node, _ descriptor: Descriptor, _ state: inout State) -> [Descriptor] {
        node.descriptor = descriptor
        state.opened.append(node)
        state.openCount += 1
        guard state.openCount > mostOpen else { return [] }
        var closed: [Descriptor] = []
        // The older half gives way, but for what has no name by which it could be found again.
        var kept: [Node] = []
        for (index, old) in state.opened.enumerated() {
            guard let open = old.descriptor else { continue }
            if index < state.opened.count / 2, !old.isPinned, old !== node {
                old.descriptor = nil
                closed.append(open)
            } else {
                kept.append(old)
            }
        }
        // A guest that keeps so many files without names loses the oldest of them.
        while kept.count > mostOpen {
            if let open = kept[0].descriptor { closed.append(open) }
            kept[0].descriptor = nil
            kept.removeFirst()
        }
        state.opened = kept
        state.openCount = kept.count
        return closed
    }
    /// What was said of a file with `keep`.
    func owner(_ status: stat) -> Node.Owner? { state.withLock { $0.owners[Node.Key(status)] } }
    /// Remembers who owns a file as long as the machine runs.
    func keep(_ owner: Node.Owner, _ status: stat) {
        state.withLock { state in
            // Those whose files the guest has forgotten are the ones to lose.
            if state.owners.count >= Self.mostOwners { state.owners = state.owners.filter { state.byKey[$0.key] != nil } }
            if state.owners.count >= Self.mostOwners { state.owners = [:] }
            state.owners[Node.Key(status)] = owner
        }
    }
    /// Nobody in particular owns what was just made.
    func drop(_ status: stat) { state.withLock { $0.owners[Node.Key(status)] = nil } }
    /// Whether the guest knows the file by a share that it may change.
    func isWritable(_ status: stat) -> Bool { state.withLock { $0.byKey[Node.Key(status)].map { !$0.share.isReadOnly } ?? false } }
    func node(_ id: UInt64) throws(FuseError) -> Node {
        guard let node = state.withLock({ $0.byID[id] }) else { throw FuseError(ESTALE) }
        return node
    }
    /// The node's O_PATH descriptor, opened again where it was closed; ESTALE when the host has put something else there.
    func descriptor(_ node: Node) throws(FuseError) -> Descriptor {
        let (open, parent, name) = state.withLock { _ in (node.descriptor, node.parent, node.name) }
        if let open { return open }
        guard let parent else { throw FuseError(ESTALE) }
        let found = try Self.open(try descriptor(parent), name)
        guard Node.Key(try Self.status(found)) == node.key else { throw FuseError(ESTALE) }
        let closed = state.withLock { state in node.descriptor == nil ? reopen(node, found, &state) : [] }
        withExtendedLifetime(closed) {}
        return found
    }
    /// All files that have a name, and their numbers by key.
    func list(_ index: (Share) -> Int?) -> (files: [FileServerImage.File], next: UInt64, byKey: [Node.Key: UInt64]) {
        state.withLock { state in
            var files: [FileServerImage.File] = []
            for node in state.byID.values where node.parent == nil || !node.isPinned {
                guard let share = index(node.share) else { continue }
                files.append(
                    .init(
                        number: node.id, parent: node.parent?.id, name: node.name.filter { $0 != 0 }.map { UInt8(bitPattern: $0) }, share: share, inode: node.key.inode,
                        kind: node.key.kind, lookups: node.lookups, owner: state.owners[node.key].map { [$0.user, $0.group] }))
            }
            return (files.sorted { $0.number < $1.number }, state.nextID, state.byKey.mapValues(\.id))
        }
    }
    /// Finds files again, directories before what is in them; who is not there any more, or is another, stays away.
    func restore(_ image: FileServerImage, _ shares: [Share]) {
        let files = Dictionary(image.files.map { ($0.number, $0) }) { first, _ in first }
        var found: [UInt64: Node] = [:]
        for file in image.files {
            // From the topmost directory that is not found yet downwards; a circle ends at what has been seen.
            var path: [FileServerImage.File] = []
            var next: FileServerImage.File? = file
            var seen: Set<UInt64> = []
            while let entry = next, found[entry.number] == nil, seen.insert(entry.number).inserted {
                path.append(entry)
                next = entry.parent.flatMap { files[$0] }
            }
            for entry in path.reversed() { found[entry.number] = find(entry, found, shares) }
        }
        state.withLock { $0.nextID = max($0.nextID, image.nextFile) }
    }
    private func find(_ file: FileServerImage.File, _ found: [UInt64: Node], _ shares: [Share]) -> Node? {
        guard shares.indices.contains(file.share), !file.name.contains(0), !file.name.contains(0x2F) else { return nil }
        let share = shares[file.share]
        let name = file.name.map { CChar(bitPattern: $0) } + [0]
        let parent = file.parent.flatMap { found[$0] }
        guard (parent != nil) == (file.parent != nil), parent == nil || parent?.share === share else { return nil }
        let descriptor: Descriptor
        if let parent {
            guard file.number != Fuse.rootNode, let opened = try? Self.open(try self.descriptor(parent), name) else { return nil }
            descriptor = opened
        } else {
            descriptor = share.root
        }
        guard let status = try? Self.status(descriptor), UInt64(status.st_ino) == file.inode, status.st_mode & FileKind.mask == file.kind else { return nil }
        let node = insert(descriptor, status, share, parent: parent, name: parent == nil ? [] : name, id: file.number)
        guard node.id == file.number else { return nil }
        state.withLock { state in
            node.lookups = max(file.lookups, 1)
            if let owner = file.owner, owner.count == 2 { state.owners[node.key] = Node.Owner(user: owner[0], group: owner[1]) }
        }
        return node
    }
    func forget(_ id: UInt64, _ count: UInt64) {
        guard id != Fuse.rootNode else { return }
        let gone = state.withLock { state -> (Node, Descriptor?)? in
            guard let node = state.byID[id] else { return nil }
            node.lookups -= min(count, node.lookups)
            guard node.lookups == 0 else { return nil }
            state.byID[id] = nil
            if state.byKey[node.key] === node { state.byKey[node.key] = nil }
            let open = node.descriptor
            if open != nil { state.openCount -= 1 }
            node.descriptor = nil
            // What is gone leaves the list by and by.
            if state.opened.count > 2 * state.openCount + 64 { state.opened.removeAll { $0.descriptor == nil } }
            return (node, open)
        }
        withExtendedLifetime(gone) {}
    }
    /// Before a name goes away: the file that it names must stay reachable for whoever has it open.
    func pin(_ parent: Descriptor, _ name: [CChar]) {
        guard let found = try? Self.open(parent, name), let status = try? Self.status(found) else { return }
        let closed = state.withLock { state -> [Descriptor] in
            if status.st_nlink <= 1 { state.owners[Node.Key(status)] = nil }
            guard let node = state.byKey[Node.Key(status)] else { return [] }
            if status.st_nlink <= 1 || node.isDirectory { node.isPinned = true }
            return node.descriptor == nil ? reopen(node, found, &state) : []
        }
        withExtendedLifetime(closed) {}
    }
    /// A file has another name from now on.
    func moved(_ descriptor: Descriptor, to parent: Node, _ name: [CChar]) {
        guard let found = try? Self.open(descriptor, name), let status = try? Self.status(found) else { return }
        state.withLock { state in
            guard let node = state.byKey[Node.Key(status)], node.parent != nil else { return }
            (node.parent, node.name, node.isPinned) = (parent, name, false)
        }
    }
    /// Inode numbers of several devices, kept apart.
    func inode(_ status: stat) -> UInt64 {
        let device = UInt64(status.st_dev)
        let index = state.withLock { state -> UInt64 in
            if let index = state.devices[device] { return index }
            let index = UInt64(state.devices.count)
            state.devices[device] = index
            return index
        }
        return UInt64(status.st_ino) ^ index << 48
    }

    /// One component, never through a symbolic link, never out of the directory.
    static func open(_ directory: Descriptor, _ name: [CChar], flags: Int32 = O_PATH | O_NOFOLLOW, mode: UInt32 = 0) throws(FuseError) -> Descriptor {
        let fd = clinux_open_beneath(directory.fd, name, UInt64(UInt32(bitPattern: flags | O_CLOEXEC)), UInt64(mode))
        guard fd >= 0 else { throw FuseError(errno) }
        return Descriptor(fd)
    }
    static func status(_ descriptor: Descriptor) throws(FuseError) -> stat {
        var status = stat()
        guard fstat(descriptor.fd, &status) == 0 else { throw FuseError(errno) }
        return status
    }
}
