import CLinux
import FileServer
import Foundation
import Glibc
import TestSupport
import Testing

/// A driver that says what it likes to a file server.
private final class FakeClient {
    let server: FileServer
    private let worker: FileServer.Worker
    init(_ share: FileShare, mostOpen: Int? = nil) throws {
        server = try FileServer(share, mostOpen: mostOpen)
        worker = FileServer.Worker(server)
    }
    /// The whole answer, as it lies in the driver's memory; `room` bytes of it.
    func raw(_ request: [UInt8], room: Int = 8192) -> [UInt8] {
        var (request, answer) = (request, [UInt8](repeating: 0xAA, count: room))
        let count = request.withUnsafeMutableBytes { input in
            answer.withUnsafeMutableBytes { output in
                var question = iovec(iov_base: input.baseAddress, iov_len: input.count)
                var target = iovec(iov_base: output.baseAddress, iov_len: output.count)
                return worker.handle(&question, 1, &target, 1)
            }
        }
        #expect(count <= room)
        return Array(answer.prefix(count))
    }
    static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }
    static func request(_ operation: UInt32, _ node: UInt64, _ arguments: [UInt8]) -> [UInt8] {
        bytes(UInt32(40 + arguments.count)) + bytes(operation) + bytes(UInt64(7)) + bytes(node) + bytes(UInt32(0)) + bytes(UInt32(0)) + bytes(UInt32(1)) + bytes(UInt32(0))
            + arguments
    }
    /// What follows the answer's header, or the error.
    func ask(_ operation: UInt32, _ node: UInt64, _ arguments: [UInt8] = [], room: Int = 8192) throws -> [UInt8] {
        let answer = raw(Self.request(operation, node, arguments), room: room)
        try #require(answer.count >= 16)
        let error = answer[4..<8].reversed().reduce(0) { $0 << 8 | UInt32($1) }
        if error != 0 { throw POSIXError(POSIXErrorCode(rawValue: -Int32(bitPattern: error)) ?? .EIO) }
        return Array(answer.dropFirst(16))
    }
    static func name(_ text: String) -> [UInt8] { Array(text.utf8) + [0] }
    func lookUp(_ name: String, in node: UInt64 = 1) throws -> UInt64 {
        let id = try ask(1, node, Self.name(name))[..<8].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        if id == 0 { throw POSIXError(.ENOENT) }
        return id
    }
    func open(_ node: UInt64, _ flags: Int32, directory: Bool = false) throws -> UInt64 {
        try ask(directory ? 27 : 14, node, Self.bytes(flags) + [0, 0, 0, 0])[..<8].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    func attributes(_ node: UInt64) throws -> [UInt8] { try ask(3, node, [UInt8](repeating: 0, count: 16)) }
}

@Suite(.serialized) struct FileServerTests {
    /// A window of two pieces, and requests that are none of a driver's.
    @Test func windowsTakeWholePiecesOnly() throws {
        let place = try Place()
        let large = place.share.appendingPathComponent("large")
        try Data([UInt8](repeating: 7, count: 3 << 20)).write(to: large)
        let client = try FakeClient(FileShare(.single(.init(path: place.share.path, isReadOnly: false))))
        let (piece, size) = (UInt64(DirectWindow.pieceSize), 2 * DirectWindow.pieceSize)
        let memory = try #require(mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
        defer { munmap(memory, size) }
        func setUp(_ node: UInt64, _ offset: UInt64, _ length: UInt64, write: Bool, at: UInt64) throws {
            let numbers: [UInt64] = [.max, offset, length, write ? 3 : 2, at]
            _ = try client.ask(48, node, numbers.flatMap { FakeClient.bytes($0) })
        }
        func remove(_ at: UInt64, _ length: UInt64, count: UInt32 = 1) throws {
            _ = try client.ask(49, 1, FakeClient.bytes(count) + FakeClient.bytes(at) + FakeClient.bytes(length))
        }
        let node = try client.lookUp("large")
        #expect(throws: POSIXError(.ENOSYS)) { try setUp(node, 0, piece, write: false, at: 0) }
        do {
            let window = try DirectWindow(host: memory, size: size) { _, _ in }
            client.server.show(window)
            defer {
                client.server.hide(window)
                window.close()
            }
            let bytes = memory.assumingMemoryBound(to: UInt8.self)
            for (offset, length, at) in [
                (0, piece, 2 * piece), (0, piece, .max - piece + 1), (4096, piece, 0), (0, 4096, 0), (0, 2 * piece, 0), (0, piece, 4096), (0, 0, 0), (.max, piece, 0),
                (1 << 63, piece, 0),
            ] as [(UInt64, UInt64, UInt64)] {
                #expect(throws: POSIXError(.EINVAL)) { try setUp(node, offset, length, write: false, at: at) }
            }
            #expect(throws: POSIXError(.EINVAL)) { try setUp(1, 0, piece, write: false, at: 0) }
            #expect(throws: POSIXError(.ESTALE)) { try setUp(99, 0, piece, write: false, at: 0) }
            #expect(throws: POSIXError(.EINVAL)) { try remove(0, 3 * piece) }
            #expect(throws: POSIXError(.EINVAL)) { try remove(piece, .max - piece + 1) }
            #expect(throws: POSIXError(.EINVAL)) { try remove(0, piece, count: .max) }
            // A reader's writes reach nobody; a writer's do.
            try setUp(node, 0, piece, write: false, at: piece)
            #expect(bytes[Int(piece)] == 7)
            bytes[Int(piece)] = 8
            try setUp(node, piece, piece, write: true, at: 0)
            bytes[5] = 9
            // Beyond the end there are zeroes, and nobody dies.
            #expect(bytes[Int(piece) - 1] == 0)
            let data = try Data(contentsOf: large)
            #expect(data[0] == 7 && data[Int(piece) + 5] == 9)
            try remove(0, 2 * piece)
            #expect(bytes[5] == 0 && bytes[Int(piece)] == 0)
        }
        let readOnly = try FakeClient(FileShare(.single(.init(path: place.share.path, isReadOnly: true))))
        let window = try DirectWindow(host: memory, size: size) { _, _ in }
        readOnly.server.show(window)
        defer {
            readOnly.server.hide(window)
            window.close()
        }
        let other = try readOnly.lookUp("large")
        let numbers: [UInt64] = [.max, 0, piece, 3, 0]
        #expect(throws: POSIXError(.EROFS)) { _ = try readOnly.ask(48, other, numbers.flatMap { FakeClient.bytes($0) }) }
    }

    /// A directory with a share in it, and something beside the share that must stay as it is.
    private final class Place {
        let root: URL
        var share: URL { root.appendingPathComponent("share") }
        var secret: URL { root.appendingPathComponent("secret") }
        init() throws {
            root = FileManager.default.temporaryDirectory.appendingPathComponent("vz-share-\(UUID().uuidString)")
            try FileManager.default.createDirectory(at: share, withIntermediateDirectories: true)
            try Data("secret".utf8).write(to: secret)
        }
        deinit { try? FileManager.default.removeItem(at: root) }
        func client(readOnly: Bool = false, mostOpen: Int? = nil) throws -> FakeClient {
            try FakeClient(FileShare(.single(.init(path: share.path, isReadOnly: readOnly))), mostOpen: mostOpen)
        }
        func write(_ name: String, _ text: String) throws { try Data(text.utf8).write(to: share.appendingPathComponent(name)) }
    }

    @Test func namesThatLeadElsewhereAreRefused() throws {
        let place = try Place()
        let client = try place.client()
        for name in ["..", ".", "", "a/b", "../secret", "/etc/passwd"] {
            #expect(throws: POSIXError(.EINVAL), "\(name)") { try client.lookUp(name) }
            #expect(throws: POSIXError(.EINVAL)) { try client.ask(9, 1, [0, 0, 0, 0, 0, 0, 0, 0] + FakeClient.name(name)) }
            #expect(throws: POSIXError(.EINVAL)) { try client.ask(10, 1, FakeClient.name(name)) }
            #expect(throws: POSIXError(.EINVAL)) { try client.ask(12, 1, FakeClient.bytes(UInt64(1)) + FakeClient.name("x") + FakeClient.name(name)) }
        }
        // A name without its end.
        #expect(throws: POSIXError(.EINVAL)) { try client.ask(1, 1, Array("endless".utf8)) }
        #expect(throws: POSIXError(.ENAMETOOLONG)) { try client.lookUp(String(repeating: "n", count: 256)) }
    }
    @Test func symbolicLinksAreTheGuestsToFollow() throws {
        let place = try Place()
        try FileManager.default.createSymbolicLink(at: place.share.appendingPathComponent("out"), withDestinationURL: place.root)
        let client = try place.client()
        let link = try client.lookUp("out")
        #expect(throws: POSIXError.self) { try client.lookUp("secret", in: link) }
        #expect(throws: POSIXError.self) { try client.open(link, O_RDONLY) }
        #expect(throws: POSIXError.self) { try client.open(link, O_RDONLY, directory: true) }
        // Creating over it does not write through it.
        #expect(throws: POSIXError.self) { try client.ask(35, 1, FakeClient.bytes(O_RDWR | O_CREAT) + [0xA4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] + FakeClient.name("out")) }
        // Nor do attributes.
        let mode = FakeClient.bytes(UInt32(1)) + [UInt8](repeating: 0, count: 64) + FakeClient.bytes(UInt32(0o777)) + [UInt8](repeating: 0, count: 16)
        #expect(throws: POSIXError(.EOPNOTSUPP)) { try client.ask(4, link, mode) }
    }
    @Test func devicesAndPipesAreNotOpened() throws {
        let place = try Place()
        #expect(mkfifo(place.share.appendingPathComponent("pipe").path, 0o644) == 0)
        let client = try place.client()
        #expect(throws: POSIXError(.ENXIO)) { try client.open(try client.lookUp("pipe"), O_RDONLY) }
        for kind in [UInt32(0o020000), 0o060000] {
            #expect(throws: POSIXError(.EPERM)) {
                try client.ask(8, 1, FakeClient.bytes(kind | 0o666) + FakeClient.bytes(UInt32(0x103)) + [0, 0, 0, 0, 0, 0, 0, 0] + FakeClient.name("device"))
            }
        }
    }
    /// What we write down beside files (owners, capabilities) is nothing that the guest can name, see or forge.
    @Test func whatIsKeptBesideFilesIsNotTheGuests() throws {
        let place = try Place()
        try place.write("file", "text")
        let client = try place.client()
        let file = try client.lookUp("file")
        let size = FakeClient.bytes(UInt32(8)) + FakeClient.bytes(UInt32(0))
        for name in ["user.vz.owner", "user.vz.security.capability", "user.vz.", "trusted", "system.posix_acl_access", "", "user.vz.\u{0}"] {
            #expect(throws: POSIXError(.EOPNOTSUPP)) { try client.ask(21, file, size + FakeClient.name(name) + [UInt8](repeating: 1, count: 8)) }
            #expect(throws: POSIXError(.EOPNOTSUPP)) { try client.ask(22, file, size + FakeClient.name(name)) }
            #expect(throws: POSIXError(.EOPNOTSUPP)) { try client.ask(24, file, FakeClient.name(name)) }
        }
        let path = place.share.appendingPathComponent("file").path
        // Not every file system has them.
        guard setxattr(path, "user.vz.owner", "12345678", 8, 0) == 0 else { return #expect(errno == EOPNOTSUPP) }
        #expect(setxattr(path, "user.vz.trusted.a", "1", 1, 0) == 0 && setxattr(path, "user.b", "2", 1, 0) == 0)
        let names = try client.ask(23, file, FakeClient.bytes(UInt32(4096)) + FakeClient.bytes(UInt32(0)))
        #expect(Set(names.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }) == ["trusted.a", "user.b"])
    }
    @Test func readOnlySharesStayAsTheyAre() throws {
        let place = try Place()
        try place.write("file", "text")
        let client = try place.client(readOnly: true)
        let file = try client.lookUp("file")
        let zeroes = [UInt8](repeating: 0, count: 88)
        let attempts: [(UInt32, UInt64, [UInt8])] = [
            (4, file, FakeClient.bytes(UInt32(8)) + zeroes), (6, 1, FakeClient.name("l") + FakeClient.name("t")),
            (8, 1, FakeClient.bytes(UInt32(0o100644)) + zeroes[..<12] + FakeClient.name("n")),
            (9, 1, zeroes[..<8] + FakeClient.name("d")), (10, 1, FakeClient.name("file")), (11, 1, FakeClient.name("file")),
            (12, 1, FakeClient.bytes(UInt64(1)) + FakeClient.name("file") + FakeClient.name("x")), (13, 1, FakeClient.bytes(file) + FakeClient.name("x")),
            (14, file, FakeClient.bytes(O_RDWR) + zeroes[..<4]), (14, file, FakeClient.bytes(O_TRUNC) + zeroes[..<4]),
            (35, 1, FakeClient.bytes(O_RDWR) + zeroes[..<12] + FakeClient.name("c")), (51, 1, FakeClient.bytes(O_RDWR) + zeroes[..<12] + FakeClient.name("c")),
            (21, file, FakeClient.bytes(UInt32(1)) + zeroes[..<4] + FakeClient.name("user.a") + [1]), (24, file, FakeClient.name("user.a")),
        ]
        for (operation, node, arguments) in attempts { #expect(throws: POSIXError(.EROFS), "\(operation)") { try client.ask(operation, node, arguments) } }
        // A descriptor that is open for reading is not written through.
        let handle = try client.open(file, O_RDONLY)
        #expect(throws: POSIXError(.EBADF)) { try client.ask(16, file, FakeClient.bytes(handle) + zeroes[..<8] + FakeClient.bytes(UInt32(1)) + zeroes[..<20] + [1]) }
        #expect(throws: POSIXError(.EBADF)) { try client.ask(43, file, FakeClient.bytes(handle) + zeroes[..<8] + FakeClient.bytes(UInt64(100)) + zeroes[..<8]) }
        #expect(try String(contentsOf: place.share.appendingPathComponent("file"), encoding: .utf8) == "text")
        #expect(try FileManager.default.contentsOfDirectory(atPath: place.share.path) == ["file"])
    }
    @Test func severalSharesLieInARootOfTheirOwn() throws {
        let (one, two) = (try Place(), try Place())
        try one.write("in-one", "")
        let client = try FakeClient(FileShare(.several(["one": .init(path: one.share.path, isReadOnly: false), "two": .init(path: two.share.path, isReadOnly: true)])))
        let (first, second) = (try client.lookUp("one"), try client.lookUp("two"))
        _ = try client.lookUp("in-one", in: first)
        #expect(throws: POSIXError(.ENOENT)) { try client.lookUp("three") }
        #expect(throws: POSIXError(.EROFS)) { try client.ask(9, 1, [0, 0, 0, 0, 0, 0, 0, 0] + FakeClient.name("new")) }
        #expect(throws: POSIXError(.EROFS)) { try client.ask(9, second, [0, 0, 0, 0, 0, 0, 0, 0] + FakeClient.name("new")) }
        let listing = try client.ask(28, 1, [UInt8](repeating: 0, count: 16) + FakeClient.bytes(UInt32(4096)) + [UInt8](repeating: 0, count: 20))
        #expect(listing.count == 64)
        // Another share while the guest has the old one.
        try client.server.replace(FileShare(.single(.init(path: two.share.path, isReadOnly: false))))
        #expect(throws: POSIXError(.ESTALE)) { try client.attributes(first) }
        #expect(throws: FileShareError.self) { try client.server.replace(FileShare(.single(.init(path: "/nowhere", isReadOnly: false)))) }
    }
    @Test func filesAreFoundAgainWithFewDescriptors() throws {
        let place = try Place()
        for index in 0..<200 { try place.write("f\(index)", "\(index)") }
        let client = try place.client(mostOpen: 16)
        let nodes = try (0..<200).map { try client.lookUp("f\($0)") }
        let open = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
        #expect(open < 120)
        for node in nodes { #expect(try client.attributes(node).count == 104) }
        // Moved by the guest: found under its new name. Replaced by the host: stale.
        _ = try client.ask(12, 1, FakeClient.bytes(UInt64(1)) + FakeClient.name("f0") + FakeClient.name("moved"))
        try FileManager.default.removeItem(at: place.share.appendingPathComponent("f1"))
        for index in 2..<200 { _ = try client.attributes(nodes[index]) }
        #expect(try client.attributes(nodes[0]).count == 104)
        #expect(throws: POSIXError.self) { try client.attributes(nodes[1]) }
        // Unlinked by the guest while it is known: still there.
        _ = try client.ask(10, 1, FakeClient.name("f5"))
        for index in 6..<200 { _ = try client.attributes(nodes[index]) }
        #expect(try client.attributes(nodes[5]).count == 104)
        // Forgotten: gone.
        _ = client.raw(FakeClient.request(2, nodes[9], FakeClient.bytes(UInt64(1))))
        #expect(throws: POSIXError(.ESTALE)) { try client.attributes(nodes[9]) }
    }

    /// Every other page of a whole window that shows nothing, by eight threads at once: a mapping for each would be more than a
    /// process may have.
    @Test func missingPagesTakeFewMappings() throws {
        let place = try Place()
        try place.write("file", "text")
        let client = try place.client()
        let (piece, size) = (DirectWindow.pieceSize, 256 << 20)
        let memory = try #require(mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))
        let window = try DirectWindow(host: memory, size: size) { _, _ in }
        client.server.show(window)
        defer {
            client.server.hide(window)
            window.close()
            munmap(memory, size)
        }
        let node = try client.lookUp("file")
        for index in 0..<size / piece {
            let numbers = [UInt64.max, UInt64(piece), UInt64(piece), 3, UInt64(index * piece)]
            _ = try client.ask(48, node, numbers.flatMap { FakeClient.bytes($0) })
        }
        nonisolated(unsafe) let bytes = memory
        DispatchQueue.concurrentPerform(iterations: 8) { thread in
            var signals = sigset_t()
            sigemptyset(&signals)
            sigaddset(&signals, SIGBUS)
            pthread_sigmask(SIG_UNBLOCK, &signals, nil)
            for page in stride(from: thread * 8192, to: size, by: 8 * 8192) { bytes.storeBytes(of: 1, toByteOffset: page, as: UInt8.self) }
        }
        let mappings = try String(contentsOfFile: "/proc/self/maps", encoding: .utf8).split(separator: "\n").count
        #expect(mappings < 20_000)
    }

    /// Requests that are nearly right, and some that are not: nothing crashes, nothing outside the share changes.
    @Test func garbageDoesNoHarm() throws {
        let place = try Place()
        try place.write("file", "text")
        try FileManager.default.createDirectory(at: place.share.appendingPathComponent("dir"), withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(at: place.share.appendingPathComponent("out"), withDestinationURL: place.root)
        let client = try place.client(mostOpen: 64)
        let size = 4 * DirectWindow.pieceSize
        let memory = try #require(mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
        let window = try DirectWindow(host: memory, size: size) { _, _ in }
        client.server.show(window)
        defer {
            client.server.hide(window)
            window.close()
            munmap(memory, size)
        }
        var mapped = 0
        var generator = SeededGenerator(state: ProcessInfo.processInfo.environment["VZ_SEED"].flatMap { UInt64($0) } ?? 42)
        let names = ["file", "dir", "out", "new", "..", ".", "", "a/b", "../secret", "user.x", "file\0dir", "x\0../secret"]
        let rounds = ProcessInfo.processInfo.environment["VZ_FUSE_FUZZ"].flatMap { Int($0) } ?? 60_000
        for _ in 0..<rounds {
            let operation = UInt32.random(in: 0...54, using: &generator)
            // Not the one that waits for all of the host's disks.
            if operation == 50 || operation == 20 || operation == 30 { continue }
            var arguments: [UInt8] = []
            for _ in 0..<Int.random(in: 0...12, using: &generator) {
                switch Int.random(in: 0...4, using: &generator) {
                case 0: arguments += FakeClient.bytes(UInt64.random(in: 0...40, using: &generator))
                case 1: arguments += FakeClient.bytes(UInt32.random(in: 0...0x1000, using: &generator))
                case 2: arguments += FakeClient.name(names.randomElement(using: &generator) ?? "")
                case 3: arguments += FakeClient.bytes(UInt64.random(in: 0...UInt64.max, using: &generator) >> UInt64.random(in: 0...63, using: &generator))
                default: arguments += [UInt8](repeating: 0, count: 8)
                }
            }
            // What would make a file of any size.
            if operation == 16 || operation == 43 || operation == 4 || operation == 47 { arguments = arguments.map { $0 & 0x3F } }
            var node = UInt64.random(in: 0...40, using: &generator)
            if operation >= 48, operation <= 49, Bool.random(using: &generator) {
                node = (try? client.lookUp("file")) ?? node
                func piece() -> UInt64 { UInt64.random(in: 0...4, using: &generator) * UInt64(DirectWindow.pieceSize) }
                let numbers = operation == 48 ? [.max, piece(), UInt64(DirectWindow.pieceSize), UInt64.random(in: 0...3, using: &generator), piece()] : [piece(), piece()]
                arguments = (operation == 49 ? FakeClient.bytes(UInt32(1)) : []) + numbers.flatMap { FakeClient.bytes($0) }
            }
            var request = FakeClient.request(operation, node, arguments)
            if Int.random(in: 0..<10, using: &generator) == 0 { request.removeLast(Int.random(in: 0...request.count, using: &generator)) }
            let answer = client.raw(request, room: Int.random(in: 0...600, using: &generator))
            if operation == 48, answer.count >= 8, answer[4..<8].allSatisfy({ $0 == 0 }) { mapped += 1 }
            // A guest looks where it likes, and writes there.
            let place = memory + Int.random(in: 0..<size, using: &generator)
            place.storeBytes(of: place.load(as: UInt8.self) &+ 1, as: UInt8.self)
        }
        #expect(mapped > 0)
        #expect(try String(contentsOf: place.secret, encoding: .utf8) == "secret")
        #expect(try FileManager.default.contentsOfDirectory(atPath: place.root.path).sorted() == ["secret", "share"])
        _ = try client.ask(26, 1, FakeClient.bytes(UInt32(7)) + FakeClient.bytes(UInt32(38)) + [UInt8](repeating: 0, count: 8))
        _ = try client.attributes(1)
    }
}
