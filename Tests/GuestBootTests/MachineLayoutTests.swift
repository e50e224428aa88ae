import Foundation
import GuestBoot
import Testing

struct MachineLayoutTests {
    @Test func rangesDoNotOverlapAndAscend() {
        for (a, b) in zip(MachineLayout.ranges, MachineLayout.ranges.dropFirst()) {
            #expect(a.start + a.size <= b.start, "\(a.name) runs into \(b.name)")
        }
    }
    @Test func documentedTableIsPrintedFromTheConstants() throws {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let file = root.appendingPathComponent("Documentation/memory-map.md")
        if ProcessInfo.processInfo.environment["VZ_WRITE_GOLDEN"] != nil {
            try ("# The board's addresses\n\nPrinted from `MachineLayout`; a test compares.\n\n" + MachineLayout.table()).write(to: file, atomically: true, encoding: .utf8)
        }
        #expect(try String(contentsOf: file, encoding: .utf8).hasSuffix(MachineLayout.table()))
    }
    @Test func kernelParserSurvivesRandomDamage() throws {
        var header = [UInt8](repeating: 0, count: 8192)
        header.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        header[0x206] = 0x0F
        header[0x207] = 2
        header[0x236] = 1
        var random = SystemRandomNumberGenerator()
        for _ in 0..<20_000 {
            var file = header
            for _ in 0..<8 { file[0x1F1 + Int(random.next() % 0x90)] = UInt8.random(in: 0...255) }
            _ = try? KernelImage(file)
        }
        var elf: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 1017)
        elf[18] = 62
        for _ in 0..<20_000 {
            for _ in 0..<8 { elf[20 + Int(random.next() % 100)] = UInt8.random(in: 0...255) }
            _ = try? KernelImage(elf)
        }
    }
}
