import DiskStorage
import Glibc
import GuestMemory
import LinuxSystem
import Synchronization

/// Snapshots of a machine that goes on: its memory, devices and disks of one instant.
///
/// At the instant, the memory file is mapped anew, copy-on-write, so that the guest goes on in pages of its own and the file stays as
/// it was; and each disk gets a new layer. Writing follows, on a thread of its own. Then the guest's pages are brought back into the
/// memory file, piece by piece.
extension Machine {
    /// What is asked of the control thread: the instant.
    struct FreezeRequest: Sendable {
        let branches: [OverlayBranch]
        let owner: [String: [UInt8]]
        let answer: @Sendable (Result<Instant, any Error>) -> Void
    }
    /// What a machine was at one instant.
    struct Instant: Sendable {
        let state: MachineState
        let memory: FrozenMemory
        /// How long the machine did not run, in nanoseconds.
        let pause: UInt64
    }

    /// Takes a snapshot; the machine goes on, or stays paused.
    /// - Parameters:
    ///   - path: of the saved state, which is as `save` writes it.
    ///   - disks: a name for what each disk that can be written has, in the disks' order; on the disk's file system.
    ///   - progress: from 0 to 1, on a thread of the snapshot's.
    ///   - completion: called once, when all is permanent or with what went wrong, with how long the machine did not run, in
    ///     nanoseconds. After a failure, a disk may have gone on in a new layer all the same.
    package func snapshot(
        to path: String, disks: [String], owner: [String: [UInt8]], encode: @escaping @Sendable (MachineState) throws -> [UInt8],
        progress: @escaping @Sendable (Double) -> Void, _ completion: @escaping @Sendable (Result<UInt64, any Error>) -> Void
    ) {
        let isFirst = shared.withLock { shared in
            defer { shared.isTakingSnapshot = true }
            return !shared.isTakingSnapshot
        }
        guard isFirst else { return completion(.failure(SavedStateError(.system, "a snapshot of the machine is being taken already"))) }
        do throws(SystemError) {
            _ = try HostThread(name: "vz-snapshot") { [self] in
                let result = Result { try takeSnapshot(path, disks, owner, encode, progress) }
                shared.withLock { $0.isTakingSnapshot = false }
                completion(result)
                post(.settle)
            }
        } catch {
            shared.withLock { $0.isTakingSnapshot = false }
            completion(.failure(error))
        }
    }
    private func takeSnapshot(
        _ path: String, _ names: [String], _ owner: [String: [UInt8]], _ encode: (MachineState) throws -> [UInt8], _ progress: (Double) -> Void
    ) throws -> UInt64 {
        let branches = try makeBranches(names)
        let instant: Instant
        do {
            for branch in branches { branch.prepare() }
            instant = try waitForInstant(branches, owner)
        } catch {
            for branch in branches { branch.abandon() }
            throw error
        }
        for branch in branches { try branch.complete() }
        try SavedStateFile.write(
            to: path, description: try encode(instant.state), memory: instant.memory.contents, used: instant.memory.usedRanges, progress: progress)
        return instant.pause
    }
    private func makeBranches(_ names: [String]) throws -> [OverlayBranch] {
        var disks: [OverlayDisk] = []
        for disk in shared.withLock({ $0.description.disks }) where !disk.storage.isReadOnly {
            guard let overlay = disk.storage as? OverlayDisk else {
                throw SavedStateError(.system, "it has a disk that is no overlay and can be written: such a disk cannot be kept as it is while the machine goes on")
            }
            disks.append(overlay)
        }
        guard disks.count == names.count else { throw SavedStateError(.system, "it has \(disks.count) disks to take a snapshot of, and \(names.count) were named") }
        var branches: [OverlayBranch] = []
        do { for (disk, name) in zip(disks, names) { branches.append(try OverlayBranch(disk, frozenPath: name)) } } catch {
            for branch in branches { branch.abandon() }
            throw error
        }
        return branches
    }
    private func waitForInstant(_ branches: [OverlayBranch], _ owner: [String: [UInt8]]) throws -> Instant {
        let answer = Answer(try EventFD())
        post(.freeze(FreezeRequest(branches: branches, owner: owner) { answer.give($0) }))
        return try answer.wait().get()
    }
    private final class Answer: Sendable {
        private let result = Mutex<Result<Instant, any Error>>(.failure(SavedStateError(.system, "the machine has stopped")))
        private let given: EventFD
        init(_ event: EventFD) { given = event }
        func give(_ value: Result<Instant, any Error>) {
            result.withLock { $0 = value }
            given.signal()
        }
        func wait() -> Result<Instant, any Error> {
            given.wait()
            return result.withLock { $0 }
        }
    }

    // MARK: on the control thread

    func freeze(_ board: Board, _ gate: Gate, _ request: FreezeRequest) {
        do {
            guard board.memory.isSettled else {
                // What a restore or an earlier snapshot left: a piece at a time, so that the guest runs in between.
                try settlePiece(board, gate)
                return post(.freeze(request))
            }
            let begin = monotonicNanoseconds()
            let instant = try whileQuiet(board, gate) {
                let state = try board.makeState(owner: request.owner)
                let memory = try board.memory.freeze()
                for branch in request.branches { branch.switchOver() }
                return (state, memory)
            }
            request.answer(.success(Instant(state: instant.0, memory: instant.1, pause: monotonicNanoseconds() - begin)))
        } catch { request.answer(.failure(error)) }
    }
    /// Where that fails, for want of memory, the guest goes on in the pages that it has; the next snapshot tries again.
    func settle(_ board: Board, _ gate: Gate) {
        guard !board.memory.isSettled, !shared.withLock({ $0.isTakingSnapshot }) else { return }
        guard (try? settlePiece(board, gate)) != nil else { return }
        post(.settle)
    }
    private func settlePiece(_ board: Board, _ gate: Gate) throws { _ = try whileQuiet(board, gate) { try board.memory.settle() } }
}
