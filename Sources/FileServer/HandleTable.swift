import Glibc
import Synchronization

/// A file or directory that the guest has open.
final class OpenFile: Sendable {
    let descriptor: Descriptor
    let isWritable: Bool
    /// How many capabilities had been set when one of this file was last looked for.
    let capabilitiesSeen: Atomic<UInt64>
    /// One reader at a time: a directory's place is its descriptor's.
    let lock = Mutex(())
    init(_ descriptor: Descriptor, isWritable: Bool, capabilitiesSeen: UInt64 = .max) {
        (self.descriptor, self.isWritable) = (descriptor, isWritable)
        self.capabilitiesSeen = Atomic(capabilitiesSeen)
    }
}

/// What the guest has open, by the numbers it was given. Any thread.
final class HandleTable: Sendable {
    private struct State {
        var files: [UInt64: OpenFile] = [:]
        var next: UInt64 = 1
    }
    private let state = Mutex(State())
    private let mostOpen: Int

    /// - Parameter mostOpen: how many descriptors it may hold.
    init(mostOpen: Int) { self.mostOpen = mostOpen }

    /// Throws ENFILE when the guest has too much open.
    func insert(_ file: OpenFile) throws(FuseError) -> UInt64 {
        let number = state.withLock { state -> UInt64? in
            guard state.files.count < mostOpen else { return nil }
            let number = state.next
            state.next += 1
            state.files[number] = file
            return number
        }
        guard let number else { throw FuseError(ENFILE) }
        return number
    }
    func file(_ number: UInt64) throws(FuseError) -> OpenFile {
        guard let file = state.withLock({ $0.files[number] }) else { throw FuseError(EBADF) }
        return file
    }
    /// Closes it, outside the lock, when nobody else has it.
    func remove(_ number: UInt64) { _ = state.withLock { $0.files.removeValue(forKey: number) } }
    func list() -> (files: [(UInt64, OpenFile)], next: UInt64) { state.withLock { ($0.files.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }, $0.next) } }
    func restore(_ files: [UInt64: OpenFile], next: UInt64) {
        state.withLock { state in
            state.files = files
            state.next = max(next, (files.keys.max() ?? 0) + 1)
        }
    }
    func clear() {
        // Files are closed outside the lock.
        let old = state.withLock { state in
            let old = state.files
            state = State()
            return old
        }
        withExtendedLifetime(old) {}
    }
}
