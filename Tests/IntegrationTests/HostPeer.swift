import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Tests/Guest/peer.c on the host: a server, or a client that runs to its end.
final class HostPeer {
    private let process = Process()
    private let output = Pipe()
    /// Where a server listens.
    private(set) var port = 0

    private static var program: URL { TestAssets.directory.appendingPathComponent("peer") }

    /// A server at `address` (such as 127.0.0.1 or [::1]), on a port of its own.
    init(serving address: String, datagrams: Bool = false) throws {
        process.executableURL = Self.program
        process.arguments = [datagrams ? "reflect" : "serve", "\(address):0"]
        process.standardOutput = output
        // Whatever becomes of it, it holds nothing open that somebody waits for.
        process.standardError = FileHandle.nullDevice
        process.standardInput = FileHandle.nullDevice
        try process.run()
        let line = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
        port = try #require(line.split(whereSeparator: \.isWhitespace).last.flatMap { Int($0) }, "the server did not start: \(line)")
    }
    deinit { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }

    /// Runs a client; what it printed.
    static func run(_ arguments: String...) throws -> String {
        let (process, output) = (Process(), Pipe())
        process.executableURL = program
        process.arguments = arguments
        process.standardOutput = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return text
    }
}
