import ArgumentParser
import Foundation
import MachineLibrary

struct ImageCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "image", abstract: "Build, list and remove guest images.",
        subcommands: [ImageBuild.self, ImageList.self, ImageRemove.self])
}

struct ImageBuild: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "build", abstract: "Build a guest image from Debian packages.",
        discussion: "EXAMPLES\n  vz image build debian\n  vz image build debian --name work --size 20GiB --include gcc,python3\n  vz image build debian --release 13 --name trixie")
    @Argument(help: "What to build; there is one kind: debian.") var kind: String
    @Option(help: "Debian's release: 12 (bookworm) or 13 (trixie).") var release: DebianRelease = .bookworm
    @Option(help: "The image's name.") var name: String = "debian"
    @Option(help: "Size of the root disk; it takes only what is used.") var size: MemorySize = MemorySize(bytes: 4 << 30)
    @Option(help: ArgumentHelp("Further Debian packages, separated by commas. May be repeated.", valueName: "packages")) var include: [String] = []
    private var packages: [String] { include.flatMap { $0.split(separator: ",").map(String.init) } }
    func validate() throws {
        // Policy manual § 5.6.1, with an architecture behind a colon.
        for package in packages where package.wholeMatch(of: /[a-z0-9][a-z0-9+.\-]+(:[a-z0-9]+)?/) == nil {
            throw ValidationError("\"\(package)\" cannot be a package's name")
        }
        if kind != "debian" { throw ValidationError("only the image debian can be built") }
        if name.isEmpty || name.contains("/") || name.hasPrefix(".") { throw ValidationError("\"\(name)\" cannot be an image's name") }
    }
    func run() throws {
        let store = ImageStore(home: Home())
        let begin = Date()
        do {
            try DebianImageBuilder(store: store, release: release) { Terminal.say($0 + "…") }.build(name: name, diskSize: size.bytes, extra: packages)
        } catch {
            Terminal.say("\(error)")
            throw ExitCode(1)
        }
        Terminal.say("built \(name) in \(Int(Date().timeIntervalSince(begin))) s: \(store.directory(name).path)")
    }
}

struct ImageList: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "list", abstract: "List the images there are.")
    @Option(help: "table or json.") var format: String = "table"
    func run() throws {
        let store = ImageStore(home: Home())
        let images = store.list()
        if format == "json" {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            encoder.dateEncodingStrategy = .iso8601
            print(String(decoding: try encoder.encode(images), as: UTF8.self))
            return
        }
        func column(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(width - text.count, 1)) }
        print(column("NAME", 14) + column("SYSTEM", 24) + column("KERNEL", 28) + "SIZE")
        for image in images {
            print(column(image.name, 14) + column(image.system, 24) + column(image.kernelVersion, 28) + "\(store.allocatedSize(image.name) >> 20) MiB")
        }
    }
}

struct ImageRemove: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "remove", abstract: "Remove an image.")
    @Argument(help: "The image's name.") var name: String
    func run() throws {
        do { try ImageStore(home: Home()).remove(name) } catch {
            Terminal.say("\(error)")
            throw ExitCode(1)
        }
    }
}

extension DebianRelease: ExpressibleByArgument {
    /// Its name or its number.
    public init?(argument: String) {
        guard let release = Self.allCases.first(where: { $0.rawValue == argument || String($0.number) == argument }) else { return nil }
        self = release
    }
}
