#if os(Linux)
    import ArgumentParser
    import Foundation
    import MachineLibrary

    struct SnapshotCommand: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "snapshot", abstract: "Keep what a machine is at a moment, and go back to it.",
            discussion: """
                A snapshot holds a machine's memory and disks of one instant. It can be taken while the machine runs, which stops it for
                some milliseconds. Snapshots are a tree: after going back to one, the next one stands beside those that came after it.
                The machine must have been started with a name, and all disks that it writes to must be overlays; the disk of an image
                is one.

                EXAMPLES
                  vz run debian --name dev         in one terminal
                  vz snapshot take dev clean       in another
                  vz snapshot list dev
                  vz save dev && vz snapshot revert dev clean && vz restore dev
                """, subcommands: [Take.self, ListSnapshots.self, Revert.self, DeleteSnapshot.self])

        struct Take: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Take a snapshot of a machine that runs or is saved.", discussion: "EXAMPLES\n  vz snapshot take dev\n  vz snapshot take dev before-upgrade")
            @Argument(help: "The machine's name.") var name: String
            @Argument(help: "The snapshot's name.") var snapshot: String?
            func run() throws {
                try Machines.report {
                    if let snapshot { _ = try NamedMachine(snapshot) }
                    let machine = try NamedMachine(name)
                    switch machine.status {
                    case .running: try takeOfRunning(machine)
                    case .saved:
                        let taken = try Snapshots(of: machine).takeOfSaved(snapshot)
                        Terminal.say("\(taken.name) is taken")
                    case .off, .lost, nil: throw Machines.unknown(name, among: .running)
                    }
                }
            }
            private func takeOfRunning(_ machine: NamedMachine) throws {
                let progress = Percentage("taking a snapshot of \(name)")
                var taken = ""
                try ControlSocket.ask(machine.control.path, (["snapshot"] + [snapshot].compactMap { $0 }).joined(separator: " ")) { line in
                    let words = line.split(separator: " ")
                    if line.hasPrefix("progress "), let part = Int(line.dropFirst(9)) { progress.show(part) }
                    if words.count == 3, words[0] == "taken" { taken = "\(words[1]) is taken; the machine did not run for \(words[2]) ms" }
                }
                progress.end()
                Terminal.say(taken)
            }
        }
        struct ListSnapshots: ParsableCommand {
            static let configuration = CommandConfiguration(
                commandName: "list", abstract: "List a machine's snapshots as a tree.", discussion: "EXAMPLES\n  vz snapshot list dev\n  vz snapshot list dev --format json")
            @Argument(help: "The machine's name.") var name: String
            @Option(help: "text or json.") var format: String = "text"
            func validate() throws { if !["text", "json"].contains(format) { throw ValidationError("--format takes text or json") } }
            func run() throws {
                try Machines.report {
                    let machine = try NamedMachine(name)
                    guard let record = machine.record else { throw Machines.unknown(name, among: nil) }
                    let snapshots = Snapshots(of: machine)
                    let list = snapshots.list
                    if format == "json" {
                        let values: [[String: Any]] = list.map { snapshot in
                            var value: [String: Any] = [
                                "name": snapshot.name, "created": ISO8601DateFormatter().string(from: snapshot.created), "size": snapshots.allocatedSize(snapshot),
                                "current": record.snapshot == snapshot.number,
                            ]
                            value["parent"] = list.first { $0.number == snapshot.parent }?.name
                            return value
                        }
                        let data = try JSONSerialization.data(withJSONObject: values, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
                        return print(String(decoding: data, as: UTF8.self))
                    }
                    show(list, snapshots, current: record.snapshot)
                }
            }
            private func show(_ list: [Snapshot], _ snapshots: Snapshots, current: Int?) {
                let dates = DateFormatter()
                dates.dateFormat = "yyyy-MM-dd HH:mm:ss"
                var rows: [[String]] = []
                func add(below parent: Int?, _ depth: Int) {
                    for snapshot in list where snapshot.parent == parent {
                        let mark = snapshot.number == current ? "  (the machine goes on from here)" : ""
                        let size = "\(snapshots.allocatedSize(snapshot) >> 20) MiB"
                        rows.append([String(repeating: "  ", count: depth) + snapshot.name, dates.string(from: snapshot.created), size + mark])
                        add(below: snapshot.number, depth + 1)
                    }
                }
                add(below: nil, 0)
                let width = max(4, rows.map { $0[0].count }.max() ?? 0)
                print("NAME".padding(toLength: width, withPad: " ", startingAt: 0) + "  TAKEN                SIZE")
                for row in rows { print(row[0].padding(toLength: width, withPad: " ", startingAt: 0) + "  \(row[1])  \(row[2])") }
            }
        }
        struct Revert: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Go back to a snapshot.",
                discussion: """
                    The machine must not run; afterwards it is saved as it was then, and `vz restore` goes on with it. What it was until
                    now is gone, unless there is a snapshot of it.

                    EXAMPLES
                      vz snapshot revert dev clean
                    """)
            @Argument(help: "The machine's name.") var name: String
            @Argument(help: "The snapshot's name.") var snapshot: String
            func run() throws {
                try Machines.report {
                    let snapshots = Snapshots(of: try resting(name))
                    try snapshots.revert(to: try snapshots.find(snapshot))
                    Terminal.say("\(name) is as it was when \(snapshot) was taken; `vz restore \(name)` goes on with it")
                }
            }
        }
        struct DeleteSnapshot: ParsableCommand {
            static let configuration = CommandConfiguration(
                commandName: "delete", abstract: "Delete a snapshot.",
                discussion: """
                    The machine must not run. What later snapshots, and the machine, need of its disks is merged into theirs.

                    EXAMPLES
                      vz snapshot delete dev clean
                    """)
            @Argument(help: "The machine's name.") var name: String
            @Argument(help: "The snapshot's name.") var snapshot: String
            func run() throws {
                try Machines.report {
                    let snapshots = Snapshots(of: try resting(name))
                    let progress = Percentage("merging \(snapshot)")
                    try snapshots.delete(try snapshots.find(snapshot)) { progress.show(Int($0 * 100)) }
                    progress.end()
                }
            }
        }
        private static func resting(_ name: String) throws -> NamedMachine {
            let machine = try NamedMachine(name)
            switch machine.status {
            case .running: throw LibraryError("the machine \(name) runs; `vz save \(name)` first, or switch it off")
            case nil: throw Machines.unknown(name, among: nil)
            case .saved, .off, .lost: return machine
            }
        }
    }
#endif
