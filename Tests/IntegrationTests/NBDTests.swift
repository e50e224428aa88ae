import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Disks of nbdkit and qemu-nbd, under a stock Linux.
@Suite(.serialized) struct NBDTests {
    /// A server on a Unix socket in a directory of its own.
    private final class Server {
        let directory: URL
        var socket: String { directory.appendingPathComponent("socket").path }
        private var process: Process?
        private let command: [String]

        /// - Parameter command: `nbdkit` or `qemu-nbd` and its arguments; `%d` is the directory.
        init(_ command: String...) throws {
            directory = try TestAssets.scratch()
            let directory = directory
            self.command = command.map { $0.replacingOccurrences(of: "%d", with: directory.path) }
        }
        deinit {
            stop()
            try? FileManager.default.removeItem(at: directory)
        }
        func start() throws {
            unlink(socket)
            let process = Process()
            let listen = command[0] == "nbdkit" ? ["-f", "-U", socket] : ["-k", socket, "-t"]
            process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            process.arguments = [command[0]] + listen + command.dropFirst()
            // Whatever becomes of it, it holds nothing open that somebody waits for.
            process.standardOutput = FileHandle.nullDevice
            process.standardInput = FileHandle.nullDevice
            try process.run()
            self.process = process
            for _ in 0..<500 where access(socket, F_OK) != 0 { usleep(20_000) }
            try #require(access(socket, F_OK) == 0, "\(command[0]) did not start")
        }
        func stop() {
            guard let process, process.isRunning else { return }
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
        }
    }
    /// What the delegate hears.
    private final class Listener: VZNetworkBlockDeviceStorageDeviceAttachmentDelegate, @unchecked Sendable {  // locked
        private let lock = NSLock()
        private var heard: [String] = []
        var all: [String] { lock.withLock { heard } }
        func attachmentWasConnected(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) { lock.withLock { heard.append("connected") } }
        func attachment(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment, didEncounterError error: any Error) {
            lock.withLock { heard.append("\((error as? VZError)?.code.rawValue ?? 0) \(error.localizedDescription)") }
        }
    }
    private func attachment(_ server: Server, export: String = "", timeout: TimeInterval = 30, readOnly: Bool = false) throws -> VZNetworkBlockDeviceStorageDeviceAttachment {
        let url = try #require(URL(string: "nbd+unix:///\(export)?socket=\(server.socket)"))
        return try VZNetworkBlockDeviceStorageDeviceAttachment(url: url, timeout: timeout, isForcedReadOnly: readOnly, synchronizationMode: .full)
    }
    private func guest(_ script: String, cpus: Int = 1, _ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) throws -> TestGuest {
        try TestGuest(script, cpus: cpus) { $0.configuration.storageDevices = [VZVirtioBlockDeviceConfiguration(attachment: attachment)] }
    }
    private func run(_ script: String, cpus: Int = 1, _ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) throws -> String {
        let guest = try guest(script, cpus: cpus, attachment)
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop(seconds: 240))
        return guest.transcript
    }
    private func lines(_ text: String) -> [Substring] { text.split(whereSeparator: \.isNewline) }
    /// Writes random bytes in pieces of several sizes, with several at once, and reads them again.
    private static let verify = """
        dd if=/dev/urandom of=/tmp/a bs=1M count=16 2>/dev/null
        for i in 0 1 2 3; do dd if=/tmp/a of=/dev/vda bs=64k skip=$((64*i)) seek=$((64*i)) count=64 conv=notrunc 2>/dev/null & done; wait
        sync; echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/vda of=/tmp/b bs=4k count=4096 2>/dev/null; cmp /tmp/a /tmp/b && echo SAME
        echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/b bs=1M count=16 iflag=direct 2>/dev/null; cmp /tmp/a /tmp/b && echo SAME

        """

    @Test func memoryOfAServerIsADisk() throws {
        let server = try Server("nbdkit", "memory", "64M")
        try server.start()
        let text = try run(
            Self.verify + """
                cat /sys/block/vda/size; ls /sys/block/vda/mq | wc -l
                mkdir -p /mnt; mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt && cp /tmp/a /mnt && umount /mnt && mount -t ext4 /dev/vda /mnt && cmp /tmp/a /mnt/a && echo FILE
                """, cpus: 2, try attachment(server))
        #expect(text.components(separatedBy: "SAME").count == 3, "\(text)")
        #expect(lines(text).contains("131072") && lines(text).contains("2") && lines(text).contains("FILE"), "\(text)")
    }
    /// A certificate authority, and a certificate for localhost, in a directory.
    private func makeCertificates(_ directory: URL) throws {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        let script = """
            cd '\(directory.path)' && printf '[req]\\ndistinguished_name=name\\n[name]\\n' >openssl.cnf && export OPENSSL_CONF="$PWD/openssl.cnf" &&
            openssl req -x509 \(key) -keyout ca-key.pem -out ca-cert.pem -subj /CN=authority -addext basicConstraints=critical,CA:TRUE -days 2 &&
            openssl req \(key) -keyout server-key.pem -out server.csr -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 &&
            openssl x509 -req -in server.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -copy_extensions copy -out server-cert.pem -days 2
            """
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", "(\(script)) >/dev/null 2>&1"]
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0, "openssl could not make certificates")
    }
    private func encrypted(_ server: Server, _ query: String) throws -> VZNetworkBlockDeviceStorageDeviceAttachment {
        try VZNetworkBlockDeviceStorageDeviceAttachment(
            url: try #require(URL(string: "nbds+unix:///?socket=\(server.socket)\(query)")), timeout: 10, isForcedReadOnly: false, synchronizationMode: .full)
    }
    @Test func encryptedConnectionsCarryADisk() throws {
        let server = try Server("nbdkit", "--tls=require", "--tls-certificates=%d", "file", "%d/disk")
        try TestAssets.disk(server.directory.appendingPathComponent("disk"), size: 64 << 20)
        try makeCertificates(server.directory)
        try server.start()
        let guest = try guest("echo READY;" + Self.verify + Self.verify + Self.verify, cpus: 2, try encrypted(server, "&tls-certificates=\(server.directory.path)"))
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("READY"))
        usleep(500_000)
        server.stop()
        try server.start()
        #expect(guest.waitForStop(seconds: 240))
        #expect(guest.transcript.components(separatedBy: "SAME").count == 7, "\(guest.transcript)")
    }
    @Test func serversThatAreNotWhoTheyShouldBeAreRefused() throws {
        let server = try Server("nbdkit", "--tls=require", "--tls-certificates=%d", "memory", "16M")
        try makeCertificates(server.directory)
        try server.start()
        let plain = try Server("nbdkit", "memory", "16M")
        try plain.start()
        let other = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: other) }
        try makeCertificates(other)
        func refusal(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) throws -> String {
            let guest = try guest("", attachment)
            defer { guest.finish() }
            do { try guest.start() } catch let error as VZError {
                #expect(error.code == .networkBlockDeviceNegotiationFailed)
                return error.localizedDescription
            }
            return "started"
        }
        let mine = "&tls-certificates=\(server.directory.path)"
        #expect(try refusal(encrypted(server, "&tls-certificates=\(other.path)")).contains("certificate"))
        #expect(try refusal(encrypted(server, "")).contains("certificate"))
        #expect(try refusal(encrypted(server, mine + "&tls-hostname=example.org")).contains("ostname mismatch"))
        #expect(try refusal(encrypted(server, mine + "&tls-hostname=127.0.0.2")).contains("IP address mismatch"))
        #expect(try refusal(encrypted(server, "&tls-certificates=/nowhere")).contains("/nowhere/ca-cert.pem"))
        #expect(try refusal(encrypted(plain, mine)).contains("does not encrypt"))
        #expect(try refusal(attachment(server)).contains("nbds"))
        #expect(throws: VZError.self) { try encrypted(server, mine + "&tls-verify-peer=perhaps") }
        #expect(try refusal(encrypted(server, mine + "&tls-hostname=127.0.0.1")) == "started")
        #expect(try refusal(encrypted(server, "&tls-verify-peer=false")) == "started")
    }
    @Test func serverThatIsKilledAndComesBackLosesNothing() throws {
        let server = try Server("nbdkit", "file", "%d/disk")
        try TestAssets.disk(server.directory.appendingPathComponent("disk"), size: 64 << 20)
        try server.start()
        let (attachment, listener) = (try attachment(server), Listener())
        attachment.delegate = listener
        let guest = try guest(
            """
            dd if=/dev/urandom of=/tmp/a bs=1M count=24 2>/dev/null; echo READY
            for i in 1 2 3 4 5 6; do
                dd if=/tmp/a of=/dev/vda bs=16k 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches
                dd if=/dev/vda of=/tmp/b bs=128k count=192 2>/dev/null; cmp /tmp/a /tmp/b && echo SAME $i
            done
            """, attachment)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("READY"))
        for turn in 1...4 {
            usleep(300_000)
            server.stop()
            usleep(UInt32(turn) * 250_000)
            try server.start()
        }
        #expect(guest.waitForStop(seconds: 240))
        #expect(guest.transcript.components(separatedBy: "SAME").count == 7, "\(guest.transcript)")
        #expect(!guest.transcript.contains("error"))
        #expect(listener.all.count >= 3 && listener.all.allSatisfy { $0 == "connected" }, "\(listener.all)")
    }
    @Test func serverThatStaysAwayEndsTheDiskNotTheMachine() throws {
        let server = try Server("nbdkit", "memory", "16M")
        try server.start()
        let (attachment, listener) = (try attachment(server, timeout: 2), Listener())
        attachment.delegate = listener
        let guest = try guest("echo UP; read line; dd if=/dev/vda of=/dev/null bs=4k count=1 skip=100 2>&1; echo READ; read line; echo ALIVE", attachment)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("UP"))
        server.stop()
        guest.send("go")
        try #require(guest.waitFor("READ"))
        #expect(guest.transcript.contains("I/O error"))
        for _ in 0..<500 where listener.all.count < 2 { usleep(20_000) }
        #expect(listener.all.count == 2 && listener.all.last?.hasPrefix("20002 ") == true, "\(listener.all)")
        guest.send("go")
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("ALIVE"))
    }
    @Test func errorsAndReadOnlyExportsReachTheGuest() throws {
        let failing = try Server("nbdkit", "--filter=error", "memory", "16M", "error-pread=EIO", "error-pread-rate=100%", "error-file=%d/fail")
        try failing.start()
        let guest = try guest("echo UP; read line; dd if=/dev/vda of=/dev/null bs=4k count=1 skip=9 2>&1; echo READ", try attachment(failing))
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("UP"))
        _ = FileManager.default.createFile(atPath: failing.directory.appendingPathComponent("fail").path, contents: nil)
        guest.send("go")
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("I/O error"))

        let readOnly = try Server("nbdkit", "-r", "memory", "16M")
        try readOnly.start()
        let text = try run("cat /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>&1", try attachment(readOnly))
        #expect(lines(text).contains("1") && text.contains("not permitted"), "\(text)")
        let writable = try Server("nbdkit", "memory", "16M")
        try writable.start()
        #expect(lines(try run("cat /sys/block/vda/ro", try attachment(writable, readOnly: true))).contains("1"))
    }
    @Test func qemusServerWithNamesAndBlockSizes() throws {
        let server = try Server("qemu-nbd", "-f", "raw", "-x", "disk one", "--shared=4", "%d/disk")
        try TestAssets.disk(server.directory.appendingPathComponent("disk"), size: 64 << 20)
        try server.start()
        let text = try run(
            Self.verify + "blkdiscard /dev/vda 2>/dev/null; dd if=/dev/vda bs=1M count=16 2>/dev/null | tr -d '\\\\0' | wc -c", cpus: 2,
            try attachment(server, export: "disk%20one"))
        #expect(text.components(separatedBy: "SAME").count == 3, "\(text)")
        let blocks = try Server(
            "nbdkit", "--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error")
        try blocks.start()
        let large = try run(Self.verify + "cat /sys/block/vda/queue/logical_block_size", try attachment(blocks))
        #expect(large.components(separatedBy: "SAME").count == 3 && large.contains("4096"), "\(large)")
    }
    @Test func startSaysWhatIsWrong() throws {
        func failure(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) throws -> VZError? {
            let guest = try guest("", attachment)
            defer { guest.finish() }
            do { try guest.start() } catch { return error as? VZError }
            return nil
        }
        let server = try Server("nbdkit", "memory", "16M")
        let away = try #require(try failure(attachment(server)))
        #expect(away.code == .networkBlockDeviceNegotiationFailed && away.localizedDescription.contains("no such file"))
        let named = try Server("qemu-nbd", "-f", "raw", "-x", "one", "%d/disk")
        try TestAssets.disk(named.directory.appendingPathComponent("disk"), size: 1 << 20)
        try named.start()
        let wrong = try #require(try failure(attachment(named, export: "two")))
        #expect(wrong.code == .networkBlockDeviceNegotiationFailed && wrong.localizedDescription.contains("two"), "\(wrong)")
    }
}
