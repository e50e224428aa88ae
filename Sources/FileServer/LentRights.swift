import Glibc
import Synchronization

/// What the guest's root may do although a file's mode says otherwise, when this process is an ordinary user's: it owns the files, so
/// their modes give it the right for as long as one request takes. The guest has asked its own permissions before (FUSE's
/// `default_permissions`), and could change the mode by itself.
///
/// Any thread; one lends at a time. Nobody is shown a mode that is only lent.
final class LentRights: Sendable {
    private struct Loan {
        let descriptor: Descriptor
        let key: Node.Key
        let mode: UInt32
        let lent: UInt32
    }
    private let lock = Mutex(())
    /// Only touched under `lock`.
    private nonisolated(unsafe) var loans: [Loan] = []
    /// Odd while something is lent; and by which thread.
    private let turn = Atomic<UInt64>(0)
    private let lender = Atomic<UInt>(0)

    /// Runs `body` while `user` has all of an owner's rights to its own files among those that `find` names. What a request that has lent
    /// already lends besides is given back with that.
    /// - Parameter find: nil behind the last; opens each when those before it are lent.
    /// - Returns: nil when no right was missing.
    func lend<R: Sendable>(of user: UInt32, _ find: (Int) -> Descriptor?, _ body: () throws(FuseError) -> R) throws(FuseError) -> R? {
        if isLender { return lendAll(of: user, find) ? try body() : nil }
        return try lock.withLock { _ throws(FuseError) in
            lender.store(Self.thread, ordering: .relaxed)
            turn.add(1, ordering: .sequentiallyConsistent)
            defer {
                giveBack()
                turn.add(1, ordering: .sequentiallyConsistent)
                lender.store(0, ordering: .relaxed)
            }
            return lendAll(of: user, find) ? try body() : nil
        }
    }
    /// The same for one file.
    func lend<R: Sendable>(of user: UInt32, _ descriptor: Descriptor, _ body: () throws(FuseError) -> R) throws(FuseError) -> R? {
        try lend(of: user, { $0 == 0 ? descriptor : nil }, body)
    }
    private func lendAll(of user: UInt32, _ find: (Int) -> Descriptor?) -> Bool {
        let before = loans.count
        var index = 0
        while let descriptor = find(index) {
            lend(of: user, descriptor)
            index += 1
        }
        return loans.count > before
    }
    private func lend(of user: UInt32, _ descriptor: Descriptor) {
        guard let status = try? NodeTable.status(descriptor), status.st_uid == user, !loans.contains(where: { $0.key == Node.Key(status) }) else { return }
        guard FileKind.isPlain(status.st_mode) else { return }
        let mode = status.st_mode & 0o7777
        let lent = mode | (status.st_mode & FileKind.mask == FileKind.directory ? 0o700 : 0o600)
        // chmod(2) takes the set-group-ID bit from a file of a group that is not ours.
        guard lent != mode, mode & 0o2000 == 0 || status.st_gid == getegid(), chmod(descriptor.path, lent) == 0 else { return }
        loans.append(Loan(descriptor: descriptor, key: Node.Key(status), mode: mode, lent: lent))
    }
    private func giveBack() {
        // A mode that has changed meanwhile is somebody's wish.
        for loan in loans where (try? NodeTable.status(loan.descriptor).st_mode & 0o7777) == loan.lent { _ = chmod(loan.descriptor.path, loan.mode) }
        loans = []
    }
    /// As chmod(2), for good, whatever is lent.
    func setMode(_ descriptor: Descriptor, _ mode: UInt32) -> Int32 {
        guard isLender else { return lock.withLock { _ in chmod(descriptor.path, mode) } }
        if let status = try? NodeTable.status(descriptor) { loans.removeAll { $0.key == Node.Key(status) } }
        return chmod(descriptor.path, mode)
    }

    /// As `NodeTable.status`, but for what is lent.
    func status(_ descriptor: Descriptor) throws(FuseError) -> stat {
        if isLender {
            var status = try NodeTable.status(descriptor)
            if let loan = loans.first(where: { $0.key == Node.Key(status) && $0.lent == status.st_mode & 0o7777 }) {
                status.st_mode = status.st_mode & FileKind.mask | loan.mode
            }
            return status
        }
        let before = turn.load(ordering: .sequentiallyConsistent)
        if before & 1 == 0 {
            let status = try NodeTable.status(descriptor)
            if turn.load(ordering: .sequentiallyConsistent) == before { return status }
        }
        return try lock.withLock { _ throws(FuseError) in try NodeTable.status(descriptor) }
    }
    private var isLender: Bool { lender.load(ordering: .relaxed) == Self.thread }
    private static var thread: UInt { UInt(pthread_self()) }
}
