#if os(Linux)
    import ArgumentParser
    import Foundation
    import MachineLibrary
    import Virtualization

    struct DiskCommand: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "disk", abstract: "Make, examine, merge, enlarge and convert disks.",
            discussion: """
                An overlay keeps what is written in a file of its own and reads everything else from a base, which is never written
                and may be shared by many overlays.

                EXAMPLES
                  vz disk create mine.overlay --base debian.img
                  vz run --kernel vmlinuz --disk debian.img,overlay=mine.overlay
                  vz disk info mine.overlay
                  vz disk merge mine.overlay
                  vz disk resize debian.img 20GiB
                  vz disk import cloud.qcow2 cloud.img
                """, subcommands: [Create.self, Info.self, Check.self, Merge.self, Resize.self, Import.self, Export.self])

        struct Create: ParsableCommand {
            static let configuration = CommandConfiguration(abstract: "Make an overlay.", discussion: "EXAMPLES\n  vz disk create mine.overlay --base debian.img --size 20GiB")
            @Argument(help: "The overlay's file, which must not exist.") var file: String
            @Option(help: ArgumentHelp("A raw image.", valueName: "file")) var base: String?
            @Option(help: ArgumentHelp("An overlay to put this one on, instead of a raw image.", valueName: "file")) var baseOverlay: String?
            @Option(help: "The disk's size; the base's without it.") var size: MemorySize?
            func validate() throws { if (base == nil) == (baseOverlay == nil) { throw ValidationError("give either --base or --base-overlay") } }
            func run() throws {
                try Machines.report {
                    try OverlayDiskAttachment.create(
                        at: URL(fileURLWithPath: file), base: URL(fileURLWithPath: base ?? baseOverlay ?? ""), baseIsOverlay: base == nil, size: size?.bytes)
                }
            }
        }
        struct Info: ParsableCommand {
            static let configuration = CommandConfiguration(abstract: "What an overlay is.", discussion: "EXAMPLES\n  vz disk info mine.overlay --format json")
            @Argument(help: "The overlay's file.") var file: String
            @Option(help: "text or json.") var format: String = "text"
            func validate() throws { if !["text", "json"].contains(format) { throw ValidationError("--format takes text or json") } }
            func run() throws {
                try Machines.report {
                    let disk = try OverlayDiskAttachment(url: URL(fileURLWithPath: file), readOnly: true)
                    let (size, own) = disk.usage
                    if format == "json" {
                        let values: [String: Any] = ["base": disk.base.path, "size": size, "own": own]
                        let data = try JSONSerialization.data(withJSONObject: values, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
                        return print(String(decoding: data, as: UTF8.self))
                    }
                    print("base   \(disk.base.path)\nsize   \(size >> 20) MiB\nown    \(own >> 20) MiB")
                }
            }
        }
        struct Check: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Check an overlay and its bases; ends with status 1 and says what is wrong.", discussion: "EXAMPLES\n  vz disk check mine.overlay")
            @Argument(help: "The overlay's file.") var file: String
            func run() throws { try Machines.report { _ = try OverlayDiskAttachment(url: URL(fileURLWithPath: file), readOnly: true) } }
        }
        struct Merge: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Write what an overlay has into its base, and remove the overlay.",
                discussion: """
                    The base changes: every other overlay over it is of no use afterwards. Nothing may be using either.

                    EXAMPLES
                      vz disk merge mine.overlay
                    """)
            @Argument(help: "The overlay's file.") var file: String
            func run() throws {
                try Machines.report {
                    let disk = try OverlayDiskAttachment(url: URL(fileURLWithPath: file))
                    let progress = Percentage("merging")
                    try disk.merge { progress.show(Int($0 * 100)) }
                    progress.end()
                    unlink(file)
                }
            }
        }
        struct Resize: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Make a disk larger.",
                discussion: """
                    Nothing may be using the disk. Its partitions and file systems stay as they are: they are enlarged in the guest
                    (growpart, resize2fs). Overlays over an image that has grown are of no use.

                    EXAMPLES
                      vz disk resize debian.img 20GiB
                      vz disk resize mine.overlay 20GiB --overlay
                    """)
            @Argument(help: "A raw image, or with --overlay an overlay.") var file: String
            @Argument(help: "The new size, such as 20GiB.") var size: MemorySize
            @Flag(help: "The file is an overlay.") var overlay = false
            func run() throws {
                try Machines.report {
                    let url = URL(fileURLWithPath: file)
                    guard overlay else { return try RawImage.grow(url, to: size.bytes) }
                    let progress = Percentage("enlarging")
                    try OverlayDiskAttachment(url: url).grow(to: size.bytes) { progress.show(Int($0 * 100)) }
                    progress.end()
                }
            }
        }
        struct Import: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Make a raw image of a disk image of another program's.",
                discussion: """
                    Formats: qcow2, vmdk, vdi, vhd, vhdx, raw; by the file's name, or as --format says. Needs qemu-img, of the Debian package
                    qemu-utils.

                    EXAMPLES
                      vz disk import debian-12-nocloud-amd64.qcow2 debian.img
                      vz disk import appliance.vmdk appliance.img
                    """)
            @Argument(help: "The image to read.") var source: String
            @Argument(help: "The raw image to make; there must be no such file.") var target: String
            @Option(help: "The source's format.") var format: String?
            func run() throws { try DiskCommand.convert(source, format, to: target, "raw", what: "importing") }
        }
        struct Export: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Make a disk image for another program.",
                discussion: """
                    Formats: qcow2, vmdk, vdi, vhd, vhdx, raw; by the new file's name, or as --format says. An overlay is exported with what
                    its base has. Needs qemu-img, of the Debian package qemu-utils.

                    EXAMPLES
                      vz disk export debian.img debian.qcow2
                      vz disk export mine.overlay mine.vmdk --overlay
                    """)
            @Argument(help: "A raw image, or with --overlay an overlay.") var source: String
            @Argument(help: "The image to make; there must be no such file.") var target: String
            @Option(help: "The new image's format.") var format: String?
            @Flag(help: "The source is an overlay.") var overlay = false
            func run() throws {
                try Machines.report {
                    guard overlay else { return try DiskCommand.convert(source, "raw", to: target, format, what: "exporting") }
                    let whole = URL(fileURLWithPath: target + ".raw-\(getpid())")
                    defer { unlink(whole.path) }
                    Scratch.remove([whole])
                    let progress = Percentage("reading the overlay")
                    try OverlayDiskAttachment(url: URL(fileURLWithPath: source), readOnly: true).copy(to: whole) { progress.show(Int($0 * 100)) }
                    progress.end()
                    try DiskCommand.convert(whole.path, "raw", to: target, format, what: "exporting")
                }
            }
        }
        fileprivate static func convert(_ source: String, _ format: String?, to target: String, _ targetFormat: String?, what: String) throws {
            func choose(_ name: String?, _ file: URL) throws -> DiskConversion.Format {
                let formats = DiskConversion.Format.allCases.map(\.rawValue).joined(separator: ", ")
                guard let name else {
                    guard let format = DiskConversion.Format(of: file) else { throw LibraryError("the name of \(file.path) tells no format; give it with --format: \(formats)") }
                    return format
                }
                guard let format = DiskConversion.Format(rawValue: name) else { throw LibraryError("--format takes \(formats)") }
                return format
            }
            try Machines.report {
                let (from, to) = (URL(fileURLWithPath: source), URL(fileURLWithPath: target))
                let (first, second) = (try choose(format, from), try choose(targetFormat, to))
                Scratch.remove([DiskConversion.temporary(for: to)])
                nonisolated(unsafe) let progress = Percentage(what)
                try DiskConversion().convert(from, first, to: to, second) { progress.show(Int($0 * 100)) }
                progress.end()
            }
        }
    }
#endif
