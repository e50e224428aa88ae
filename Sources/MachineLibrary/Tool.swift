import Foundation

/// A program of the host that we run.
public struct Tool: Sendable {
    public let name: String
    /// The Debian package to name when it is missing.
    public let package: String

    public static let mmdebstrap = Tool(name: "mmdebstrap", package: "mmdebstrap")
    public static let mke2fs = Tool(name: "mke2fs", package: "e2fsprogs")
    public static let depmod = Tool(name: "depmod", package: "kmod")
    public static let busybox = Tool(name: "busybox", package: "busybox-static")
    public static let qemuImg = Tool(name: "qemu-img", package: "qemu-utils")
    public static let all = [mmdebstrap, mke2fs, depmod, busybox]

    public var path: String? {
        let places = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"]
        return places.map { "\($0)/\(name)" }.first { access($0, X_OK) == 0 }
    }
    public func require() throws -> String {
        guard let path else { throw LibraryError("\(name) is not installed; it comes with the Debian package \(package) (apt-get install \(package))") }
        return path
    }

    /// Runs a program to its end, its output into `log`; throws with the log's last lines when it fails.
    static func run(_ path: String, _ arguments: [String], environment: [String: String] = [:], log: URL) throws {
        _ = FileManager.default.createFile(atPath: log.path, contents: nil)
        let output = try FileHandle(forWritingTo: log)
        defer { try? output.close() }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = arguments
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        try process.run()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            let text = (try? String(contentsOf: log, encoding: .utf8)) ?? ""
            let tail = text.split(separator: "\n").suffix(8).joined(separator: "\n  ")
            throw LibraryError("\(URL(fileURLWithPath: path).lastPathComponent) failed with status \(process.terminationStatus):\n  \(tail)")
        }
    }
}
