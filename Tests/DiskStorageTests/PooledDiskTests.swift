import DiskStorage
import Foundation
import TestSupport
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Disks whose calls wait, behind a channel: what it answers at once and what its threads do.
@Suite struct PooledDiskTests {
    enum Kind: CaseIterable { case cached, uncached, overlay }
    private static let size = 8 << 20
    private static let depth = 32
    private static let most = 64 << 10

    /// A disk and, for each operation under way, memory of its own.
    private final class Bench {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("vz-pooled-\(UUID().uuidString)")
        let channel: any BlockChannel
        let memory: UnsafeMutableRawPointer
        init(_ kind: Kind) throws {
            try Data(repeating: 0, count: PooledDiskTests.size).write(to: url)
            let disk: any BlockBackend
            if kind == .overlay {
                try OverlayDisk.create(path: url.path + ".overlay", base: url.path, baseIsOverlay: false)
                disk = try OverlayDisk(path: url.path + ".overlay", readOnly: false)
            } else {
                disk = try RawDisk(path: url.path, readOnly: false, caching: kind == .cached ? .cached : .uncached)
            }
            channel = PooledDisk(disk).makeChannel(capacity: PooledDiskTests.depth, stop: -1)
            memory = .allocate(byteCount: PooledDiskTests.depth * PooledDiskTests.most, alignment: 4096)
        }
        deinit {
            channel.close()
            memory.deallocate()
            for path in [url.path, url.path + ".overlay"] { unlink(path) }
        }
        func place(_ tag: Int) -> UnsafeMutableRawPointer { memory + tag * PooledDiskTests.most }
        func submit(_ kind: DiskOperation.Kind, _ offset: Int, _ count: Int, tag: Int) {
            let half = count / 8192 * 4096
            var vectors = [iovec(iov_base: place(tag), iov_len: half), iovec(iov_base: place(tag) + half, iov_len: count - half)]
            channel.submit(DiskOperation(kind, offset: UInt64(offset), count: count), &vectors, kind == .read || kind == .write ? 2 : 0, tag: tag)
        }
        func wait() {
            let (descriptor, events, milliseconds) = channel.wait
            var entry = pollfd(fd: descriptor, events: events, revents: 0)
            _ = poll(&entry, 1, milliseconds < 0 ? 5000 : milliseconds)
        }
    }

    /// Random operations, as many at a time as there are tags, none of which touch what another one touches.
    @Test(arguments: Kind.allCases) func manyOperationsAtATimeEndRight(kind: Kind) throws {
        struct Running { let kind: DiskOperation.Kind, range: Range<Int>, seed: UInt8 }
        let bench = try Bench(kind)
        var random = SeededGenerator(state: 11)
        var model = [UInt8](repeating: 0, count: Self.size)
        var running: [Int: Running] = [:]
        var done = 0
        let begin = Date()
        while done < 3000, Date().timeIntervalSince(begin) < 60 {
            for tag in 0..<Self.depth where running[tag] == nil && done + running.count < 3000 {
                let offset = Int.random(in: 0..<Self.size / 4096, using: &random) * 4096
                let count = min(Int.random(in: 1...16, using: &random) * 4096, Self.size - offset)
                let kinds: [DiskOperation.Kind] = [.read, .read, .read, .write, .write, .discard, .writeZeroes(mayUnmap: true), .flush]
                let chosen = kinds[Int.random(in: 0..<kinds.count, using: &random)]
                guard chosen == .flush || !running.values.contains(where: { $0.range.overlaps(offset..<offset + count) }) else { continue }
                let seed = UInt8.random(in: 0...255, using: &random)
                if chosen == .write { memset(bench.place(tag), Int32(seed), count) }
                running[tag] = Running(kind: chosen, range: chosen == .flush ? 0..<0 : offset..<offset + count, seed: seed)
                bench.submit(chosen, chosen == .flush ? 0 : offset, chosen == .flush ? 0 : count, tag: tag)
            }
            var ended: [(Int, Int32)] = []
            bench.channel.advance { ended.append(($0, $1)) }
            if ended.isEmpty { bench.wait() }
            for (tag, result) in ended {
                let found = running.removeValue(forKey: tag)
                let operation = try #require(found)
                #expect(result == 0, "\(operation.kind) of \(operation.range)")
                done += 1
                switch operation.kind {
                case .read:
                    let bytes = UnsafeRawBufferPointer(start: bench.place(tag), count: operation.range.count)
                    #expect(bytes.elementsEqual(model[operation.range]), "read of \(operation.range)")
                case .write: for index in operation.range { model[index] = operation.seed }
                case .discard, .writeZeroes: for index in operation.range { model[index] = 0 }
                case .flush: break
                }
            }
        }
        #expect(done == 3000)
    }

    @Test(arguments: Kind.allCases) func failuresAreTold(kind: Kind) throws {
        let bench = try Bench(kind)
        // The file has become shorter: what is behind its end cannot be read.
        try #require(truncate(bench.url.path, 4096) == 0)
        bench.submit(.read, 4 << 20, 8192, tag: 3)
        var result: Int32?
        for _ in 0..<100 where result == nil {
            bench.channel.advance { result = $0 == 3 ? $1 : -1 }
            if result == nil { bench.wait() }
        }
        #expect(result == EIO)
    }

    /// After `close`, nothing touches memory any more.
    @Test func closingWithOperationsUnderWay() throws {
        for _ in 0..<20 {
            let bench = try Bench(.uncached)
            for tag in 0..<Self.depth { bench.submit(tag % 2 == 0 ? .read : .flush, tag * 4096, tag % 2 == 0 ? 8192 : 0, tag: tag) }
            bench.channel.close()
            memset(bench.memory, 0xEE, Self.depth * Self.most)
            usleep(2000)
            let touched = (0..<Self.depth * Self.most).contains { bench.memory.load(fromByteOffset: $0, as: UInt8.self) != 0xEE }
            #expect(!touched)
        }
    }
}
