#if os(Linux)
    import ArgumentParser
    import Foundation
    import MachineLibrary
    import Virtualization

    struct DiskCommand: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "disk", abstract: "Make, examine and merge disk overlays.",
            discussion: """
                An overlay keeps what is written in a file of its own and reads everything else from a base, which is never written
                and may be shared by many overlays.

                EXAMPLES
                  vz disk create mine.overlay --base debian.img
                  vz run --kernel vmlinuz --disk debian.img,overlay=mine.overlay
                  vz disk info mine.overlay
                  vz disk merge mine.overlay
                """, subcommands: [Create.self, Info.self, Check.self, Merge.self])

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
    }
#endif
