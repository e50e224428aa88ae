import Foundation
import Testing

/// Documents stay true to the tree.
struct DocumentsTests {
    private let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    @Test func everyPathInTheCodeMapExists() throws {
        let text = try String(contentsOf: root.appendingPathComponent("ARCHITECTURE.md"), encoding: .utf8)
        let paths = text.matches(of: /`((?:Sources|Tests|Scripts|Documentation|Benchmarks)[^` ]*)`/).map { String($0.1) }
        #expect(paths.count > 15)
        for path in paths { #expect(FileManager.default.fileExists(atPath: root.appendingPathComponent(path).path), "\(path) is gone") }
    }
    @Test func everyRoomIsInTheCodeMap() throws {
        let text = try String(contentsOf: root.appendingPathComponent("ARCHITECTURE.md"), encoding: .utf8)
        for room in try FileManager.default.contentsOfDirectory(atPath: root.appendingPathComponent("Sources").path) {
            #expect(text.contains("`Sources/\(room)`"), "\(room) is not described")
        }
    }
    @Test func importsGoDownwardsOnly() throws {
        let order = [
            "vz", "MachineLibrary", "Virtualization", "Monitor", "VirtioDevices", "PlatformDevices", "GuestBoot", "DiskStorage", "KVMEngine",
            "SoftwareEngine", "X86", "Hypervisor", "GuestMemory", "LinuxSystem",
        ]
        for (rank, room) in order.enumerated() {
            let directory = root.appendingPathComponent("Sources/\(room)")
            let files = FileManager.default.enumerator(at: directory, includingPropertiesForKeys: nil)?.compactMap { $0 as? URL } ?? []
            for file in files where file.pathExtension == "swift" {
                let text = try String(contentsOf: file, encoding: .utf8)
                for line in text.split(separator: "\n") where line.hasPrefix("import ") {
                    let name = String(line.dropFirst(7)).trimmingCharacters(in: .whitespaces)
                    if let other = order.firstIndex(of: name) { #expect(other > rank, "\(file.lastPathComponent) of \(room) imports \(name)") }
                    if name == "Foundation" { #expect(rank <= 2, "\(room) must do without Foundation") }
                }
            }
        }
    }
}
