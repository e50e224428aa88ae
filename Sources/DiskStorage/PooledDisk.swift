import Glibc

/// A disk whose calls wait, as one that answers later: what can be had at once is done at once, and what waits for the medium, by
/// threads, so that a queue's other requests go on meanwhile.
package final class PooledDisk: ChannelBackend {
    private let disk: any BlockBackend
    package init(_ disk: any BlockBackend) { self.disk = disk }

    package var byteCount: UInt64 { disk.byteCount }
    package var isReadOnly: Bool { disk.isReadOnly }
    package var blockSize: Int { disk.blockSize }
    package func prepare() throws { try disk.prepare() }
    package func finish() { disk.finish() }
    package var channelLimit: Int { Int.max }
    package func makeChannel(capacity: Int, stop: Int32) -> any BlockChannel { PooledChannel(disk, capacity: capacity) }
    /// It never does.
    package func onResize(_ changed: (@Sendable () -> Void)?) {}
}

/// A channel to a disk whose calls wait.
final class PooledChannel: BlockChannel {
    private let disk: any BlockBackend
    private let threads: DiskThreads?
    /// Ended on this thread, and not told yet.
    private var ended: [(tag: Int, result: Int32)] = []
    /// With the threads.
    private var away = 0

    init(_ disk: any BlockBackend, capacity: Int) {
        self.disk = disk
        threads = try? DiskThreads(disk)
        ended.reserveCapacity(capacity)
    }
    var wait: (descriptor: Int32, events: Int16, milliseconds: Int32) { (threads?.finished.fileDescriptor ?? -1, Int16(POLLIN), -1) }

    func submit(_ operation: DiskOperation, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int, tag: Int) {
        var waits = disk.waits(operation.kind)
        if operation.kind == .read, !waits {
            switch disk.readPromptly(at: operation.offset, vectors, count, operation.count) {
            case .done: return ended.append((tag, 0))
            case .waits: waits = true
            case .unknown: break
            }
        }
        if waits, let threads, threads.add(operation, UnsafeBufferPointer(start: vectors, count: count), tag) {
            away += 1
        } else {
            ended.append((tag, disk.perform(operation, vectors, count)))
        }
    }
    func advance(_ tell: (_ tag: Int, _ result: Int32) -> Void) {
        // Who is told may submit what ends at once.
        var index = 0
        while index < ended.count {
            let (tag, result) = ended[index]
            tell(tag, result)
            index += 1
        }
        ended.removeAll(keepingCapacity: true)
        guard away > 0, let threads else { return }
        for (tag, result) in threads.takeEnded() {
            away -= 1
            tell(tag, result)
        }
    }
    func close() { threads?.close() }
}

extension BlockBackend {
    /// Returns 0 or an errno. `vectors` may be changed.
    func perform(_ operation: DiskOperation, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 {
        switch operation.kind {
        case .read: read(at: operation.offset, vectors, count)
        case .write: write(at: operation.offset, vectors, count)
        case .flush: flush()
        case .discard: operation.count == 0 ? 0 : discard(at: operation.offset, count: UInt64(operation.count))
        case .writeZeroes(let mayUnmap): operation.count == 0 ? 0 : writeZeroes(at: operation.offset, count: UInt64(operation.count), mayUnmap: mayUnmap)
        }
    }
}
