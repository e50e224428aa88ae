import Glibc

/// What is to be done with a stretch of a disk.
package struct DiskOperation {
    package enum Kind: Equatable, Sendable { case read, write, flush, discard, writeZeroes(mayUnmap: Bool) }
    package let kind: Kind
    package let offset: UInt64
    /// Bytes; the same as in the vectors of a read or a write.
    package let count: Int
    package init(_ kind: Kind, offset: UInt64 = 0, count: Int = 0) {
        self.kind = kind
        self.offset = offset
        self.count = count
    }
}

/// A way to a disk that answers later: many operations are under way at a time. Belongs to one thread.
package protocol BlockChannel: AnyObject {
    /// What to wait for besides new operations: a descriptor (-1 for none), the events of it, and how long at most (-1 for ever).
    var wait: (descriptor: Int32, events: Int16, milliseconds: Int32) { get }
    /// - Parameters:
    ///   - vectors: where the bytes come from or go to, valid until the operation has ended; copied, and may be changed.
    ///   - tag: below the channel's capacity, and of no other operation under way.
    func submit(_ operation: DiskOperation, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int, tag: Int)
    /// Does what can be done without waiting, and tells which operations have ended, with 0 or an errno.
    func advance(_ ended: (_ tag: Int, _ result: Int32) -> Void)
    /// Lets go of everything under way: no memory is touched afterwards.
    func close()
}

/// A disk that is reached through channels rather than by calls that wait.
package protocol ChannelBackend: BlockStorage {
    /// How many channels may be used at a time.
    var channelLimit: Int { get }
    /// - Parameters:
    ///   - capacity: operations under way at a time.
    ///   - stop: readable when the thread is to end; nothing waits longer than that.
    func makeChannel(capacity: Int, stop: Int32) -> any BlockChannel
    /// Told when the size has changed.
    func onResize(_ changed: (@Sendable () -> Void)?)
}
