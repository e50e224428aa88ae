import DiskStorage
import Foundation
import Synchronization
import TestSupport
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// The protocol's numbers, as a server knows them.
private enum NBD {
    static let greeting: UInt64 = 0x4E42_444D_4147_4943
    static let optionMagic: UInt64 = 0x4948_4156_454F_5054
    static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
    static let requestMagic: UInt32 = 0x2560_9513
    static let simpleReplyMagic: UInt32 = 0x6744_6698
    static let structuredReplyMagic: UInt32 = 0x668E_33EF
    enum Option { static let (go, structuredReply): (UInt32, UInt32) = (7, 8) }
    enum OptionReply { static let (acknowledge, information, unsupported): (UInt32, UInt32, UInt32) = (1, 3, 1 << 31 + 1) }
    enum Information { static let (export, blockSize): (UInt16, UInt16) = (0, 3) }
    enum Command { static let (read, write): (UInt16, UInt16) = (0, 1) }
    enum Chunk { static let (none, data, hole, error): (UInt16, UInt16, UInt16, UInt16) = (0, 1, 2, 1 << 15) }
}

/// A server that says what a test wants, true or false.
private final class FakeServer: @unchecked Sendable {  // the thread is joined by the socket's end
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("vz-nbd-\(UUID().uuidString)").path
    private let listener: Int32

    /// - Parameter serve: one connection after the other, numbered.
    init(_ serve: @escaping @Sendable (Peer, Int) -> Void) throws {
        let listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        self.listener = listener
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let bound = withUnsafePointer(to: &name) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(listener, $0, size) } }
        try #require(bound == 0 && listen(listener, 8) == 0)
        Thread {
            var number = 0
            while true {
                let fd = accept(listener, nil, nil)
                // Closed here: the number may be another socket's as soon as it is.
                if fd < 0 {
                    close(listener)
                    return
                }
                serve(Peer(fd: fd), number)
                close(fd)
                number += 1
            }
        }.start()
    }
    deinit {
        shutdown(listener, Int32(SHUT_RDWR))
        unlink(path)
    }
    struct Peer: Sendable {
        let fd: Int32
        func read(_ count: Int) -> [UInt8]? {
            var bytes = [UInt8](repeating: 0, count: count)
            var done = 0
            while done < count {
                let step = bytes.withUnsafeMutableBytes { recv(fd, $0.baseAddress.map { $0 + done }, count - done, 0) }
                if step <= 0 { return nil }
                done += step
            }
            return bytes
        }
        func write(_ bytes: [UInt8]) { _ = bytes.withUnsafeBytes { send(fd, $0.baseAddress, bytes.count, Int32(MSG_NOSIGNAL)) } }
        /// Agrees on an export of `size` bytes; false when the client is gone.
        @discardableResult func greet(size: UInt64, flags: UInt16 = 1 | 4 | 32 | 64, structured: Bool = true, block: UInt32? = nil) -> Bool {
            write(big(NBD.greeting) + big(NBD.optionMagic) + big(3 as UInt16))
            guard read(4) != nil else { return false }
            while let header = read(16) {
                let option = header[8..<12].reduce(0 as UInt32) { $0 << 8 | UInt32($1) }
                let length = header[12..<16].reduce(0) { $0 << 8 | Int($1) }
                guard length == 0 || read(length) != nil else { return false }
                func reply(_ kind: UInt32, _ data: [UInt8] = []) { write(big(NBD.optionReplyMagic) + big(option) + big(kind) + big(UInt32(data.count)) + data) }
                if option == NBD.Option.structuredReply { reply(structured ? NBD.OptionReply.acknowledge : NBD.OptionReply.unsupported) }
                if option == NBD.Option.go {
                    if let block { reply(NBD.OptionReply.information, big(NBD.Information.blockSize) + big(block) + big(block) + big(1 << 20 as UInt32)) }
                    reply(NBD.OptionReply.information, big(NBD.Information.export) + big(size) + big(flags))
                    reply(NBD.OptionReply.acknowledge)
                    return true
                }
            }
            return false
        }
        /// The next request: command, handle, offset, length.
        func request() -> (command: UInt16, handle: UInt64, offset: UInt64, length: UInt32)? {
            guard let header = read(28) else { return nil }
            func number(_ range: Range<Int>) -> UInt64 { header[range].reduce(0) { $0 << 8 | UInt64($1) } }
            guard number(0..<4) == UInt64(NBD.requestMagic) else { return nil }
            return (UInt16(number(6..<8)), number(8..<16), number(16..<24), UInt32(number(24..<28)))
        }
        func simple(_ handle: UInt64, error: UInt32 = 0, _ data: [UInt8] = []) { write(big(NBD.simpleReplyMagic) + big(error) + big(handle) + data) }
        func chunk(_ kind: UInt16, _ handle: UInt64, _ data: [UInt8], last: Bool = true, length: UInt32? = nil) {
            write(big(NBD.structuredReplyMagic) + big(last ? 1 : 0 as UInt16) + big(kind) + big(handle) + big(length ?? UInt32(data.count)) + data)
        }
    }
}
private func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian, Array.init) }
private func pattern(_ offset: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: (Int(offset) + $0) &* 31 >> 3) } }

@Suite struct NBDChannelTests {
    private static let size: UInt64 = 1 << 20
    /// A disk at the server, a channel to it, and memory for it.
    private final class Client {
        let disk: NBDDisk
        let channel: any BlockChannel
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        let events: Log
        final class Log: Sendable {
            let lines = Mutex<[String]>([])
            var all: [String] { lines.withLock { $0 } }
        }
        init(_ server: FakeServer, timeout: Int = 2000) throws {
            var options = NBDDisk.Options()
            options.timeout = timeout
            let log = Log()
            events = log
            disk = NBDDisk(NBDAddress(.unixSocket(path: server.path), exportName: "e"), options: options) { event in
                log.lines.withLock {
                    switch event {
                    case .connected: $0.append("connected")
                    case .failed(let error): $0.append("failed: \(error)")
                    }
                }
            }
            memset(memory, 0xEE, 1 << 20)
            try disk.prepare()
            channel = disk.makeChannel(capacity: 8, stop: -1)
        }
        deinit {
            channel.close()
            memory.deallocate()
        }
        func submit(_ kind: DiskOperation.Kind, _ offset: UInt64, _ count: Int, tag: Int = 0, at place: Int = 0) {
            // In two pieces, so that there is something to put together.
            let half = count / 2
            var vectors = [iovec(iov_base: memory + place, iov_len: half), iovec(iov_base: memory + place + half, iov_len: count - half)]
            channel.submit(DiskOperation(kind, offset: offset, count: count), &vectors, kind == .read || kind == .write ? 2 : 0, tag: tag)
        }
        /// Runs until so many operations have ended: their results by tag; fewer after ten seconds.
        func run(_ count: Int = 1, seconds: Double = 10) -> [Int: Int32] {
            var results: [Int: Int32] = [:]
            let end = Date().addingTimeInterval(seconds)
            while Date() < end {
                channel.advance { results[$0] = $1 }
                if results.count >= count { return results }
                let (descriptor, events, milliseconds) = channel.wait
                var entry = pollfd(fd: descriptor, events: events, revents: 0)
                poll(&entry, 1, milliseconds < 0 ? 100 : min(milliseconds, 100))
            }
            return results
        }
        func bytes(_ place: Int, _ count: Int) -> [UInt8] { Array(UnsafeRawBufferPointer(start: memory + place, count: count)) }
    }
    /// Serves reads of `pattern` and takes everything else.
    private static func serve(_ peer: FakeServer.Peer, structured: Bool) {
        peer.greet(size: size, structured: structured)
        while let (command, handle, offset, length) = peer.request() {
            switch command {
            case NBD.Command.read where structured:
                // In pieces, the last one first, with a hole between.
                let third = Int(length) / 3
                peer.chunk(NBD.Chunk.data, handle, big(offset + UInt64(2 * third)) + pattern(offset + UInt64(2 * third), Int(length) - 2 * third), last: false)
                peer.chunk(NBD.Chunk.hole, handle, big(offset + UInt64(third)) + big(UInt32(third)), last: false)
                peer.chunk(NBD.Chunk.data, handle, big(offset) + pattern(offset, third), last: offset % 1024 == 0)
                if offset % 1024 != 0 { peer.chunk(NBD.Chunk.none, handle, []) }
            case NBD.Command.read: peer.simple(handle, pattern(offset, Int(length)))
            case NBD.Command.write:
                let good = peer.read(Int(length)) == pattern(offset, Int(length))
                peer.simple(handle, error: good ? 0 : 22)
            default: peer.simple(handle, error: offset == 4096 ? 28 : 0)
            }
        }
    }

    @Test(arguments: [true, false]) func requestsAreAnsweredInAnyOrder(structured: Bool) throws {
        let server = try FakeServer { peer, _ in Self.serve(peer, structured: structured) }
        let client = try Client(server)
        #expect(client.disk.byteCount == Self.size && !client.disk.isReadOnly && client.disk.blockSize == 512)
        for tag in 0..<4 { client.submit(.read, UInt64(tag * 1536), 1536, tag: tag, at: tag * 4096) }
        #expect(client.run(4) == [0: 0, 1: 0, 2: 0, 3: 0])
        for tag in 0..<4 {
            var expected = pattern(UInt64(tag * 1536), 1536)
            if structured { expected.replaceSubrange(512..<1024, with: repeatElement(0, count: 512)) }
            #expect(client.bytes(tag * 4096, 1536) == expected)
        }
        client.memory.copyMemory(from: pattern(8192, 300_000), byteCount: 300_000)
        client.submit(.write, 8192, 299_520, tag: 5)
        client.submit(.flush, 0, 0, tag: 6)
        client.submit(.discard, 4096, 4096, tag: 7)
        client.submit(.writeZeroes(mayUnmap: true), 0, 4096, tag: 1)
        #expect(client.run(4) == [5: 0, 6: 0, 7: ENOSPC, 1: 0])
        #expect(client.events.all == ["connected"])
    }
    @Test func requestsSurviveTheServersEnd() throws {
        // The first two connections end in the middle of an answer; the third serves.
        let server = try FakeServer { peer, number in
            if number >= 2 { return Self.serve(peer, structured: true) }
            peer.greet(size: Self.size)
            guard let (_, handle, offset, length) = peer.request() else { return }
            peer.write(big(NBD.structuredReplyMagic) + big(0 as UInt16) + big(NBD.Chunk.data) + big(handle) + big(length + 8) + big(offset) + [1, 2, 3])
        }
        let client = try Client(server)
        client.submit(.read, 0, 3072)
        client.submit(.flush, 0, 0, tag: 3)
        #expect(client.run(2) == [0: 0, 3: 0])
        #expect(client.bytes(0, 1024) == pattern(0, 1024))
        #expect(client.events.all == ["connected", "connected", "connected"])
    }
    @Test func deadServersEndRequestsAfterTheTime() throws {
        var server: FakeServer? = try FakeServer { peer, _ in peer.greet(size: Self.size) }
        let client = try Client(try #require(server), timeout: 600)
        server = nil
        client.submit(.read, 0, 512)
        #expect(client.run() == [0: EIO])
        #expect(client.events.all.count == 2 && client.events.all[1].hasPrefix("failed: cannot reach export “e” of the NBD server at"))
        client.submit(.read, 0, 512)
        #expect(client.run() == [0: EIO])
    }
    @Test func silentServersAreLeft() throws {
        let server = try FakeServer { peer, number in
            if number > 0 { return Self.serve(peer, structured: false) }
            peer.greet(size: Self.size)
            while peer.request() != nil {}
        }
        let client = try Client(server, timeout: 1200)
        client.submit(.read, 0, 512)
        #expect(client.run(seconds: 20) == [0: 0])
    }
    @Test func serversThatBreakTheRulesEndTheDisk() throws {
        typealias Answer = @Sendable (FakeServer.Peer, UInt64, UInt64) -> Void
        let answers: [Answer] = [
            { peer, handle, _ in peer.write(big(0xDEAD_BEEF as UInt32) + big(0 as UInt32) + big(handle)) },
            { peer, handle, _ in peer.simple(handle ^ 1, [UInt8](repeating: 1, count: 1024)) },
            { peer, handle, _ in peer.simple(handle &+ 1 << 32, [UInt8](repeating: 1, count: 1024)) },
            { peer, _, _ in peer.simple(.max) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.data, handle, big(offset + 1024) + [UInt8](repeating: 1, count: 1024)) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.data, handle, big(offset &- 512) + [UInt8](repeating: 1, count: 1024)) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.data, handle, big(offset) + [UInt8](repeating: 1, count: 1025)) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.data, handle, big(offset), length: .max) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.data, handle, [1, 2, 3], length: 3) },
            { peer, handle, _ in peer.chunk(NBD.Chunk.data, handle, big(UInt64.max) + [1]) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.hole, handle, big(offset) + big(UInt32.max)) },
            { peer, handle, offset in peer.chunk(NBD.Chunk.hole, handle, big(UInt64.max - 3) + big(8 as UInt32)) },
            { peer, handle, _ in peer.chunk(NBD.Chunk.none, handle, []) },
            { peer, handle, _ in peer.chunk(NBD.Chunk.none, handle, [1]) },
            { peer, handle, _ in peer.chunk(77, handle, []) },
            { peer, handle, _ in peer.chunk(NBD.Chunk.error + 1, handle, [0, 0]) },
            { peer, handle, _ in peer.chunk(NBD.Chunk.error + 1, handle, [0, 0, 0, 5], length: 1 << 24) },
            { peer, handle, offset in
                peer.chunk(NBD.Chunk.data, handle, big(offset) + [UInt8](repeating: 1, count: 1024), last: false)
                peer.chunk(NBD.Chunk.data, handle, big(offset) + [UInt8](repeating: 1, count: 1024))
            },
        ]
        for (index, answer) in answers.enumerated() {
            let server = try FakeServer { peer, _ in
                peer.greet(size: Self.size)
                guard let (_, handle, offset, _) = peer.request() else { return }
                answer(peer, handle, offset)
                _ = peer.read(1)
            }
            let client = try Client(server)
            client.submit(.read, 4096, 1024, tag: 2, at: 4096)
            #expect(client.run() == [2: EIO], "answer \(index)")
            #expect(client.events.all.last?.contains("against the protocol") == true, "answer \(index)")
            #expect(client.bytes(0, 4096).allSatisfy { $0 == 0xEE } && client.bytes(5120, 4096).allSatisfy { $0 == 0xEE }, "answer \(index)")
        }
    }
    @Test func badHandshakesAreToldClearly() throws {
        func refusal(_ serve: @escaping @Sendable (FakeServer.Peer) -> Void) throws -> String {
            let server = try FakeServer { peer, _ in serve(peer) }
            var options = NBDDisk.Options()
            options.timeout = 1000
            do {
                try NBDDisk(NBDAddress(.unixSocket(path: server.path), exportName: "e"), options: options).prepare()
                return ""
            } catch { return "\(error)" }
        }
        #expect(try refusal { $0.write(Array("SSH-2.0-OpenSSH_9.2p1 Debian\r\n".utf8)) }.contains("is no NBD server"))
        #expect(try refusal { _ in }.contains("closed the connection"))
        #expect(try refusal { _ = $0.read(1) }.contains("does not answer"))
        #expect(try refusal { $0.write(big(NBD.greeting) + big(0x0000_4202_8186_1253 as UInt64) + big(0 as UInt16)) }.contains("old NBD handshake"))
        #expect(try refusal { $0.greet(size: 100) }.contains("is no disk's"))
        #expect(try refusal { $0.greet(size: .max) }.contains("is no disk's"))
        #expect(try refusal { $0.greet(size: 1 << 20, flags: 0) }.contains("no flags"))
        #expect(try refusal { $0.greet(size: 1 << 20, block: 65536) }.contains("blocks of 65536 bytes"))
        #expect(try refusal { $0.greet(size: 1 << 20, block: 3) }.contains("blocks of 3 bytes"))
        #expect(
            try refusal { peer in
                peer.write(big(NBD.greeting) + big(NBD.optionMagic) + big(3 as UInt16))
                while true { guard peer.read(16) != nil else { return }; peer.write(big(NBD.optionReplyMagic) + big(8 as UInt32) + big(3 as UInt32) + big(UInt32.max)) }
            }.contains("against the protocol"))
        #expect(
            try refusal { peer in
                peer.write(big(NBD.greeting) + big(NBD.optionMagic) + big(3 as UInt16))
                _ = peer.read(20)
                for _ in 0..<100 { peer.write(big(NBD.optionReplyMagic) + big(8 as UInt32) + big(3 as UInt32) + big(0 as UInt32)) }
                _ = peer.read(1000)
            }.contains("against the protocol"))
        do { try NBDDisk(NBDAddress(.unixSocket(path: "/nowhere/at/all"), exportName: "")).prepare() } catch {
            #expect("\(error)".contains("cannot reach the NBD server at /nowhere/at/all: no such file"))
        }
    }
    /// Random bytes in the place of an answer, and answers with random changes: an error or a right end, and nothing outside.
    @Test func randomAnswersHarmNobody() throws {
        for seed in Fuzzing.seeds(300) {
            let server = try FakeServer { peer, number in
                var random = SeededGenerator(state: UInt64(seed) &* 0x9E37_79B9 + UInt64(number) + 1)
                peer.greet(size: Self.size)
                guard number < 2, let (_, handle, offset, length) = peer.request() else { return }
                var answer = big(NBD.structuredReplyMagic) + big(1 as UInt16) + big(NBD.Chunk.data) + big(handle) + big(length + 8) + big(offset)
                answer += [UInt8](repeating: 7, count: Int(length))
                for _ in 0..<Int.random(in: 0..<4, using: &random) { answer[Int.random(in: 0..<28, using: &random)] = UInt8.random(in: 0...255, using: &random) }
                if Bool.random(using: &random) { answer = Array(answer.prefix(Int.random(in: 0..<answer.count, using: &random))) }
                peer.write(answer)
            }
            let client = try Client(server, timeout: 200)
            client.submit(.read, 4096, 1024, at: 4096)
            #expect(client.run().count == 1, "seed \(seed)")
            #expect(client.bytes(0, 4096).allSatisfy { $0 == 0xEE } && client.bytes(5120, 4096).allSatisfy { $0 == 0xEE }, "seed \(seed)")
        }
    }
}
