import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Machines that are saved to a file and go on from it.
@Suite(.serialized) struct SavedStateTests {
    /// Machines of one identity, as a saved one and the restored one have to be.
    private final class Family {
        let identifier = VZGenericMachineIdentifier()
        let address = VZMACAddress.randomLocallyAdministered()
        let folder: URL
        var state: URL { folder.appendingPathComponent("state") }
        init() throws { folder = try TestAssets.scratch() }
        deinit { try? FileManager.default.removeItem(at: folder) }
        func guest(_ script: String = "", cpus: Int = 1, memory: UInt64 = 256 << 20, configure: (TestGuest) throws -> Void = { _ in }) throws -> TestGuest {
            try TestGuest(script, cpus: cpus, memory: memory) {
                let platform = VZGenericPlatformConfiguration()
                platform.machineIdentifier = identifier
                $0.configuration.platform = platform
                try configure($0)
            }
        }
    }
    private static func ticks(_ guest: TestGuest) -> Int {
        guest.transcript.split(whereSeparator: \.isNewline).compactMap { $0.hasPrefix("TICK ") ? Int($0.dropFirst(5)) : nil }.max() ?? 0
    }
    private static let counting = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo TICK $i; sleep 0.02; done"

    @Test(arguments: [1, 2]) func savedMachineGoesOnWhereItWas(cpus: Int) throws {
        let family = try Family()
        let first = try family.guest(Self.counting, cpus: cpus)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("TICK 20"))
        try first.pause()
        try first.save(to: family.state)
        #expect(first.state == .paused)
        let saved = Self.ticks(first)
        // The saved machine itself goes on, too.
        try first.resume()
        try #require(first.waitFor("TICK \(saved + 20)"))
        try first.stop()

        for _ in 0..<2 {
            let second = try family.guest("", cpus: cpus)
            defer { second.finish() }
            try second.restore(from: family.state)
            #expect(second.state == .paused)
            usleep(100_000)
            #expect(Self.ticks(second) == 0)
            try second.resume()
            #expect(second.state == .running)
            try #require(second.waitFor("TICK \(saved + 30)"), "\(second.transcript)")
            #expect(second.transcript.contains("TICK \(saved + 2)"))
            #expect(!second.transcript.contains("TICK \(saved - 1)\r\n"))
        }
    }
}
