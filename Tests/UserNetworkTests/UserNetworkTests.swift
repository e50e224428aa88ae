import CLinux
import Foundation
import Glibc
import HostNetwork
import TestSupport
import Testing

import UserNetwork

@Suite(.serialized) struct UserNetworkTests {
    private typealias Guest = FakeGuest

    private func big32(_ bytes: [UInt8], _ at: Int) -> UInt32 { bytes[at..<at + 4].reduce(0) { $0 << 8 | UInt32($1) } }

    @Test func addressBlocksHoldWhatTheySay() throws {
        let block = try #require(AddressBlock("10.0.0.0/8"))
        #expect(block.contains(IPAddress(10, 255, 1, 2)))
        #expect(!block.contains(IPAddress(11, 0, 0, 1)))
        #expect(!block.contains(try #require(IPAddress("fd00::1"))))
        let six = try #require(AddressBlock("fd00::/9"))
        #expect(six.contains(try #require(IPAddress("fd7f::1"))))
        #expect(!six.contains(try #require(IPAddress("fd80::1"))))
        #expect(try #require(AddressBlock("0.0.0.0/0")).contains(IPAddress(1, 2, 3, 4)))
        #expect(try #require(AddressBlock("::1")).contains(.loopback6))
        for text in ["10.0.0.0/33", "host", "1.2.3", "fd00::/129", "/8", ""] { #expect(AddressBlock(text) == nil) }
        #expect(IPAddress("2001:db8::7")?.description == "2001:db8::7")
        #expect(SocketAddress(.loopback6, 80).description == "[::1]:80")
    }
    @Test func resolverReadsWhatTheCLibraryReads() {
        let text = "# none\nnameserver 10.1.1.1\nnameserver\tfd00::53\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions edns0\n"
        let (servers, domains) = Resolver.parse(text)
        #expect(servers.map(\.description) == ["10.1.1.1", "fd00::53"])
        #expect(domains == ["a.example", "b.example"])
        #expect(Resolver.parse("").servers == [.loopback4])
    }
    @Test func questionsGoToTheHostsServerAndItsChangesAreSeen() throws {
        let server = HostListener(datagrams: true)
        let path = "/tmp/vz-resolv-\(getpid())"
        defer { unlink(path) }
        try "nameserver 127.0.0.9\n".write(toFile: path, atomically: true, encoding: .utf8)
        var options = UserNetwork.Options()
        options.resolverPath = path
        options.nameServerPort = UInt16(server.port)
        let guest = try Guest(options)
        let question: [UInt8] = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 97, 4, 116, 101, 115, 116, 0, 0, 1, 0, 1]
        guest.send(Guest.ip(17, Guest.udp(5000, 53, question)))
        // Nobody there; then the host's configuration changes.
        try "nameserver 127.0.0.1\n".write(toFile: path, atomically: true, encoding: .utf8)
        guest.send(Guest.ip(17, Guest.udp(5001, 53, question)))
        var buffer = [UInt8](repeating: 0, count: 512)
        var from = sockaddr_in()
        var length = UInt32(MemoryLayout<sockaddr_in>.size)
        var entry = pollfd(fd: server.fd, events: Int16(POLLIN), revents: 0)
        try #require(poll(&entry, 1, 2000) == 1)
        #expect(clinux_recvfrom(server.fd, &buffer, 512, &from, &length) == question.count)
        #expect(buffer.starts(with: question))
        _ = clinux_connect(server.fd, &from, length)
        #expect(send(server.fd, [1, 2, 3] as [UInt8], 3, 0) == 3)
        let answer = try #require(guest.receive())
        // From the router's name server, to who asked.
        #expect(answer[26..<30] == [192, 168, 64, 1])
        #expect(Array(answer[34..<38]) == Guest.bytes16(53) + Guest.bytes16(5001))
        #expect(answer[42...] == [1, 2, 3])
    }
    @Test func framesOfAnotherCardAreDropped() throws {
        let guest = try Guest()
        var ping = Guest.ip(1, [8, 0, 0, 0, 0, 1, 0, 1])
        guest.send(ping)
        #expect(guest.receive()?[34] == 0)
        ping[11] = 9
        guest.send(ping)
        #expect(guest.receive(100) == nil)
    }

    /// Opens a connection; returns it and the router's next sequence number.
    private func connect(_ guest: Guest, _ listener: HostListener, port: Int = 3000, window: Int = 65535) throws -> (Int32, UInt32) {
        guest.send(Guest.ip(6, Guest.tcp(port, listener.port, sequence: 99, flags: 2, window: window, options: [2, 4, 5, 0xB4])))
        let answer = try #require(guest.receive())
        #expect(answer[47] == 0x12)
        #expect(big32(answer, 42) == 100)
        let next = big32(answer, 38) &+ 1
        guest.send(Guest.ip(6, Guest.tcp(port, listener.port, sequence: 100, acknowledged: next, flags: 16, window: window)))
        let fd = listener.accept()
        try #require(fd >= 0)
        return (fd, next)
    }
    @Test func lostAndRepeatedSegmentsDoNoHarm() throws {
        let (guest, listener) = (try Guest(), HostListener())
        let (fd, next) = try connect(guest, listener)
        defer { close(fd) }
        func say(_ sequence: UInt32, _ text: String) {
            guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: sequence, acknowledged: next, flags: 24, Array(text.utf8))))
        }
        say(105, "world")  // too early
        say(100, "hello")
        say(100, "hello")  // again
        say(103, "lowor")  // overlapping
        say(105, "world")
        var buffer = [UInt8](repeating: 0, count: 100)
        usleep(50_000)
        #expect(recv(fd, &buffer, 100, Int32(MSG_DONTWAIT)) == 10)
        #expect(String(decoding: buffer.prefix(10), as: UTF8.self) == "helloworld")
        // Nothing is acknowledged: what the host says comes again.
        #expect(send(fd, "again", 5, 0) == 5)
        var seen = 0
        while seen < 3 {
            let frame = try #require(guest.receive())
            guard frame.count > 54 else { continue }
            #expect(frame[54...] == Array("again".utf8)[...])
            #expect(big32(frame, 38) == next)
            seen += 1
        }
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 110, acknowledged: next &+ 5, flags: 16)))
        #expect(guest.receive(900) == nil)
    }
    @Test func windowIsKeptAndAskedFor() throws {
        let (guest, listener) = (try Guest(), HostListener())
        let (fd, next) = try connect(guest, listener, window: 10)
        defer { close(fd) }
        #expect(send(fd, [UInt8](repeating: 1, count: 30), 30, 0) == 30)
        let first = try #require(guest.receive())
        #expect(first.count == 64)
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 100, acknowledged: next &+ 10, flags: 16, window: 0)))
        // A closed window is asked for with a byte.
        let question = try #require(guest.receive())
        #expect(question.count == 55)
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 100, acknowledged: next &+ 11, flags: 16, window: 1000)))
        let rest = try #require(guest.receive())
        #expect(rest.count == 54 + 19)
    }
    /// Windows are shown in units of 128 bytes: what fits into the one before its rounded successor still has a place.
    @Test func windowThatIsFilledToItsEdgeLosesNothing() throws {
        let (guest, listener) = (try Guest(), HostListener())
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 99, flags: 2, options: [2, 4, 5, 0xB4, 3, 3, 0, 0])))
        let answer = try #require(guest.receive())
        let next = big32(answer, 38) &+ 1
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 100, acknowledged: next, flags: 16)))
        let fd = listener.accept()
        try #require(fd >= 0)
        defer { close(fd) }
        // The host does not read.
        var (sent, edge, acknowledged) = (100, 100 + 65535, 100)
        while sent < edge, sent < 100 << 20 {
            let count = min(1001, edge - sent)
            let segment = Guest.tcp(3000, listener.port, sequence: UInt32(sent), acknowledged: next, flags: 24, [UInt8](repeating: 7, count: count))
            guest.send(Guest.ip(6, segment))
            sent += count
            while let frame = guest.receive(0) {
                acknowledged = Int(big32(frame, 42))
                edge = max(edge, acknowledged + (Int(frame[48]) << 8 | Int(frame[49])) << 7)
            }
        }
        #expect(sent == edge)
        #expect(acknowledged == sent)
    }
    @Test func bothSidesCanEndByHalves() throws {
        let (guest, listener) = (try Guest(), HostListener())
        let (fd, next) = try connect(guest, listener)
        defer { close(fd) }
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 100, acknowledged: next, flags: 17)))
        var buffer = [UInt8](repeating: 0, count: 100)
        #expect(recv(fd, &buffer, 100, 0) == 0)
        #expect(guest.receive().map { big32($0, 42) } == 101)
        #expect(send(fd, "late", 4, 0) == 4)
        #expect(guest.receive()?.count == 58)
        shutdown(fd, Int32(SHUT_WR))
        let end = try #require(guest.receive())
        #expect(end[47] & 1 == 1)
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 101, acknowledged: next &+ 5, flags: 16)))
        // It is over: whatever comes now is refused.
        guest.send(Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 101, acknowledged: next &+ 5, flags: 16)))
        #expect(guest.receive()?[47] == 4)
    }

    /// Random changes to frames that mean something, while connections are open: nothing crashes, and the network still works.
    @Test func garbageDoesNoHarm() throws {
        var generator = SeededGenerator(state: ProcessInfo.processInfo.environment["VZ_SEED"].flatMap { UInt64($0) } ?? 42)
        let (guest, listener) = (try Guest(), HostListener())
        guest.accepted = [.checksum, .tcp4, .tcp6]
        let (fd, next) = try connect(guest, listener)
        _ = fcntl(fd, F_SETFL, O_NONBLOCK)
        var held: [Int32] = [fd]
        let six = [UInt8](repeating: 0, count: 15) + [2]
        let templates: [[UInt8]] = [
            Guest.ip(6, Guest.tcp(3000, listener.port, sequence: 100, acknowledged: next, flags: 24, [1, 2, 3, 4, 5, 6, 7, 8])),
            Guest.ip(6, Guest.tcp(3001, listener.port, sequence: 100, flags: 2, options: [2, 4, 5, 0xB4, 3, 3, 7, 0])),
            Guest.ip(17, Guest.udp(5000, listener.port, [1, 2, 3])),
            Guest.ip(17, Guest.udp(68, 67, [1, 1, 6, 0] + [UInt8](repeating: 0, count: 232) + [99, 130, 83, 99, 53, 1, 1, 50, 4, 1, 2, 3, 4, 255])),
            Guest.ip(17, Guest.udp(5001, 53, [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 97, 4, 116, 101, 115, 116, 0, 0, 1, 0, 1])),
            Guest.ip(1, [8, 0, 0, 0, 0, 1, 0, 1, 9, 9, 9]),
            [255, 255, 255, 255, 255, 255] + Guest.hardware + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + Guest.hardware + [192, 168, 64, 2, 0, 0, 0, 0, 0, 0, 192, 168, 64, 1],
            Guest.router + Guest.hardware + [0x86, 0xDD, 0x60, 0, 0, 0, 0, 32, 58, 255] + six + six + [135, 0, 0, 0, 0, 0, 0, 0] + [0xFE, 0x80] + [UInt8](repeating: 0, count: 13)
                + [1] + [UInt8](repeating: 0, count: 8),
            Guest.router + Guest.hardware + [0x86, 0xDD, 0x60, 0, 0, 0, 0, 8, 58, 255] + six + six + [133, 0, 0, 0, 0, 0, 0, 0],
        ]
        let rounds = ProcessInfo.processInfo.environment["VZ_NETWORK_FUZZ"].flatMap { Int($0) } ?? 300_000
        for round in 0..<rounds {
            var frame = templates[Int.random(in: 0..<templates.count, using: &generator)]
            for _ in 0..<Int.random(in: 0...4, using: &generator) {
                // Not the Ethernet addresses: those frames are dropped at once.
                frame[Int.random(in: 12..<frame.count, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
            }
            // Never beyond this machine.
            if frame.count > 34, frame[12] == 8, frame[13] == 0 { frame.replaceSubrange(30..<34, with: [192, 168, 64, 1]) }
            if Int.random(in: 0..<8, using: &generator) == 0 { frame.removeLast(Int.random(in: 0..<frame.count - 13, using: &generator)) }
            guest.send(frame)
            if round & 15 == 0 { while guest.receive(0) != nil {} }
            if round & 255 == 0 {
                var entry = pollfd(fd: listener.fd, events: Int16(POLLIN), revents: 0)
                if poll(&entry, 1, 0) == 1 { held.append(listener.accept()) }
                if held.count > 8 { close(held.removeFirst()) }
                var sink = [UInt8](repeating: 0, count: 4096)
                for fd in held {
                    _ = recv(fd, &sink, 4096, Int32(MSG_DONTWAIT))
                    _ = send(fd, sink, 1000, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
                }
            }
        }
        for fd in held { close(fd) }
        guest.port.driverLeft()
        while guest.receive(0) != nil {}
        guest.send(Guest.ip(1, [8, 0, 0, 0, 0, 1, 0, 1]))
        #expect(guest.receive()?[34] == 0)
    }
}
