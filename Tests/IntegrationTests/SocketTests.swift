import Foundation
import HostNetwork
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Streams between the guest's programs and this process, with Linux's own driver at the other end.
@Suite(.serialized) struct SocketTests {
    /// Serves what peer.c asks, on whatever the guest connects to.
    private final class Server: NSObject, VZVirtioSocketListenerDelegate, @unchecked Sendable {  // counters are locked
        let listener = VZVirtioSocketListener()
        private let lock = NSLock()
        private var ports: [UInt32] = []
        var accepts = true
        /// Here the guest's data is taken so slowly that it fills the socket, and what the device keeps behind it.
        let slowPort: UInt32 = 1002
        override init() {
            super.init()
            listener.delegate = self
        }
        var seen: [UInt32] { lock.withLock { ports } }
        func listener(
            _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection, from socketDevice: VZVirtioSocketDevice
        ) -> Bool {
            lock.withLock { ports.append(connection.destinationPort) }
            guard accepts else { return false }
            // As clients do: the duplicate lives on.
            let fd = dup(connection.fileDescriptor)
            connection.close()
            #expect(connection.fileDescriptor == -1)
            let pause: UInt32 = connection.destinationPort == slowPort ? 50_000 : 0
            Thread { Stream(fd).serve(pause) }.start()
            return true
        }
    }
    /// The protocol of peer.c on a descriptor.
    private struct Stream {
        let fd: Int32
        init(_ fd: Int32) { self.fd = fd }

        static func byte(_ index: Int) -> UInt8 { UInt8(truncatingIfNeeded: index &* 31) ^ UInt8(truncatingIfNeeded: index >> 8) ^ UInt8(truncatingIfNeeded: (index >> 16) &* 7) }
        func readAll(_ count: Int) -> [UInt8]? {
            var bytes = [UInt8](repeating: 0, count: count)
            var done = 0
            while done < count {
                let step = bytes.withUnsafeMutableBytes { read(fd, $0.baseAddress.map { $0 + done }, count - done) }
                if step <= 0 { return nil }
                done += step
            }
            return bytes
        }
        @discardableResult func writeAll(_ bytes: [UInt8]) -> Bool {
            var done = 0
            while done < bytes.count {
                let step = bytes.withUnsafeBytes { send(fd, $0.baseAddress.map { $0 + done }, bytes.count - done, Int32(MSG_NOSIGNAL)) }
                if step <= 0 { return false }
                done += step
            }
            return true
        }
        private static let pattern: [UInt8] = (0..<1 << 24).map { byte($0) }
        /// The pattern repeats after 16 MiB.
        func give(_ count: Int) {
            var done = 0
            while done < count {
                let start = done & (1 << 24 - 1)
                let step = min(count - done, 1 << 18, 1 << 24 - start)
                guard writeAll(Array(Self.pattern[start..<start + step])) else { return }
                done += step
            }
        }
        func take(_ count: Int, _ pause: UInt32 = 0) -> Bool {
            var done = 0
            while done < count {
                if pause != 0, done & (1 << 20 - 1) == 0 { usleep(pause) }
                let start = done & (1 << 24 - 1)
                let step = min(count - done, 1 << 16, 1 << 24 - start)
                guard let bytes = readAll(step), bytes.elementsEqual(Self.pattern[start..<start + step]) else { return false }
                done += step
            }
            return true
        }
        static func request(_ operation: Character, _ count: Int) -> [UInt8] {
            [operation.asciiValue ?? 0] + (0..<8).map { UInt8(truncatingIfNeeded: count >> (8 * $0)) }
        }
        func serve(_ pause: UInt32 = 0) {
            defer { close(fd) }
            guard let request = readAll(9) else { return }
            let count = request[1...].reversed().reduce(0) { $0 << 8 | Int($1) }
            switch Character(UnicodeScalar(request[0])) {
            case "S": writeAll(take(count, pause) ? [33] : [63])
            case "R": give(count)
            case "P": writeAll([33])
            default:
                while true {
                    var bytes = [UInt8](repeating: 0, count: 65536)
                    let step = read(fd, &bytes, bytes.count)
                    if step <= 0 || !writeAll(Array(bytes.prefix(step))) { return }
                }
            }
        }
    }

    private func guest(_ script: String, _ ports: [UInt32], _ server: Server) throws -> TestGuest {
        let guest = try TestGuest(script) { $0.configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()] }
        try guest.queue.sync {
            let device = try #require(guest.machine.socketDevices.first as? VZVirtioSocketDevice)
            for port in ports { device.setSocketListener(server.listener, forPort: port) }
        }
        return guest
    }
    private func connect(_ guest: TestGuest, _ port: UInt32) throws -> VZVirtioSocketConnection {
        let done = DispatchSemaphore(value: 0)
        nonisolated(unsafe) var result: Result<VZVirtioSocketConnection, any Error>?
        guest.queue.async {
            guard let device = guest.machine.socketDevices.first as? VZVirtioSocketDevice else {
                done.signal()
                return
            }
            device.connect(toPort: port) {
                result = $0
                done.signal()
            }
        }
        try #require(done.wait(timeout: .now() + 60) == .success)
        return try #require(result).get()
    }

    /// Bytes for each way of a large transfer; `VZ_BULK=1073741824` for a GiB.
    private static let bulk = ProcessInfo.processInfo.environment["VZ_BULK"].flatMap { Int($0) } ?? 100_000_000
    @Test func guestConnectsToTheHost() throws {
        let server = Server()
        let guest = try guest(
            """
            peer send vsock:2:1000 \(Self.bulk); peer receive vsock:2:1000 \(Self.bulk); peer echo vsock:2:1001 20000000
            peer ask vsock:2:1001 500; ulimit -n 2000; peer crowd vsock:2:1001 300
            peer send vsock:2:1002 10000000
            """, [1000, 1001, server.slowPort], server)
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop(seconds: 300))
        for line in ["send", "receive", "echo", "ask", "crowd"] { #expect(guest.transcript.contains("peer \(line) ok"), "\(guest.transcript)") }
        #expect(guest.transcript.components(separatedBy: "peer send ok").count == 3, "\(guest.transcript)")
        #expect(server.seen.prefix(3) == [1000, 1000, 1001])
        #expect(server.seen.count == 804)
    }

    @Test func hostConnectsToTheGuest() throws {
        let guest = try guest("peer serve vsock:4294967295:7000 & sleep 1; echo SERVES; read line", [], Server())
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("SERVES"))
        let count = Self.bulk
        let sending = try connect(guest, 7000)
        #expect(sending.destinationPort == 7000)
        #expect(sending.sourcePort >= 1 << 30)
        #expect(Stream(sending.fileDescriptor).writeAll(Stream.request("S", count)))
        Stream(sending.fileDescriptor).give(count)
        #expect(Stream(sending.fileDescriptor).readAll(1) == [33])
        let receiving = try connect(guest, 7000)
        Stream(receiving.fileDescriptor).writeAll(Stream.request("R", count))
        #expect(Stream(receiving.fileDescriptor).take(count))
        // Half-closed: the guest's server sees the end, and still answers.
        let echoing = try connect(guest, 7000)
        let echo = Stream(echoing.fileDescriptor)
        echo.writeAll(Stream.request("E", 0))
        echo.writeAll([1, 2, 3])
        shutdown(echoing.fileDescriptor, Int32(SHUT_WR))
        #expect(echo.readAll(3) == [1, 2, 3])
        #expect(echo.readAll(1) == nil)
        // Many at once, and one after the other.
        let crowd = try (0..<100).map { _ in try connect(guest, 7000) }
        for connection in crowd { Stream(connection.fileDescriptor).writeAll(Stream.request("P", 1)) }
        for connection in crowd { #expect(Stream(connection.fileDescriptor).readAll(1) == [33]) }
        for connection in crowd { connection.close() }
        guest.send("end")
        #expect(guest.waitForStop())
    }

    @Test func portsWithoutListenersResetAtOnce() throws {
        let server = Server()
        server.accepts = false
        let guest = try guest("peer ask vsock:2:1 1; peer ask vsock:2:1000 1; peer ask vsock:9:1 1; echo ASKED; read line", [1000], server)
        defer { guest.finish() }
        // Nobody there at all.
        #expect(throws: POSIXError(.ECONNRESET)) { try connect(guest, 7000) }
        try guest.start()
        try #require(guest.waitFor("ASKED"))
        #expect(guest.transcript.components(separatedBy: "Connection reset by peer").count >= 3, "\(guest.transcript)")
        #expect(server.seen == [1000])
        #expect(throws: POSIXError(.ECONNRESET)) { try connect(guest, 7000) }
        guest.queue.sync { (guest.machine.socketDevices.first as? VZVirtioSocketDevice)?.removeSocketListener(forPort: 1000) }
        guest.send("end")
        #expect(guest.waitForStop())
        #expect(throws: POSIXError(.ECONNRESET)) { try connect(guest, 7000) }
    }

    private func blocking(_ fd: Int32) throws -> Int32 {
        try #require(fd >= 0)
        #expect(fcntl(fd, F_SETFL, 0) == 0)
        return fd
    }

    /// Programs of the host reach the guest, and are reached by it, at Unix sockets.
    @Test func unixSocketsLeadToTheGuestAndFromIt() throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("vz-doors-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let (door, service) = (folder.path + "/door", folder.path + "/service")
        let listening = try blocking(UnixSocket.listen(service))
        defer { close(listening) }
        let guest = try guest("peer serve vsock:4294967295:7000 & peer ask vsock:2:1002 40; echo SERVES; read line", [], Server())
        defer { guest.finish() }
        let device = try #require(guest.queue.sync { guest.machine.socketDevices.first as? VZVirtioSocketDevice })
        var opened: SocketDoor? = try guest.queue.sync {
            device.carryConnections(toPort: 1002, toSocketAt: service)
            return try device.openDoor(at: door, toPort: 7000)
        }
        #expect(throws: (any Error).self) { _ = try guest.queue.sync { try device.openDoor(at: door, toPort: 7001) } }
        Thread {
            while true {
                let fd = accept4(listening, .init(), nil, 0)
                if fd < 0 { return }
                Thread { Stream(fd).serve() }.start()
            }
        }.start()
        try guest.start()
        try #require(guest.waitFor("SERVES"))
        #expect(guest.transcript.contains("peer ask ok"))
        let count = 5_000_000
        for _ in 0..<3 {
            let stream = Stream(try blocking(UnixSocket.connect(door)))
            stream.writeAll(Stream.request("R", count))
            #expect(stream.take(count))
            close(stream.fd)
        }
        withExtendedLifetime(opened) {}
        opened = nil
        #expect(access(door, F_OK) != 0)
        #expect(UnixSocket.connect(door) == -1)
        guest.send("end")
        #expect(guest.waitForStop())
        shutdown(listening, Int32(SHUT_RDWR))
    }

    @Test func listenersOutliveAReboot() throws {
        let server = Server()
        let guest = try guest("peer ask vsock:2:1000 1; read line; [ $line = again ] && reboot -f", [1000], server)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("peer ask ok"))
        guest.clearTranscript()
        guest.send("again")
        try #require(guest.waitFor("peer ask ok"))
        guest.send("end")
        #expect(guest.waitForStop())
    }
}
