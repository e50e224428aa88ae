import Foundation

/// A machine with a name: machines/NAME/{machine.json, base.img, disk.img, state, control, snapshots/}. It is there while
/// the machine runs, is saved, or has snapshots.
public struct NamedMachine: Sendable {
    /// What the machine is made of, so that it can be made again.
    public struct Record: Codable, Equatable, Sendable {
        /// Of `vz run`.
        public var arguments: [String]
        /// Where its paths begin.
        public var workingDirectory: String
        /// `VZGenericMachineIdentifier.dataRepresentation`.
        public var machineIdentifier: Data
        public var macAddress: String
        public var created: Date
        /// Overlays that the machine writes to, in the order of its disks; nil before it has begun, or with other disks to write to.
        public var disks: [String]?
        /// The snapshot that it goes on from.
        public var snapshot: Int?
        /// It was switched off; its snapshots are why it is still there.
        public var isOff: Bool?
        public init(arguments: [String], workingDirectory: String, machineIdentifier: Data, macAddress: String, created: Date) {
            self.arguments = arguments
            self.workingDirectory = workingDirectory
            self.machineIdentifier = machineIdentifier
            self.macAddress = macAddress
            self.created = created
        }
    }
    public enum Status: String, Sendable {
        case running, saved
        /// Switched off, with snapshots to go back to.
        case off
        /// Its process is gone without having saved it.
        case lost
    }
    public let name: String
    public let directory: URL
    public var disk: URL { directory.appendingPathComponent("disk.img") }
    /// The image's disk as it was when the machine was made.
    public var base: URL { directory.appendingPathComponent("base.img") }
    public var state: URL { directory.appendingPathComponent("state") }
    public var control: URL { directory.appendingPathComponent("control") }
    private var recordFile: URL { directory.appendingPathComponent("machine.json") }

    /// Throws for what is no name: letters, digits, dots, dashes and underscores, not beginning with a dot or a dash.
    public init(_ name: String, home: Home = Home()) throws {
        let allowed = name.utf8.allSatisfy { (0x30...0x39).contains($0) || (0x41...0x5A).contains($0) || (0x61...0x7A).contains($0) || [0x2E, 0x2D, 0x5F].contains($0) }
        guard allowed, (1...64).contains(name.utf8.count), !name.hasPrefix("."), !name.hasPrefix("-") else {
            throw LibraryError("\"\(name)\" is no name for a machine: use letters, digits, dots, dashes and underscores")
        }
        self.name = name
        directory = home.machines.appendingPathComponent(name)
    }
    public static func list(home: Home = Home()) -> [NamedMachine] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: home.machines.path)) ?? []
        return names.sorted().compactMap { try? NamedMachine($0, home: home) }.filter { $0.record != nil }
    }

    public var record: Record? {
        guard let data = try? Data(contentsOf: recordFile) else { return nil }
        return try? JSONDecoder().decode(Record.self, from: data)
    }
    public var status: Status? {
        guard record != nil else { return nil }
        if ControlSocket.isListening(control.path) { return .running }
        if access(state.path, F_OK) == 0 { return .saved }
        return record?.isOff == true ? .off : .lost
    }
    /// Makes the machine's place. Throws when the name is taken by a machine that runs or is saved.
    public func create(_ record: Record) throws {
        switch status {
        case .running: throw LibraryError("the machine \(name) runs already; choose another name")
        case .saved: throw LibraryError("the machine \(name) is saved: `vz restore \(name)` goes on with it, `vz delete \(name)` forgets it")
        case .off:
            throw LibraryError("the machine \(name) is off and has snapshots: `vz snapshot list \(name)` shows them, `vz delete \(name)` forgets it with all of them")
        case .lost: throw LibraryError("the machine \(name) ended without being switched off; its disk is \(disk.path). `vz delete \(name)` forgets it")
        case nil: try remove()
        }
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try write(record)
    }
    public func update(_ change: (inout Record) -> Void) throws {
        guard var record else { throw LibraryError("the machine \(name) has lost its description, \(recordFile.path)") }
        change(&record)
        try write(record)
    }
    private func write(_ record: Record) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try encoder.encode(record).write(to: recordFile, options: .atomic)
    }
    /// Removes the machine's place; what disks elsewhere need of it goes to them before.
    /// - Parameter progress: from 0 to 1, on this thread.
    public func forget(progress: (Double) -> Void = { _ in }) throws {
        #if os(Linux)
            try Snapshots(of: self).release(progress)
        #endif
        try remove()
    }
    private func remove() throws {
        guard access(directory.path, F_OK) == 0 else { return }
        try FileManager.default.removeItem(at: directory)
    }
}

extension Home {
    /// Machines with names.
    public var machines: URL { url.appendingPathComponent("machines") }
}
