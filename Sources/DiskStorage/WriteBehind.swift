import CLinux
import Synchronization

/// Has the host begin to write a long run of writes to its medium while the run goes on, so that the flush behind it finds little left
/// to do. Any thread.
final class WriteBehind: Sendable {
    /// Bytes of a run for each call to the host.
    private static let piece: UInt64 = 4 << 20
    /// Smaller writes are no run: they may well be written again.
    private static let smallest = 64 << 10
    /// Drivers cut a request into several, and give them in any order, or to several queues: a write this near belongs to the run.
    private static let disorder: UInt64 = 2 << 20
    /// What was written lately and the host was not told of.
    private let run = Mutex<Range<UInt64>>(0..<0)

    /// To be called after a write that went into the host's page cache.
    func wrote(_ descriptor: Int32, at offset: UInt64, _ count: Int) {
        guard count >= Self.smallest, offset < UInt64(Int64.max) - UInt64(count) else { return }
        let end = offset + UInt64(count)
        let due = run.withLock { run -> Range<UInt64>? in
            let isNear = end + Self.disorder >= run.lowerBound && offset <= run.upperBound + Self.disorder
            run = isNear ? min(run.lowerBound, offset)..<max(run.upperBound, end) : offset..<end
            guard run.upperBound - run.lowerBound >= Self.piece else { return nil }
            defer { run = run.upperBound..<run.upperBound }
            return run
        }
        // Advice: the flush does what this does not.
        if let due { clinux_begin_writing(descriptor, Int64(due.lowerBound), Int64(due.upperBound - due.lowerBound)) }
    }
}
