import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// What a file server shows: one directory as its root, or several under names.
package struct FileShare: Sendable {
    package struct Directory: Sendable {
        package var path: String
        package var isReadOnly: Bool
        package init(path: String, isReadOnly: Bool) { (self.path, self.isReadOnly) = (path, isReadOnly) }
    }
    package enum Root: Sendable {
        case single(Directory)
        /// A root that holds nothing but these.
        case several([String: Directory])
    }
    package var root: Root
    package init(_ root: Root) { self.root = root }
    /// Shows nothing.
    package static let empty = FileShare(.several([:]))
}

/// Why a directory cannot be shared: a sentence for the user.
package struct FileShareError: Error, CustomStringConvertible, Sendable {
    package let description: String
}

/// Answers FUSE requests from directories of the host. Any number of threads, each with a `Worker` of its own.
///
/// Nothing outside the shared directories is ever opened: names are single components, opened with openat2(RESOLVE_BENEATH) from
/// descriptors of directories, symbolic links are the guest's to follow, and only regular files and directories are opened for
/// more than their attributes.
///
/// Who owns what: as root, users and groups are the guest's own. As anybody else, files of that user belong to the guest's root,
/// what the guest makes belongs to that user, and changes of owner are kept in the extended attribute `user.vz.owner`, those of links, pipes
/// and sockets, which can have none, in memory. What modes deny, and the guest's root may do nevertheless, it gets lent (`LentRights`).
package final class FileServer: Sendable {
    /// How long the guest believes what it was told of a name or of attributes: then it sees what the host has changed.
    static let validSeconds: UInt64 = 1

    let nodes: NodeTable
    let handles: HandleTable
    let isRoot = geteuid() == 0
    let owner = (user: geteuid(), group: getegid())
    let rights = LentRights()
    /// How often the guest has given a file capabilities.
    let capabilitiesMade = Atomic<UInt64>(0)
    private struct State {
        var shares: [Share] = []
        /// The one that is the root; nil when there are several, or none.
        var single: Share?
        var window: DirectWindow?
    }
    private let state = Mutex(State())

    /// - Parameter mostOpen: how many descriptors it may hold for files that the guest knows; nil: a quarter of what the process has.
    package init(_ share: FileShare, mostOpen: Int? = nil) throws {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        nodes = NodeTable(mostOpen: mostOpen ?? Int(min(limit.rlim_cur / 4, 16384)))
        handles = HandleTable(mostOpen: Int(min(limit.rlim_cur / 4, 65536)))
        try replace(share)
    }

    /// Shows something else from now on; what the guest had open is stale, but for files.
    package func replace(_ share: FileShare) throws {
        var new = State()
        switch share.root {
        case .single(let directory):
            let share = try Self.open(directory, name: "")
            new.shares = [share]
            new.single = share
        case .several(let directories):
            new.shares = try directories.sorted { $0.key < $1.key }.map { try Self.open($0.value, name: $0.key) }
        }
        state.withLock { state in
            new.window = state.window
            state = new
        }
        window()?.forgetNodes()
        forgetFiles()
    }
    /// Files can be mapped there from now on. Before the guest knows anything of this server.
    package func show(_ window: DirectWindow) { state.withLock { $0.window = window } }
    /// Unless there is another one already.
    package func hide(_ window: DirectWindow) { state.withLock { if $0.window === window { $0.window = nil } } }
    func window() -> DirectWindow? { state.withLock { $0.window } }
    private static func open(_ directory: FileShare.Directory, name: String) throws -> Share {
        let fd = clinux_open(directory.path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0)
        guard fd >= 0 else { throw FileShareError(description: "cannot share \(directory.path): \(String(cString: strerror(errno)).lowercased())") }
        return Share(name: name.utf8CString.map { $0 }, isReadOnly: directory.isReadOnly, root: Descriptor(fd))
    }
    /// Forgets what the guest knew: its driver starts anew.
    package func reset() {
        window()?.clear()
        forgetFiles()
    }
    private func forgetFiles() {
        nodes.clear()
        handles.clear()
        guard let single = state.withLock({ $0.single }), let status = try? NodeTable.status(single.root) else { return }
        _ = nodes.insert(single.root, status, single, parent: nil, name: [], id: Fuse.rootNode)
    }
    var shares: [Share] { state.withLock { $0.shares } }
    /// Whether the root is no directory of the host's.
    var hasListedRoot: Bool { state.withLock { $0.single == nil } }

    /// One thread's part: the buffers that a request needs.
    package final class Worker {
        static let requestCapacity = 128 << 10
        let server: FileServer
        let reply = FuseReply()
        private let request = UnsafeMutableRawPointer.allocate(byteCount: requestCapacity + 1, alignment: 16)
        static let partCapacity = 1024  // IOV_MAX
        let parts = UnsafeMutablePointer<iovec>.allocate(capacity: partCapacity)

        /// - Important: on the thread that uses it: files are made with the modes that the guest says, whatever this process's
        ///   umask is.
        package init(_ server: FileServer) {
            self.server = server
            clinux_private_umask()
        }
        deinit {
            request.deallocate()
            parts.deallocate()
        }

        /// Answers one request. Returns the bytes written to `answer`; 0 for requests that have no answer.
        package func handle(_ question: UnsafePointer<iovec>, _ questions: Int, _ answer: UnsafePointer<iovec>, _ answers: Int) -> Int {
            let (question, answer) = (MemoryPieces(pieces: question, count: questions), MemoryPieces(pieces: answer, count: answers))
            let count = question.copy(from: 0, limit: Self.requestCapacity, to: request)
            guard count >= Fuse.requestHeader else { return 0 }
            let fuse = FuseRequest(bytes: request, count: count, pieces: question, total: question.total)
            let room = answer.total
            reply.clear()
            let outcome: Outcome
            do throws(FuseError) { outcome = try server.answer(fuse, self, Answer(pieces: answer, room: room)) } catch {
                outcome = .error(error.code)
            }
            return finish(outcome, fuse.unique, answer, room)
        }
        private func finish(_ outcome: Outcome, _ unique: UInt64, _ answer: MemoryPieces, _ room: Int) -> Int {
            var (code, count, isInPlace) = (0 as Int32, 0, false)
            switch outcome {
            case .none: return 0
            case .error(let error): code = error
            case .reply: count = reply.count
            case .inPlace(let size): (count, isInPlace) = (size, true)
            }
            guard room >= Fuse.replyHeader else { return 0 }
            if !isInPlace, count > room - Fuse.replyHeader { (code, count) = (ERANGE, 0) }
            var header = (UInt32(truncatingIfNeeded: Fuse.replyHeader + count).littleEndian, (-code).littleEndian, unique.littleEndian)
            withUnsafeBytes(of: &header) { if let base = $0.baseAddress { answer.write(base, Fuse.replyHeader, at: 0) } }
            if !isInPlace { answer.write(reply.start, count, at: Fuse.replyHeader) }
            return Fuse.replyHeader + count
        }
    }
    enum Outcome: Sendable {
        case none
        case error(Int32)
        /// What is in the worker's `reply`.
        case reply
        /// So many bytes are in the answer already, behind its header.
        case inPlace(Int)
    }
    /// Where the answer goes in guest memory.
    struct Answer {
        let pieces: MemoryPieces
        let room: Int
    }
}
