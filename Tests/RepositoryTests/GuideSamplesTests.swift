import Foundation
import Testing

/// The Swift samples of the usage guide compile unchanged against our module. The guide is not part of this repository;
/// where it is absent the test is reported as skipped.
struct GuideSamplesTests {
    private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
    private static let guide = root.deletingLastPathComponent().appendingPathComponent("shared/seeds/001-direct-usage-guide.txt")

    @Test(.enabled(if: FileManager.default.fileExists(atPath: GuideSamplesTests.guide.path), "the guide is not here"))
    func everySampleOfTheGuideTypeChecks() throws {
        let text = try String(contentsOf: Self.guide, encoding: .utf8)
        let samples = text.components(separatedBy: "```swift\n").dropFirst().compactMap { $0.components(separatedBy: "```").first }
        #expect(samples.count >= 9)
        for (number, sample) in samples.enumerated() where !sample.contains("import PackageDescription") {
            let messages = try typeCheck(Self.completed(sample))
            #expect(messages == nil, "sample \(number + 1): \(messages ?? "")")
        }
    }
    /// Fragments get what the guide's text around them supposes.
    private static func completed(_ sample: String) -> String {
        var sample = sample
        if sample.contains("config."), !sample.contains("let config"), !sample.contains("config:") { sample = "let config = VZVirtualMachineConfiguration()\n" + sample }
        return sample.contains("import Virtualization") ? sample : "import Virtualization\n" + sample
    }
    /// nil, or the compiler's errors.
    private func typeCheck(_ source: String) throws -> String? {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("main-\(UUID().uuidString).swift")
        defer { try? FileManager.default.removeItem(at: file) }
        try source.write(to: file, atomically: true, encoding: .utf8)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        var arguments = ["swiftc", "-typecheck", "-swift-version", "5", "-Xcc", "-D_GNU_SOURCE", "-I", Self.root.appendingPathComponent(".build/release/Modules").path]
        for module in ["CX86", "CLinux", "CCompression"] { arguments += ["-I", Self.root.appendingPathComponent("Sources/\(module)/include").path] }
        process.arguments = arguments + [file.path]
        let output = Pipe()
        process.standardError = output
        process.standardOutput = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return process.terminationStatus == 0 ? nil : text
    }
}
