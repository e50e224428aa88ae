import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Snapshots of machines that go on.
@Suite(.serialized) struct SnapshotTests {
    private static let isInLab = ProcessInfo.processInfo.environment["VZ_KVM_LAB"] != nil
    private let identifier = VZGenericMachineIdentifier()
    private let folder: URL
    private var disk: URL { folder.appendingPathComponent("disk") }
    private var second: URL { folder.appendingPathComponent("second") }

    init() throws {
        folder = try TestAssets.scratch()
        try TestAssets.disk(folder.appendingPathComponent("base"), size: 32 << 20)
        for disk in [disk, second] { try OverlayDiskAttachment.create(at: disk, base: folder.appendingPathComponent("base")) }
    }
    private func machine(_ script: String, memory: UInt64 = 256 << 20, disks: [URL]? = nil, configure: (TestGuest) throws -> Void = { _ in }) throws -> TestGuest {
        try TestGuest(script, cpus: 2, memory: memory) {
            let platform = VZGenericPlatformConfiguration()
            platform.machineIdentifier = identifier
            $0.configuration.platform = platform
            $0.configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
            for disk in disks ?? [disk, second] {
                $0.configuration.storageDevices.append(VZVirtioBlockDeviceConfiguration(attachment: try OverlayDiskAttachment(url: disk)))
            }
            try configure($0)
        }
    }
    private func place(_ number: Int) -> (state: URL, disks: [URL]) {
        (folder.appendingPathComponent("state\(number)"), (0..<2).map { folder.appendingPathComponent("disk\(number).\($0)") })
    }
    private static func number(_ guest: TestGuest, _ prefix: String) -> Int {
        guest.transcript.split(whereSeparator: \.isNewline).compactMap { $0.hasPrefix(prefix) ? Int($0.dropFirst(prefix.count)) : nil }.max() ?? 0
    }
    /// Compares memory with disks over and over; pages are given back and taken again meanwhile.
    private static let work = """
        (while true; do dd if=/dev/zero of=/tmp/big bs=1M count=60 2>/dev/null; rm /tmp/big; sleep 0.2; done) &
        dd if=/dev/urandom of=/tmp/still bs=1M count=20 2>/dev/null; md5sum </tmp/still >/tmp/sum
        i=0; while true; do i=$((i+1))
            dd if=/dev/urandom of=/tmp/a bs=64k count=20 2>/dev/null
            dd if=/tmp/a of=/dev/vda bs=16k conv=fsync,notrunc 2>/dev/null; dd if=/tmp/a of=/dev/vdb bs=64k conv=fsync,notrunc 2>/dev/null
            echo 3 >/proc/sys/vm/drop_caches
            dd if=/dev/vda of=/tmp/b bs=64k count=20 2>/dev/null; dd if=/dev/vdb of=/tmp/c bs=64k count=20 2>/dev/null
            cmp /tmp/a /tmp/b && cmp /tmp/a /tmp/c && [ "$(md5sum </tmp/still)" = "$(cat /tmp/sum)" ] && echo SAME $i || echo WRONG
        done
        """

    @Test func runningMachinesAreKeptWithTheirDisks() throws {
        let first = try machine(Self.work)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("SAME 2"), "\(first.transcript)")
        var counts: [Int] = []
        for round in 0..<3 {
            let (state, disks) = place(round)
            let pause = try first.snapshot(to: state, disks: disks)
            if ProcessInfo.processInfo.environment["VZ_TIMES"] != nil { print("paused for \(Int(pause * 1e6)) µs") }
            counts.append(Self.number(first, "SAME "))
            try #require(first.waitFor("SAME \(counts[round] + 2)"), "\(first.transcript)")
        }
        // The machine itself, stopped, saved and begun again, has everything.
        try first.pause()
        let last = Self.number(first, "SAME ")
        try first.save(to: folder.appendingPathComponent("end"))
        try first.stop()
        #expect(!first.transcript.contains("WRONG"))
        let end = try machine("")
        try end.restore(from: folder.appendingPathComponent("end"))
        try end.resume()
        #expect(end.waitFor("SAME \(last + 2)"), "\(end.transcript)")
        end.finish()

        // Each of the snapshots, in another order, and again from one that has gone on itself.
        for round in [1, 2, 0, 1] {
            let (state, disks) = place(round)
            let tops = disks.map { $0.appendingPathExtension("top\(UUID().uuidString)") }
            for (top, disk) in zip(tops, disks) { try OverlayDiskAttachment.create(at: top, base: disk, baseIsOverlay: true) }
            let guest = try machine("", disks: tops)
            defer { guest.finish() }
            try guest.restore(from: state)
            try guest.resume()
            try #require(guest.waitFor("SAME \(counts[round] + 2)"), "\(guest.transcript)")
            // A snapshot of a restored machine, too.
            let names = tops.map { $0.appendingPathExtension("kept") }
            _ = try guest.snapshot(to: state.appendingPathExtension("again"), disks: names)
            let count = Self.number(guest, "SAME ")
            try #require(guest.waitFor("SAME \(count + 2)"), "\(guest.transcript)")
            #expect(!guest.transcript.contains("WRONG"), "snapshot \(round)")
            if Self.isInLab { break }
        }
    }

    @Test func pausedMachineStaysPaused() throws {
        let guest = try machine("i=0; while true; do i=$((i+1)); echo TICK $i; sleep 0.02; done")
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("TICK 5"))
        try guest.pause()
        let count = Self.number(guest, "TICK ")
        let (state, disks) = place(0)
        _ = try guest.snapshot(to: state, disks: disks)
        #expect(guest.state == .paused)
        usleep(200_000)
        #expect(Self.number(guest, "TICK ") <= count + 1)
        try guest.resume()
        #expect(guest.waitFor("TICK \(count + 5)"))
    }

    @Test func whatCannotBeKeptIsRefusedAndNothingHasHappened() throws {
        let raw = folder.appendingPathComponent("raw")
        try TestAssets.disk(raw, size: 1 << 20)
        let script = "echo UP; while read line; do echo GOT $line; done"
        let guest = try machine(script) {
            $0.configuration.storageDevices.append(VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: raw, readOnly: false)))
        }
        try guest.start()
        let (state, disks) = place(0)
        let before = try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
        #expect(throws: VZError.self) { try guest.snapshot(to: state, disks: disks) }
        try guest.stop()

        let other = try machine(script)
        defer { other.finish() }
        try other.start()
        try #require(other.waitFor("UP"))
        #expect(throws: VZError.self) { try other.snapshot(to: state, disks: []) }
        #expect(throws: VZError.self) { try other.snapshot(to: state, disks: [disks[0], folder.appendingPathComponent("nowhere/disk")]) }
        #expect(throws: VZError.self) { try other.snapshot(to: state, disks: [disks[0], folder.appendingPathComponent("base")]) }
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted() == before)
        other.send("one")
        #expect(other.waitFor("GOT one"))
        // A state that cannot be written: the machine goes on, over disks that have a layer more.
        #expect(throws: VZError.self) { try other.snapshot(to: folder.appendingPathComponent("nowhere/state"), disks: disks) }
        other.send("two")
        #expect(other.waitFor("GOT two"))
        try other.stop()
        #expect(throws: VZError.self) { try other.snapshot(to: state, disks: disks) }
        #expect(try OverlayDiskAttachment(url: disk).base.lastPathComponent == "disk0.0")
    }

    /// What a guest's flush has promised is there, whenever the process is killed: the layers change under a disk that is being written.
    @Test func endingInTheMiddleLosesNothing() throws {
        for delay in [0, 3, 10, 40, 150] {
            let guest = try machine("i=0; while true; do i=$((i+1)); echo WROTE $i | dd of=/dev/vda bs=512 conv=sync,fsync,notrunc 2>/dev/null; echo WROTE $i; done")
            try guest.start()
            try #require(guest.waitFor("WROTE 3"))
            let (state, disks) = place(delay)
            let done = DispatchSemaphore(value: 0)
            nonisolated(unsafe) var error: (any Error)?
            guest.queue.async {
                guest.machine.takeSnapshot(to: state, disks: disks) {
                    error = $0.failure
                    done.signal()
                }
            }
            usleep(UInt32(delay) * 1000)
            try guest.stop()
            let promised = Self.number(guest, "WROTE ")
            #expect(done.wait(timeout: .now() + 60) == .success)
            // Taken whole or not at all.
            #expect((error == nil) == FileManager.default.fileExists(atPath: state.path), "\(String(describing: error))")
            let reader = try machine("dd if=/dev/vda bs=512 count=1 2>/dev/null | head -1")
            try reader.start()
            #expect(reader.waitForStop())
            #expect(Self.number(reader, "WROTE ") >= promised, "\(reader.transcript) after \(promised)")
        }
    }
}
