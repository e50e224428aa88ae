import ArgumentParser

@main struct VZ: ParsableCommand {
    private static var subcommands: [any ParsableCommand.Type] {
        let all: [any ParsableCommand.Type] = [Run.self, Save.self, Restore.self, List.self, Delete.self, ImageCommand.self, Doctor.self]
        #if os(Linux)
            return all + [SnapshotCommand.self, DiskCommand.self]
        #else
            return all
        #endif
    }
    static let configuration = CommandConfiguration(
        commandName: "vz",
        abstract: "Linux virtual machines, in seconds, with or without KVM.",
        discussion: """
            EXAMPLES
              vz run debian                       a root shell in a fresh Debian 12
              vz run debian -- uname -a           run a command in the guest, pass its status on
              vz run --kernel vmlinuz --initrd initrd.img --cmdline console=hvc0
              vz run debian --name dev            the same, with a name; vz save dev, vz restore dev
              vz snapshot take dev                what it is now, to go back to; it runs on
              vz doctor                           what this host offers
            """,
        version: "0.1.0",
        subcommands: subcommands)
}
