import CLinux
import Foundation
import Testing
import Virtualization

/// Directories of the host in a guest with Linux's own virtiofs.
@Suite(.serialized) struct SharingTests {
    /// On a disk's file system: /tmp may be one without extended attributes.
    private func directory() throws -> URL {
        let url = TestAssets.directory.deletingLastPathComponent().appendingPathComponent("share-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        chmod(url.path, 0o755)
        return url
    }
    private func device(_ tag: String, _ share: VZDirectoryShare?) -> VZVirtioFileSystemDeviceConfiguration {
        let device = VZVirtioFileSystemDeviceConfiguration(tag: tag)
        device.share = share
        return device
    }
    private func single(_ url: URL, readOnly: Bool = false) -> VZDirectoryShare {
        VZSingleDirectoryShare(directory: VZSharedDirectory(url: url, readOnly: readOnly))
    }

    @Test func filesBehaveAsPOSIXSays() throws {
        let (shared, other) = (try directory(), try directory())
        defer { for url in [shared, other] { try? FileManager.default.removeItem(at: url) } }
        let guest = try TestGuest(
            """
            mkdir /one /more; mount -t virtiofs one /one; mount -t virtiofs more /more
            posix /one; posix /more/second | sed s/^/more-/; ls /more
            """, cpus: 2
        ) {
            $0.configuration.directorySharingDevices = [
                device("one", single(shared)),
                device("more", VZMultipleDirectoryShare(directories: ["second": VZSharedDirectory(url: other, readOnly: false)])),
            ]
        }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop(seconds: 400))
        let lines = guest.transcript.split(whereSeparator: \.isNewline)
        #expect(lines.contains { $0.hasPrefix("posix ") && $0.hasSuffix(" checks, 0 wrong") }, "\(guest.transcript)")
        #expect(lines.contains { $0.hasPrefix("more-posix ") && $0.hasSuffix(" checks, 0 wrong") }, "\(guest.transcript)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: shared.path).isEmpty)
    }

    /// What containers do: a file system in layers, the upper one in a directory of the host. The host has what it writes down of
    /// removed and replaced directories under names of ours.
    @Test func sharesTakeTheUpperLayer() throws {
        let shared = try directory()
        defer { try? FileManager.default.removeItem(at: shared) }
        let guest = try TestGuest(
            """
            mkdir /s /low /low/d /both; mount -t virtiofs share /s; mkdir /s/up /s/work; echo low >/low/a; echo b >/low/b; echo c >/low/d/c
            layers() { mount -t overlay overlay -o lowerdir=/low,upperdir=/s/up,workdir=/s/work /both && cd /both; }
            layers; echo new >>a; rm b; rm -r d; mkdir d; echo y >d/y; mv a a2; ln -s a2 l; cd /; umount /both
            layers; echo SEEN $(cat l) $(echo *) $(echo d/*); cd /
            """
        ) { $0.configuration.directorySharingDevices = [device("share", single(shared))] }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("SEEN low new a2 d l d/y"), "\(guest.transcript)")
        let kept = shared.appendingPathComponent("up/d").path
        #expect(getxattr(kept, "user.vz.trusted.overlay.opaque", nil, 0) == 1)
    }

    @Test func hostsChangesAreSeenAndGuestsChangesAre() throws {
        let shared = try directory()
        defer { try? FileManager.default.removeItem(at: shared) }
        let file = shared.appendingPathComponent("file")
        try Data("first".utf8).write(to: file)
        let guest = try TestGuest(
            """
            mkdir /s; mount -t virtiofs share /s; cat /s/file; echo; read line; sleep 1.5; cat /s/file; echo; ls /s
            echo from-guest >/s/answer; chmod 600 /s/answer; mv /s/answer /s/renamed; sync; echo WRITTEN; read line
            """
        ) { $0.configuration.directorySharingDevices = [device("share", single(shared))] }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("first"))
        try Data("second version".utf8).write(to: file)
        try Data().write(to: shared.appendingPathComponent("appeared"))
        guest.send("go")
        #expect(guest.waitFor("second version"))
        #expect(guest.waitFor("appeared"))
        try #require(guest.waitFor("WRITTEN"))
        #expect(try String(contentsOf: shared.appendingPathComponent("renamed"), encoding: .utf8) == "from-guest\n")
        guest.send("end")
        #expect(guest.waitForStop())
    }

    @Test func readOnlyMeansSoAndSharesCanBeReplaced() throws {
        let (first, second) = (try directory(), try directory())
        defer { for url in [first, second] { try? FileManager.default.removeItem(at: url) } }
        try Data("of the first".utf8).write(to: first.appendingPathComponent("a"))
        try Data("of the second".utf8).write(to: second.appendingPathComponent("b"))
        let guest = try TestGuest(
            """
            mkdir /s; mount -t virtiofs share /s; cat /s/a; echo; touch /s/new; rm /s/a; echo TRIED; read line
            umount /s; mount -t virtiofs share /s; cat /s/b; echo; touch /s/new && echo MADE; read line
            """
        ) { $0.configuration.directorySharingDevices = [device("share", single(first, readOnly: true))] }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("TRIED"))
        #expect(guest.transcript.contains("of the first"))
        #expect(guest.transcript.components(separatedBy: "Read-only file system").count == 3, "\(guest.transcript)")
        guest.queue.sync { (guest.machine.directorySharingDevices.first as? VZVirtioFileSystemDevice)?.share = single(second) }
        guest.send("go")
        #expect(guest.waitFor("of the second"))
        #expect(guest.waitFor("MADE"))
        #expect(FileManager.default.fileExists(atPath: second.appendingPathComponent("new").path))
        guest.send("end")
        #expect(guest.waitForStop())
    }

    @Test func configurationsThatCannotWorkAreRefused() throws {
        let place = try directory()
        defer { try? FileManager.default.removeItem(at: place) }
        let file = place.appendingPathComponent("file")
        try Data().write(to: file)
        for (devices, word) in [
            ([device("", nil)], "tag is empty"), ([device(String(repeating: "t", count: 36), nil)], "longer"),
            ([device("same", nil), device("same", nil)], "same"), ([device("t", single(file))], "not a directory"),
            ([device("t", single(URL(fileURLWithPath: "/nowhere")))], "/nowhere"),
        ] {
            let guest = try TestGuest("true")
            guest.configuration.directorySharingDevices = devices
            do {
                try guest.configuration.validate()
                Issue.record("valid: \(word)")
            } catch { #expect("\(error.localizedDescription)".contains(word), "\(error.localizedDescription)") }
        }
    }
}
