import ArgumentParser
import Foundation
import MachineLibrary
import Virtualization

struct Save: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Save a running machine and switch it off.",
        discussion: """
            The machine must have been started with a name, and with its console on a terminal, a pseudo-terminal or a file. Its
            memory, processors and devices go into a file beside its disk; `vz restore` goes on where it was.

            EXAMPLES
              vz run debian --name dev        in one terminal
              vz save dev                     in another
              vz restore dev
            """)
    @Argument(help: "The machine's name.") var name: String

    func run() throws {
        try Machines.report {
            let machine = try Machines.running(name)
            let progress = Percentage("saving \(name)")
            try ControlSocket.ask(machine.control.path, "save") { if $0.hasPrefix("progress "), let part = Int($0.dropFirst(9)) { progress.show(part) } }
            progress.end()
            Terminal.say("\(name) is saved; `vz restore \(name)` goes on with it")
        }
    }
}

struct Restore: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Go on with a saved machine.",
        discussion: """
            The machine goes on as if it had been asleep, with its console on this terminal. Its clocks are right at once; its
            network link goes down and up, so that it asks for its address again.

            A machine that was started with a processor level (`vz run --cpu x86-64-v2`) goes on under either engine, whichever it was
            before; what the engine lacks for another one is named.

            EXAMPLES
              vz restore dev
              vz restore --engine software dev
            """)
    @Option(help: "auto, kvm or software; otherwise as the machine was started.") var engine: String?
    @Argument(help: "The machine's name.") var name: String

    func validate() throws {
        if let engine, MachineEngine(rawValue: engine) == nil { throw ValidationError("--engine takes auto, kvm or software") }
    }
    func run() throws {
        try Machines.report {
            let machine = try NamedMachine(name)
            guard let record = machine.record, machine.status == .saved else { throw Machines.unknown(name, among: .saved) }
            _ = FileManager.default.changeCurrentDirectoryPath(record.workingDirectory)
            var options = try Run.parse(record.arguments)
            if let engine { options.engine = engine }
            let session = try Session(options, as: machine, record, restoring: true)
            session.start()
            RunLoop.main.run()
        }
    }
}

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List machines that have names.", discussion: "EXAMPLES\n  vz list\n  vz list --format json")
    @Option(help: "text or json.") var format: String = "text"
    func validate() throws { if !["text", "json"].contains(format) { throw ValidationError("--format takes text or json") } }

    func run() throws {
        let machines = NamedMachine.list()
        if format == "json" {
            let values = machines.map { ["name": $0.name, "status": $0.status?.rawValue ?? "lost", "directory": $0.directory.path] }
            let data = try JSONSerialization.data(withJSONObject: values, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
            return print(String(decoding: data, as: UTF8.self))
        }
        let width = max(4, machines.map(\.name.count).max() ?? 0)
        print("NAME".padding(toLength: width, withPad: " ", startingAt: 0) + "  STATUS")
        for machine in machines { print(machine.name.padding(toLength: width, withPad: " ", startingAt: 0) + "  " + (machine.status?.rawValue ?? "lost")) }
    }
}

struct Delete: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Forget a machine that does not run, its disk and its snapshots.", discussion: "EXAMPLES\n  vz delete dev")
    @Argument(help: "The machine's name.") var name: String

    func run() throws {
        try Machines.report {
            let machine = try NamedMachine(name)
            switch machine.status {
            case .running: throw LibraryError("the machine \(name) runs; switch it off first")
            case .saved, .off, .lost:
                let progress = Percentage("merging the snapshots of \(name)")
                try machine.forget { progress.show(Int($0 * 100)) }
                progress.end()
            case nil: throw Machines.unknown(name, among: nil)
            }
        }
    }
}

/// What the commands on named machines share.
enum Machines {
    static func running(_ name: String) throws -> NamedMachine {
        let machine = try NamedMachine(name)
        guard machine.status == .running else { throw unknown(name, among: .running) }
        return machine
    }
    static func unknown(_ name: String, among status: NamedMachine.Status?) -> LibraryError {
        let names = NamedMachine.list().filter { status == nil || $0.status == status }.map(\.name).joined(separator: ", ")
        let kind = status.map { "\($0.rawValue) " } ?? ""
        return LibraryError("there is no \(kind)machine \"\(name)\"" + (names.isEmpty ? "" : "; there is \(names)"))
    }
    /// Says what went wrong and ends with status 1.
    static func report(_ body: () throws -> Void) throws {
        do { try body() } catch let error as LibraryError {
            Terminal.say(error.description)
            throw ExitCode(1)
        } catch let error as VZError {
            Terminal.say(error.localizedDescription)
            throw ExitCode(1)
        } catch let error as ExitCode {
            throw error
        } catch let error as NSError {
            Terminal.say(error.localizedDescription)
            throw ExitCode(1)
        }
    }
}
