import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Large files that the guest reads and writes in the host's memory.
@Suite(.serialized) struct MappedFileTests {
    private final class Place {
        let url = TestAssets.directory.deletingLastPathComponent().appendingPathComponent("mapped-\(UUID().uuidString)")
        var file: URL { url.appendingPathComponent("large") }
        init() throws { try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true) }
        deinit { try? FileManager.default.removeItem(at: url) }

        /// Byte n of page p is p.
        func fill(pages: Int) throws {
            var data = Data()
            for page in 0..<pages { data.append(contentsOf: [UInt8](repeating: UInt8(truncatingIfNeeded: page), count: 4096)) }
            try data.write(to: file)
        }
        func put(_ bytes: [UInt8], at offset: Int, in url: URL? = nil) {
            let descriptor = open((url ?? file).path, O_WRONLY)
            #expect(descriptor >= 0 && pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count)
            close(descriptor)
        }
        func share(_ guest: TestGuest, readOnly: Bool = false) {
            let device = VZVirtioFileSystemDeviceConfiguration(tag: "share")
            device.share = VZSingleDirectoryShare(directory: VZSharedDirectory(url: url, readOnly: readOnly))
            device.areFilesMapped = true
            guest.configuration.directorySharingDevices = [device]
        }
    }
    private static let mount = "mkdir /s; mount -t virtiofs share /s; "
    private static func times(_ text: String, in guest: TestGuest) -> Int { guest.transcript.components(separatedBy: text).count - 1 }
    private static func wait(for count: Int, of text: String, in guest: TestGuest) -> Bool {
        for _ in 0..<3000 where times(text, in: guest) < count { usleep(20_000) }
        return times(text, in: guest) >= count
    }

    @Test func bothSidesSeeEachOthersBytesAtOnce() throws {
        let place = try Place()
        try place.fill(pages: 1300)
        try Data("small".utf8).write(to: place.url.appendingPathComponent("small"))
        let guest = try TestGuest(
            Self.mount + "mapped is /s/large; mapped is /s/small; md5sum </s/large; mapped put /s/large 3000000 from-the-guest; echo PUT; mapped watch /s/large 4096000"
        ) { place.share($0) }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("SEEN"))
        #expect(guest.transcript.contains("/s/large is mapped") && guest.transcript.contains("/s/small is cached"), "\(guest.transcript)")
        #expect(try Data(contentsOf: place.file)[3_000_000..<3_000_014] == Data("from-the-guest".utf8))
        place.put([77], at: 4_096_000)
        guest.send("again")
        #expect(guest.waitFor("SEEN 77"))
        guest.send(".")
        #expect(guest.waitForStop())
    }

    @Test func writingInPlaceChangesTheTime() throws {
        let place = try Place()
        try place.fill(pages: 600)
        let guest = try TestGuest(
            Self.mount
                + """
                for i in 1 2 3; do
                    mapped put /s/large 2000000 text$i; sync /s/large; sleep 1.3; set -- $(stat -c '%Y' /s/large) $(date +%s)
                    echo "TIME $i $(($2 - $1 < 4 && $1 - ${last:-0} > 0))"; last=$1; sleep 1.3
                done
                """
        ) { place.share($0) }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop())
        for i in 1...3 { #expect(guest.transcript.contains("TIME \(i) 1"), "\(guest.transcript)") }
        #expect(try Data(contentsOf: place.file)[2_000_000..<2_000_005] == Data("text3".utf8))
    }

    /// Where the file has no page any more, there are zeroes; and what it has again later is seen.
    @Test(arguments: [true, false]) func filesGetShorterUnderTheGuest(readOnly: Bool) throws {
        let place = try Place()
        try place.fill(pages: 1300)
        let guest = try TestGuest(Self.mount + "mapped watch /s/large 4915200; echo STILL THERE; cat /proc/uptime") { place.share($0, readOnly: readOnly) }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("SEEN -80"))  // page 1200
        try #require(truncate(place.file.path, 1_500_000) == 0)
        guest.send("look")
        #expect(guest.waitFor("SEEN 0"))
        try place.fill(pages: 1300)
        usleep(300_000)
        guest.send("look")
        #expect(Self.wait(for: 2, of: "SEEN -80", in: guest), "\(guest.transcript)")
        guest.send(".")
        #expect(guest.waitFor("STILL THERE"))
        #expect(guest.waitForStop())
    }

    private static let mayMount: Bool = {
        guard let place = try? Place() else { return false }
        defer { umount2(place.url.path, Int32(MNT_DETACH)) }
        return Glibc.mount("tmpfs", place.url.path, "tmpfs", 0, "size=16m") == 0
    }()
    /// A sparse file that is larger than the disk: the guest hears of it, at once, and nothing is lost of what it was told is there.
    @Test(.enabled(if: mayMount, "needs the right to mount a small file system")) func diskIsFull() throws {
        let place = try Place()
        try #require(Glibc.mount("tmpfs", place.url.path, "tmpfs", 0, "size=16m") == 0)
        defer { umount2(place.url.path, Int32(MNT_DETACH)) }
        try Data().write(to: place.file)
        try #require(truncate(place.file.path, 40 << 20) == 0)
        let guest = try TestGuest(
            Self.mount
                + """
                mapped is /s/large; mapped fill /s/large; sync; md5sum </s/large; echo MORE >/s/small || echo REFUSED
                read line; truncate -s 2M /s/large; echo MORE >/s/small && mapped put /s/large 1000000 from-the-guest; sync; echo DONE
                """
        ) { place.share($0) }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("REFUSED"), "\(guest.transcript)")
        for line in ["large is mapped", "FILLED 16 MiB", "WRITE says no space"] { #expect(guest.transcript.contains(line), "\(guest.transcript)") }
        let data = try Data(contentsOf: place.file)
        #expect((0..<4096).allSatisfy { data[$0 * 4096] == 1 } && data.count == 40 << 20)
        guest.send("go on")
        #expect(guest.waitFor("DONE"), "\(guest.transcript)")
        #expect(guest.waitForStop())
        #expect(try Data(contentsOf: place.file)[1_000_000..<1_000_014] == Data("from-the-guest".utf8))
        #expect(try String(contentsOf: place.url.appendingPathComponent("small"), encoding: .utf8) == "MORE\n")
    }

    /// A program that the guest runs from the share is written over, in place.
    @Test func programsAreReplaced() throws {
        let place = try Place()
        var program = try Data(contentsOf: TestAssets.directory.appendingPathComponent("mapped"))
        let number = Data([0x01, 0xE0, 0xA7, 0x51])
        let at = try #require(program.range(of: number)).lowerBound
        program.append(Data(count: max(0, 1_200_000 - program.count)))
        let file = place.url.appendingPathComponent("program")
        try program.write(to: file)
        chmod(file.path, 0o755)
        let guest = try TestGuest(
            Self.mount + "mapped is /s/program; /s/program answer; /s/program answer; read line; /s/program answer; cp /s/program /tmp/p; /tmp/p answer"
        ) { place.share($0) }
        defer { guest.finish() }
        try guest.start()
        try #require(Self.wait(for: 2, of: "ANSWER 51a7e001", in: guest))
        #expect(guest.transcript.contains("/s/program is mapped"))
        place.put([0x02], at: at, in: file)
        guest.send("go")
        #expect(guest.waitForStop())
        #expect(Self.times("ANSWER 51a7e002", in: guest) == 2, "\(guest.transcript)")
    }

    @Test(arguments: [1, 2]) func randomOperationsOnLargeFiles(cpus: Int) throws {
        let place = try Place()
        try place.fill(pages: 1500)
        let guest = try TestGuest(Self.mount + "posix /s 1500 large", cpus: cpus) { place.share($0) }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop(seconds: 400))
        let lines = guest.transcript.split(whereSeparator: \.isNewline)
        #expect(lines.contains { $0.hasPrefix("posix ") && $0.hasSuffix(" checks, 0 wrong") }, "\(guest.transcript)")
    }

    @Test func releasedMachinesMapNothing() throws {
        let place = try Place()
        try place.fill(pages: 1300)
        func mappings() -> Int { OwnProcess.mappings(of: place.file.path) }
        func descriptors() -> Int { OwnProcess.descriptors(of: place.file.path) }
        var guest: TestGuest? = try TestGuest(Self.mount + "mapped watch /s/large 4096000") { place.share($0) }
        try guest?.start()
        #expect(guest?.waitFor("SEEN") == true)
        #expect(mappings() > 0 && descriptors() > 0)
        guest = nil  // released while it runs
        let end = Date().addingTimeInterval(10)
        while Date() < end, mappings() > 0 || !OwnProcess.machineThreads.isEmpty || descriptors() > 0 { Thread.sleep(forTimeInterval: 0.05) }
        #expect(mappings() == 0 && descriptors() == 0)
        #expect(OwnProcess.machineThreads == [])
    }

    @Test func savedMachinesGoOnMapping() throws {
        let place = try Place()
        try place.fill(pages: 1300)
        let identifier = VZGenericMachineIdentifier()
        func guest(_ script: String) throws -> TestGuest {
            try TestGuest(script) {
                let platform = VZGenericPlatformConfiguration()
                platform.machineIdentifier = identifier
                $0.configuration.platform = platform
                place.share($0)
            }
        }
        let state = place.url.appendingPathComponent("state")
        let first = try guest(Self.mount + "mapped put /s/large 4096000 x; mapped watch /s/large 4096000; mapped put /s/large 4096001 y; md5sum /s/large")
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("SEEN 120"))
        try first.pause()
        try first.save(to: state)
        try first.stop()
        place.put([99], at: 4_096_000)
        let second = try guest("")
        defer { second.finish() }
        try second.restore(from: state)
        try second.resume()
        second.send("look")
        #expect(second.waitFor("SEEN 99"))
        second.send(".")
        #expect(second.waitForStop())
        #expect(try Data(contentsOf: place.file)[4_096_000..<4_096_002] == Data([99, 121]))
    }
}
