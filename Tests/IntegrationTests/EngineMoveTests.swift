import Foundation
import Testing
import TestSupport
import Virtualization

/// Machines that are saved on one engine and go on under another.
@Suite(.serialized) struct EngineMoveTests {
    private static let hasKVM = MachineEngine.report.chosen == "kvm"
    /// Every way there is here: where KVM cannot be used, from the software engine to itself on another time stamp counter.
    private static let ways: [[MachineEngine]] = hasKVM ? [[.software, .kvm], [.kvm, .software, .kvm]] : [[.software, .software, .software]]

    private final class Family {
        let identifier = VZGenericMachineIdentifier()
        let folder: URL
        var state: URL { folder.appendingPathComponent("state") }
        init() throws { folder = try TestAssets.scratch() }
        deinit { try? FileManager.default.removeItem(at: folder) }
        func guest(_ script: String, _ engine: MachineEngine, _ level: ProcessorLevel, cpus: Int = 2) throws -> TestGuest {
            try TestGuest(script, cpus: cpus) {
                let platform = VZGenericPlatformConfiguration()
                platform.machineIdentifier = identifier
                $0.configuration.platform = platform
                $0.configuration.engine = engine
                $0.configuration.processorLevel = level
            }
        }
    }
    /// One program keeps a sum in double precision, another hashes the same file, a shell counts and looks at the clock.
    private static let script = """
        awk 'BEGIN { for (i = 1; ; i++) { s += 1 / (i * i); if (i % 10000 == 0) { printf "SUM %d %.17g END\\n", i, s; fflush() } } }' &
        h=$(sha256sum /bin/busybox); (while true; do [ "$(sha256sum /bin/busybox)" = "$h" ] || echo WRONG; done) &
        i=0; while true; do i=$((i+1)); echo TICK $i $(date +%s) END; sleep 0.05; done
        """
    private static func lines(_ guest: TestGuest, _ prefix: String) -> [[Substring]] {
        guest.transcript.split(whereSeparator: \.isNewline).filter { $0.hasPrefix(prefix) && $0.hasSuffix(" END") }.map { $0.split(separator: " ") }
    }
    private static func clockLag(_ guest: TestGuest) throws -> Int {
        let line = try #require(lines(guest, "TICK ").last)
        return Int(Date().timeIntervalSince1970) - (try #require(Int(line[2])))
    }
    private static func last(_ guest: TestGuest, _ prefix: String) -> Int { lines(guest, prefix).last.flatMap { Int($0[1]) } ?? 0 }

    @Test(arguments: ways) func machineGoesOnUnderAnotherEngine(way: [MachineEngine]) throws {
        let family = try Family()
        var guest = try family.guest(Self.script, way[0], .v2)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("TICK 5 ", seconds: 300), "\(guest.transcript)")
        try #require(guest.waitFor("SUM 20000 ", seconds: 300), "\(guest.transcript)")
        // Where booting takes long, Linux loses seconds while it has only its ticks to count.
        let lag = try Self.clockLag(guest)
        for engine in way.dropFirst() {
            try guest.pause()
            try guest.save(to: family.state)
            let (ticks, sums) = (Self.last(guest, "TICK "), Self.last(guest, "SUM "))
            #expect(ticks > 0 && sums > 0)
            try guest.stop()
            guest = try family.guest("", engine, .v2)
            try guest.restore(from: family.state)
            try guest.resume()
            try #require(guest.waitFor("TICK \(ticks + 20) ", seconds: 300), "\(way) \(engine): \(guest.transcript)")
            #expect(abs(try Self.clockLag(guest) - lag) <= 2)
            try #require(guest.waitFor("SUM \(sums + 20000) ", seconds: 300), "\(way) \(engine): \(guest.transcript)")
            check(guest)
        }
    }
    private func check(_ guest: TestGuest) {
        #expect(!guest.transcript.contains("WRONG"))
        var (sum, next) = (0.0, 1)
        for line in Self.lines(guest, "SUM ") {
            guard let count = Int(line[1]), let value = Double(line[2]) else { continue }
            while next <= count {
                sum += 1 / (Double(next) * Double(next))
                next += 1
            }
            #expect(sum == value, "\(line)")
        }
    }

    /// A machine that was shown all of its host's processor does not fit the other engine, which says what is missing.
    @Test func whatIsMissingIsNamed() throws {
        let family = try Family()
        let first = try family.guest("echo UP; read line", Self.hasKVM ? .kvm : .software, .host, cpus: 1)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("UP", seconds: 300))
        try first.pause()
        try first.save(to: family.state)
        try first.stop()
        let second = try family.guest("", .software, .host, cpus: 1)
        defer { second.finish() }
        do {
            try second.restore(from: family.state)
            #expect(!Self.hasKVM)
        } catch let error as VZError {
            #expect(Self.hasKVM && error.code == .restore && error.localizedDescription.contains("smep"), "\(error)")
            #expect(second.state == .stopped)
        }
    }
}
