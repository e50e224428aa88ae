import ArgumentParser
import Foundation
import MachineLibrary
import Virtualization

struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Start a machine and connect to it.",
        discussion: """
            With an image, a fresh machine is started from it; its disk is private and gone afterwards. The image debian is
            built first when it is missing. With --kernel, the machine starts that kernel.

            On a terminal you get the guest's console; Ctrl-] three times switches the machine off. With a COMMAND, it is run
            in the guest by /bin/sh, its output and exit status are passed on, and the guest is shut down.

            EXAMPLES
              vz run debian
              vz run debian --cpus 2 --memory 2GiB -- cat /etc/os-release
              vz run debian --publish 8080:80 --mount ~/project:/project
              vz run --kernel vmlinuz --initrd initrd.img --disk data.img --cmdline "console=hvc0 root=/dev/vda"
            """)

    @Argument(help: "An image: debian, or one that `vz image list` shows.") var image: String?
    @Option(help: ArgumentHelp("A Linux kernel (bzImage or ELF).", valueName: "file")) var kernel: String?
    @Option(help: ArgumentHelp("An initial RAM disk for the kernel.", valueName: "file")) var initrd: String?
    @Option(help: ArgumentHelp("Kernel arguments; with an image, added to its own.", valueName: "text")) var cmdline: String?
    @Option(
        help: ArgumentHelp(
            "A raw disk image, a block device, or an NBD server's export (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH; encrypted with nbds). ro: read-only; sync=none: the guest's flushes are ignored; cache=uncached: around the host's cache; overlay=FILE: what is written goes into FILE, which is made when it is missing, and the image stays as it is. May be repeated.",
            valueName: "disk[,ro][,sync=full|none][,cache=cached|uncached][,overlay=file]")) var disk: [DiskOption] = []
    @Option(help: ArgumentHelp("As --disk, behind an NVMe controller. May be repeated.", valueName: "disk[,…]")) var nvme: [DiskOption] = []
    @Option(help: "A name: with it the machine can be saved (vz save) and gone on with (vz restore).") var name: String?
    @Flag(help: "Say at once if the machine could not be saved; goes with --name.") var suspendable = false
    @Option(help: "Number of processors.") var cpus: Int = 1
    @Option(help: "Memory, such as 512MiB or 2GiB.") var memory: MemorySize = MemorySize(bytes: 1 << 30)
    @Option(help: ArgumentHelp("Memory that the guest keeps when the host is short of it; without this it keeps all.", valueName: "size")) var memoryMin: MemorySize?
    @Option(help: "auto, kvm or software.") var engine: String = "auto"
    @Option(
        help: ArgumentHelp(
            "What the guest is shown of the processor: host, or x86-64-v1, x86-64-v2 or x86-64-v3 for a machine whose saved state is to go on elsewhere.",
            valueName: "level")) var cpu: String = "host"
    @Option(help: ArgumentHelp("The guest's network: nat (behind the host, no privileges needed), bridged=BRIDGE or none.", valueName: "kind")) var net: String = "nat"
    @Option(help: ArgumentHelp("A port of the host that leads to one of the guest; /udp for UDP. May be repeated.", valueName: "[addr:]host:guest")) var publish: [PublishedPort] =
        []
    @Option(
        help: ArgumentHelp(
            "A directory of the host, shared with the guest; by default at /mnt/NAME. May be repeated. Without an image, mount it by its tag, share0 and up. With :cached the guest keeps its own pages of large files, instead of mapping the host's.",
            valueName: "host[:guest][:ro][:cached]")) var mount: [MountedDirectory] = []
    @Option(
        help: ArgumentHelp(
            "A port of the guest's vsock device: connections of the guest to it go to a Unix socket of the host, or with :listen the other way. May be repeated.",
            valueName: "port:path[:listen]")) var vsock: [SocketPath] = []
    @Option(help: "Where the console is: stdio, pty or a file to write to. With a COMMAND there is none unless this names one.") var console: String = "stdio"
    @Argument(parsing: .postTerminator, help: "A command for the guest.") var command: [String] = []

    func validate() throws {
        if image == nil, kernel == nil { throw ValidationError("name an image (vz run debian) or a kernel (--kernel FILE)") }
        if image != nil, kernel != nil { throw ValidationError("give either an image or --kernel, not both") }
        if image == nil, !command.isEmpty { throw ValidationError("a COMMAND needs an image: other guests have nothing to run it with") }
        if initrd != nil, kernel == nil { throw ValidationError("--initrd goes with --kernel") }
        if name != nil, !command.isEmpty { throw ValidationError("--name is for machines with a console, not for a COMMAND") }
        if suspendable, name == nil { throw ValidationError("--suspendable goes with --name") }
        if net != "nat", net != "none", !net.hasPrefix("bridged=") { throw ValidationError("--net takes nat, bridged=BRIDGE or none") }
        if net != "nat", !publish.isEmpty { throw ValidationError("--publish goes with --net nat") }
        if MachineEngine(rawValue: engine) == nil { throw ValidationError("--engine takes auto, kvm or software") }
        if ProcessorLevel(rawValue: cpu) == nil { throw ValidationError("--cpu takes host, x86-64-v1, x86-64-v2 or x86-64-v3") }
    }

    func run() throws {
        try Machines.report {
            var named: (machine: NamedMachine, record: NamedMachine.Record)?
            if let name {
                let record = NamedMachine.Record(
                    arguments: Array(CommandLine.arguments.dropFirst(2)), workingDirectory: FileManager.default.currentDirectoryPath,
                    machineIdentifier: VZGenericMachineIdentifier().dataRepresentation,
                    macAddress: VZMACAddress.randomLocallyAdministered().string, created: Date())
                let machine = try NamedMachine(name)
                try machine.create(record)
                named = (machine, record)
            }
            let session = try Session(self, as: named?.machine, named?.record)
            session.start()
            RunLoop.main.run()
        }
    }
}
