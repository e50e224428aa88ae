#if os(Linux)
    import Foundation
    import Virtualization

    /// A point to which a named machine can go back: snapshots/N/{snapshot.json, state, disk0, disk1, …}.
    public struct Snapshot: Codable, Equatable, Sendable {
        public var number: Int
        public var name: String
        public var created: Date
        /// The snapshot that it came after.
        public var parent: Int?
        /// False while it is being taken, and after it was deleted: then only what other snapshots need of its disks is left.
        public var isComplete: Bool
        /// The overlays that the machine writes to; the snapshot's are disk0, disk1 and so on.
        public var disks: [String]
    }

    /// The snapshots of a machine. What stands on what is told by the disks' overlays themselves; the records hold names.
    public struct Snapshots {
        private let machine: NamedMachine
        private var directory: URL { machine.directory.appendingPathComponent("snapshots") }
        public init(of machine: NamedMachine) { self.machine = machine }

        public func directory(_ number: Int) -> URL { directory.appendingPathComponent("\(number)") }
        public func state(_ snapshot: Snapshot) -> URL { directory(snapshot.number).appendingPathComponent("state") }
        public func disks(_ snapshot: Snapshot) -> [URL] { snapshot.disks.indices.map { directory(snapshot.number).appendingPathComponent("disk\($0)") } }

        /// By number, with those that are not complete.
        private var all: [Snapshot] {
            let names = (try? FileManager.default.contentsOfDirectory(atPath: directory.path)) ?? []
            return names.compactMap { Int($0) }.sorted().compactMap { number in
                (try? Data(contentsOf: directory(number).appendingPathComponent("snapshot.json"))).flatMap { try? JSONDecoder().decode(Snapshot.self, from: $0) }
            }
        }
        public var list: [Snapshot] { all.filter(\.isComplete) }
        public func find(_ name: String) throws -> Snapshot {
            if let found = list.first(where: { $0.name == name }) { return found }
            let names = list.map(\.name).joined(separator: ", ")
            throw LibraryError("the machine \(machine.name) has no snapshot \"\(name)\"" + (names.isEmpty ? "" : "; it has \(names)"))
        }
        /// Bytes that it takes on the host's disk.
        public func allocatedSize(_ snapshot: Snapshot) -> Int64 {
            ([state(snapshot)] + disks(snapshot)).reduce(0) { total, file in
                var info = stat()
                return stat(file.path, &info) == 0 ? total + Int64(info.st_blocks) * 512 : total
            }
        }
        private func write(_ snapshot: Snapshot) throws {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            try encoder.encode(snapshot).write(to: directory(snapshot.number).appendingPathComponent("snapshot.json"), options: .atomic)
        }

        // MARK: taking

        /// Makes the place for a snapshot of a machine that runs or is saved; `finish` or `abandon` follows.
        /// - Parameter name: nil for the next of snapshot1, snapshot2 and so on.
        public func begin(_ name: String?) throws -> Snapshot {
            guard let record = machine.record else { throw LibraryError("there is no machine \(machine.name)") }
            guard let disks = record.disks else {
                throw LibraryError("\(machine.name) writes to a disk that is no overlay, which cannot be kept as it is; name it with --disk IMAGE,overlay=FILE")
            }
            let known = all
            if let name { _ = try NamedMachine(name) }
            let number = (known.map(\.number).max() ?? 0) + 1
            let chosen = name ?? "snapshot\(number)"
            guard !list.contains(where: { $0.name == chosen }) else { throw LibraryError("\(machine.name) has a snapshot \(chosen) already; choose another name") }
            let snapshot = Snapshot(number: number, name: chosen, created: Date(), parent: record.snapshot, isComplete: false, disks: disks)
            try FileManager.default.createDirectory(at: directory(number), withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try write(snapshot)
            return snapshot
        }
        public func finish(_ snapshot: Snapshot) throws {
            var complete = snapshot
            complete.isComplete = true
            try write(complete)
            try machine.update { $0.snapshot = snapshot.number }
        }
        /// What a failed one has left goes, unless the machine's disks stand on it.
        public func abandon(_ snapshot: Snapshot) {
            unlink(state(snapshot).path)
            guard users(of: snapshot).allSatisfy(\.isEmpty) else { return }
            try? FileManager.default.removeItem(at: directory(snapshot.number))
        }
        /// Takes a snapshot of a saved machine.
        public func takeOfSaved(_ name: String?) throws -> Snapshot {
            try collect { _ in }
            let snapshot = try begin(name)
            do {
                // The disks last: from then on they stand on it.
                guard link(machine.state.path, state(snapshot).path) == 0 else { throw Self.error("name the state of \(machine.name) anew") }
                for (disk, kept) in zip(snapshot.disks, disks(snapshot)) { try OverlayDiskAttachment(url: URL(fileURLWithPath: disk)).branch(keeping: kept) }
                try finish(snapshot)
                return snapshot
            } catch {
                abandon(snapshot)
                throw error
            }
        }
        private static func error(_ what: String) -> LibraryError { LibraryError("cannot \(what): \(String(cString: strerror(errno)).lowercased())") }

        // MARK: going back

        /// The machine, which does not run, is what it was then: saved. What it was until now is gone, unless there is a snapshot of it.
        public func revert(to snapshot: Snapshot) throws {
            try collect { _ in }
            var made: [URL] = []
            defer { for file in made { unlink(file.path) } }
            for (disk, kept) in zip(snapshot.disks, disks(snapshot)) {
                let new = URL(fileURLWithPath: disk + ".reverted")
                unlink(new.path)
                try OverlayDiskAttachment.create(at: new, base: kept, baseIsOverlay: true)
                made.append(new)
            }
            // A state never stands beside disks of another time: it goes first and comes last.
            unlink(machine.state.path)
            for (disk, new) in zip(snapshot.disks, made) {
                guard rename(new.path, disk) == 0 else { throw Self.error("put the disk \(disk) back") }
            }
            try machine.update {
                $0.snapshot = snapshot.number
                $0.isOff = false
            }
            guard link(state(snapshot).path, machine.state.path) == 0 else { throw Self.error("put the state of \(machine.name) back") }
            try collect { _ in }
        }

        // MARK: deleting

        /// Deletes a snapshot of a machine that does not run. What those after it need of its disks goes to them.
        public func delete(_ snapshot: Snapshot, progress: (Double) -> Void) throws {
            var left = snapshot
            left.isComplete = false
            try write(left)
            unlink(state(snapshot).path)
            for var child in all where child.parent == snapshot.number {
                child.parent = snapshot.parent
                try write(child)
            }
            if machine.record?.snapshot == snapshot.number { try machine.update { $0.snapshot = snapshot.parent } }
            try collect(progress)
        }
        /// Before the machine's place goes: overlays elsewhere that stand on something in it take that over.
        func release(_ progress: (Double) -> Void) throws {
            let place = machine.directory.resolvingSymlinksInPath().path + "/"
            for disk in (machine.record?.disks ?? []).map({ URL(fileURLWithPath: $0) }) where access(disk.path, F_OK) == 0 {
                if disk.resolvingSymlinksInPath().path.hasPrefix(place) { continue }
                while case let overlay = try OverlayDiskAttachment(url: disk, readOnly: true), overlay.base.resolvingSymlinksInPath().path.hasPrefix(place) {
                    try overlay.absorbBase(progress: progress)
                }
            }
        }
        /// The overlays that stand on each of a snapshot's disks.
        private func users(of snapshot: Snapshot) -> [[URL]] {
            let overlays = all.filter { $0.number != snapshot.number }.flatMap(disks) + snapshot.disks.map { URL(fileURLWithPath: $0) }
            let bases = overlays.map { (overlay: $0, base: (try? OverlayDiskAttachment(url: $0, readOnly: true))?.base.resolvingSymlinksInPath().path) }
            return disks(snapshot).map { disk in bases.filter { $0.base == disk.resolvingSymlinksInPath().path }.map(\.overlay) }
        }
        /// Removes what is left of snapshots that are deleted or were never complete, where nothing or only one other stands on it.
        private func collect(_ progress: (Double) -> Void) throws {
            while let (snapshot, users) = all.lazy.filter({ !$0.isComplete }).map({ ($0, users(of: $0)) }).first(where: { $0.1.allSatisfy { $0.count <= 1 } }) {
                for case let (number, user?) in users.map(\.first).enumerated() {
                    try OverlayDiskAttachment(url: user, readOnly: true).absorbBase { progress((Double(number) + $0) / Double(users.count)) }
                }
                try FileManager.default.removeItem(at: directory(snapshot.number))
            }
        }
    }
#endif
