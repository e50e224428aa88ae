import Glibc
import Synchronization

/// A file or directory that the guest has open.
final class OpenFile: Sendable {
    let descriptor: Descriptor
    let isWritable: Bool
    /// One reader at a time: a directory's place is its descriptor's.
    let lock = Mutex(())
    init(_ descriptor: Descriptor, isWritable: Bool) { (self.descriptor, self.isWritable) = (descriptor, isWritable) }
}

/// What the guest has open, by the numbers it was given. Any thread.
final class HandleTable: Sendable {
    private struct State {
        var files: [UInt64: OpenFile] = [:]
        var next: UInt64 = 1
    }
    private let state = Mutex(State())

    func insert(_ file: OpenFile) -> UInt64 {
        state.withLock { state in
            let number = state.next
            state.next += 1
            state.files[number] = file
            return number
        }
    }
    func file(_ number: UInt64) throws(FuseError) -> OpenFile {
        guard let file = state.withLock({ $0.files[number] }) else { throw FuseError(EBADF) }
        return file
    }
    func remove(_ number: UInt64) { _ = state.withLock { $0.files.removeValue(forKey: number) } }
    func clear() { state.withLock { $0 = State() } }
}
