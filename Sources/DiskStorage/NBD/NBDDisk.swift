import Glibc
import LinuxSystem
import Synchronization

/// An export of an NBD server as a disk. Any thread; connected by `prepare`, then used through its channels.
package final class NBDDisk: ChannelBackend {
    package enum Event: Sendable {
        /// A connection is made, for the first time or again.
        case connected
        /// The disk is dead.
        case failed(NBDError)
    }
    package struct Options: Sendable {
        /// Milliseconds that an answer, or a server that went away, is waited for.
        package var timeout = 30_000
        package var isForcedReadOnly = false
        /// Whether a guest's flush reaches the server.
        package var flushes = true
        package init() {}
    }
    package let address: NBDAddress
    package let options: Options
    private struct State {
        var spare: Spare?
        var failure: NBDError?
        var resized: (@Sendable () -> Void)?
    }
    /// A connection on its way from one thread to another.
    private struct Spare: @unchecked Sendable { let connection: NBDConnection }
    private let state = Mutex(State())
    // Asked at each request.
    private let size = Atomic<UInt64>(0)
    private let minimumBlock = Atomic<UInt32>(1)
    private let flags = Atomic<UInt16>(0)
    private let events: @Sendable (Event) -> Void

    package init(_ address: NBDAddress, options: Options = Options(), events: @escaping @Sendable (Event) -> Void = { _ in }) {
        self.address = address
        self.options = options
        self.events = events
    }
    /// Connects for the first time, so that the size is known; waits for the server's answer.
    package func prepare() throws {
        let connection = try NBDConnection(address, milliseconds: min(options.timeout, 10_000), stop: -1)
        let export = connection.export
        size.store(export.size, ordering: .relaxed)
        minimumBlock.store(export.minimumBlock, ordering: .relaxed)
        flags.store(export.flags.rawValue, ordering: .relaxed)
        let spare = Spare(connection: connection)
        state.withLock { state in
            state.spare = spare
            state.failure = nil
        }
        events(.connected)
    }

    private var currentFlags: NBD.Flags { NBD.Flags(rawValue: flags.load(ordering: .relaxed)) }
    package var byteCount: UInt64 { size.load(ordering: .relaxed) }
    package var isReadOnly: Bool { options.isForcedReadOnly || currentFlags.contains(.readOnly) }
    package var blockSize: Int { max(512, Int(minimumBlock.load(ordering: .relaxed))) }
    package var channelLimit: Int { currentFlags.contains(.multipleConnections) ? 4 : 1 }
    package func onResize(_ changed: (@Sendable () -> Void)?) { state.withLock { $0.resized = changed } }
    package func makeChannel(capacity: Int, stop: Int32) -> any BlockChannel { NBDChannel(self, capacity: capacity, stop: stop) }

    // MARK: for channels

    /// A connection: the one that is left from `connect`, or a new one.
    func takeConnection(milliseconds: Int, stop: Int32) throws(NBDError) -> NBDConnection {
        let (spare, failure) = state.withLock { state in
            defer { state.spare = nil }
            return (state.spare, state.failure)
        }
        if let failure { throw failure }
        if let spare { return spare.connection }
        let connection = try NBDConnection(address, milliseconds: milliseconds, stop: stop)
        let export = connection.export
        guard export.size >= byteCount else { throw NBDError("\(address) has become smaller") }
        guard !export.flags.contains(.readOnly) || isReadOnly else { throw NBDError("\(address) has become read-only") }
        guard export.minimumBlock <= blockSize else { throw NBDError("\(address) takes larger blocks only than before") }
        let grown = size.exchange(export.size, ordering: .relaxed) < export.size
        let resized = grown ? state.withLock { $0.resized } : nil
        resized?()
        events(.connected)
        return connection
    }
    /// The disk is dead, for all channels.
    func fail(_ error: NBDError) {
        let isFirst = state.withLock { state in
            defer { if state.failure == nil { state.failure = error } }
            return state.failure == nil
        }
        if isFirst { events(.failed(error)) }
    }
    var failure: NBDError? { state.withLock { $0.failure } }
}
