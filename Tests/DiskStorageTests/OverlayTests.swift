import DiskStorage
import Foundation
import TestSupport
import Testing

#if canImport(Glibc)
    import Glibc
#endif

@Suite struct OverlayTests {
    private final class Folder {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("vz-overlay-\(UUID().uuidString)")
        init() throws { try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true) }
        deinit { try? FileManager.default.removeItem(at: url) }
        func path(_ name: String) -> String { url.appendingPathComponent(name).path }
        /// A raw image with a pattern, and holes.
        func base(_ name: String, size: Int) throws -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: size)
            for index in bytes.indices where index / 40_000 % 3 != 1 { bytes[index] = UInt8(truncatingIfNeeded: index &* 7 >> 4) | 1 }
            try Data(bytes).write(to: url.appendingPathComponent(name))
            return bytes
        }
    }
    private static func read(_ disk: OverlayDisk, _ offset: Int, _ count: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0xAA, count: count)
        let result = bytes.withUnsafeMutableBytes { raw -> Int32 in
            guard let base = raw.baseAddress else { return 0 }
            let half = count / 1024 * 512
            var vectors = [iovec(iov_base: base, iov_len: half), iovec(iov_base: base + half, iov_len: count - half)]
            return disk.read(at: UInt64(offset), &vectors, 2)
        }
        return result == 0 ? bytes : nil
    }
    private static func write(_ disk: OverlayDisk, _ offset: Int, _ bytes: [UInt8]) -> Int32 {
        var copy = bytes
        return copy.withUnsafeMutableBytes { raw in
            guard let base = raw.baseAddress else { return 0 }
            let third = bytes.count / 1536 * 512
            var vectors = [iovec(iov_base: base, iov_len: third), iovec(iov_base: base + third, iov_len: bytes.count - third)]
            return disk.write(at: UInt64(offset), &vectors, 2)
        }
    }
    /// Why an overlay cannot be opened.
    private static func problem(_ path: String) -> String? {
        do throws(DiskError) { _ = try OverlayDisk(path: path, readOnly: true) } catch { return error.description }
        return nil
    }
    /// Against a plain array; reopened now and then, cleanly and as after a crash: then each sector is what was flushed, or later.
    @Test(arguments: [false, true]) func randomOperationsAgree(deep: Bool) throws {
        let folder = try Folder()
        let size = 1_500_160
        var model = try folder.base("base", size: size)
        try OverlayDisk.create(path: folder.path("middle"), base: folder.path("base"), baseIsOverlay: false)
        if deep {
            let middle = try OverlayDisk(path: folder.path("middle"), readOnly: false)
            let bytes = [UInt8](repeating: 0x77, count: 300_032)
            #expect(Self.write(middle, 100_352, bytes) == 0 && middle.flush() == 0)
            model.replaceSubrange(100_352..<400_384, with: bytes)
            #expect(middle.discard(at: 65536 * 10, count: 65536) == 0 && middle.flush() == 0)
            model.replaceSubrange(65536 * 10..<65536 * 11, with: repeatElement(0, count: 65536))
        }
        let grown = deep ? size + 200_704 : size
        try OverlayDisk.create(path: folder.path("top"), base: folder.path(deep ? "middle" : "base"), baseIsOverlay: deep, size: UInt64(grown))
        model += [UInt8](repeating: 0, count: grown - size)
        var disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
        #expect(disk.byteCount == UInt64(grown) && disk.usage.own == 0)
        var random = SeededGenerator(state: deep ? 11 : 5)
        var flushed = model
        var touched = [Bool](repeating: false, count: grown / 512)
        for step in 0..<1500 {
            let start = Int.random(in: 0..<grown / 512, using: &random)
            let count = min(Int.random(in: 1...Int.random(in: 1...400, using: &random), using: &random), grown / 512 - start)
            let (offset, length) = (start * 512, count * 512)
            switch Int.random(in: 0..<20, using: &random) {
            case 0..<8:
                let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &+ step) }
                #expect(Self.write(disk, offset, bytes) == 0)
                model.replaceSubrange(offset..<offset + length, with: bytes)
                for sector in start..<start + count { touched[sector] = true }
            case 8..<10:
                #expect(disk.writeZeroes(at: UInt64(offset), count: UInt64(length), mayUnmap: true) == 0)
                model.replaceSubrange(offset..<offset + length, with: repeatElement(0, count: length))
                for sector in start..<start + count { touched[sector] = true }
            case 10..<17: #expect(Self.read(disk, offset, length) == Array(model[offset..<offset + length]), "step \(step)")
            case 17:
                #expect(disk.flush() == 0)
                flushed = model
                touched = touched.map { _ in false }
            case 18:
                #expect(disk.flush() == 0)
                flushed = model
                touched = touched.map { _ in false }
                disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
            default:
                // As a killed process leaves it.
                try FileManager.default.copyItem(atPath: folder.path("top"), toPath: folder.path("crashed"))
                let crashed = try OverlayDisk(path: folder.path("crashed"), readOnly: false)
                let bytes = try #require(Self.read(crashed, 0, grown))
                for sector in 0..<grown / 512 {
                    let range = sector * 512..<sector * 512 + 512
                    let isRight = bytes[range] == flushed[range] || touched[sector] && bytes[range] == model[range]
                    // A sector that was written several times since may be any of those.
                    if !isRight, !touched[sector] { Issue.record("step \(step), sector \(sector)") }
                }
                try FileManager.default.removeItem(atPath: folder.path("crashed"))
            }
        }
        #expect(Self.read(disk, 0, grown) == model)
        #expect(disk.flush() == 0)
        #expect(try Self.read(OverlayDisk(path: folder.path("top"), readOnly: true), 0, grown) == model)
        if !deep {
            try disk.merge { _ in }
            #expect(try [UInt8](Data(contentsOf: folder.url.appendingPathComponent("base"))) == model)
        }
    }
    /// Layers come under a disk that goes on, are folded into the next, and are merged down in the end: what the disk, and each layer,
    /// holds never changes by that. A copy of the files at any time is what a crash leaves: it has all that was flushed.
    @Test func layersComeAndGoUnderADisk() throws {
        let folder = try Folder()
        let size = 1_000_448
        var model = try folder.base("base", size: size)
        try OverlayDisk.create(path: folder.path("top"), base: folder.path("base"), baseIsOverlay: false)
        var disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
        var random = SeededGenerator(state: 99)
        func change() {
            for step in 0..<12 {
                let start = Int.random(in: 0..<size / 512, using: &random)
                let count = min(Int.random(in: 1...200, using: &random), size / 512 - start)
                let range = start * 512..<(start + count) * 512
                if step % 4 == 3 {
                    #expect(disk.writeZeroes(at: UInt64(range.lowerBound), count: UInt64(range.count), mayUnmap: true) == 0)
                    model.replaceSubrange(range, with: repeatElement(0, count: range.count))
                } else {
                    let bytes = range.map { UInt8(truncatingIfNeeded: $0 &* 3 &+ step &+ Int(random.state & 0xFF)) }
                    #expect(Self.write(disk, range.lowerBound, bytes) == 0)
                    model.replaceSubrange(range, with: bytes)
                }
            }
        }
        func contents(_ name: String) throws -> [UInt8]? { try Self.read(OverlayDisk(path: folder.path(name), readOnly: true), 0, size) }
        var kept: [String: [UInt8]] = [:]
        for number in 0..<6 {
            change()
            #expect(disk.flush() == 0)
            let flushed = model
            let branch = try OverlayBranch(disk, frozenPath: folder.path("kept\(number)"))
            #expect(throws: DiskError.self) { try OverlayBranch(disk, frozenPath: folder.path("kept\(number)")) }
            #expect(try contents("top") == flushed)
            change()
            branch.prepare()
            let instant = model
            branch.switchOver()
            #expect(Self.read(disk, 0, size) == instant)
            change()
            // A crash now finds what was flushed; a flush, or the snapshot's end, makes the new layer permanent.
            #expect(try contents("top") == instant)
            if number % 2 == 0 { #expect(disk.flush() == 0) } else { try branch.complete() }
            #expect(disk.flush() == 0)
            #expect(try contents("top") == model)
            kept["kept\(number)"] = instant
            if number == 3 {
                disk.finish()
                disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
            }
        }
        func check() throws {
            for (name, bytes) in kept { #expect(try contents(name) == bytes, "\(name)") }
            #expect(try contents("top") == model)
        }
        try check()
        disk.finish()
        disk.unlock()
        // One in the middle goes, then the first, then the last.
        for (gone, next) in [("kept2", "kept3"), ("kept0", "kept1"), ("kept5", "top")] {
            try OverlayDisk(path: folder.path(next), readOnly: true).absorbBase { _ in }
            try FileManager.default.removeItem(atPath: folder.path(gone))
            kept[gone] = nil
            try check()
        }
        #expect(throws: DiskError.self) { try OverlayDisk(path: folder.path("kept1"), readOnly: true).absorbBase { _ in } }
        // Down again, from the top to the image.
        for name in ["top", "kept4", "kept3", "kept1"] {
            try OverlayDisk(path: folder.path(name), readOnly: false).merge { _ in }
            try FileManager.default.removeItem(atPath: folder.path(name))
        }
        #expect(try [UInt8](Data(contentsOf: folder.url.appendingPathComponent("base"))) == model)
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder.url.path) == ["base"])
    }
    @Test func imageGrowsWithALargerOverlay() throws {
        let folder = try Folder()
        let model = try folder.base("base", size: 100_352)
        try OverlayDisk.create(path: folder.path("top"), base: folder.path("base"), baseIsOverlay: false, size: 300_032)
        let disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
        let bytes = [UInt8](repeating: 5, count: 2048)
        #expect(Self.write(disk, 297_984, bytes) == 0 && disk.flush() == 0)
        try disk.merge { _ in }
        #expect(try [UInt8](Data(contentsOf: folder.url.appendingPathComponent("base"))) == model + [UInt8](repeating: 0, count: 197_632) + bytes)
    }
    @Test func fileGrowsWithWhatIsWrittenOnly() throws {
        let folder = try Folder()
        _ = try folder.base("base", size: 8 << 20)
        try OverlayDisk.create(path: folder.path("top"), base: folder.path("base"), baseIsOverlay: false, size: 4 << 30)
        let disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
        func blocks() -> Int {
            var info = stat()
            return stat(folder.path("top"), &info) == 0 ? Int(info.st_blocks) * 512 : -1
        }
        let empty = blocks()
        #expect(empty <= 16384)
        #expect(Self.write(disk, 3 << 30, [UInt8](repeating: 1, count: 1 << 20)) == 0 && disk.flush() == 0)
        #expect(blocks() - empty < (1 << 20) + 65536)
        #expect(disk.discard(at: 3 << 30, count: 1 << 20) == 0)
        #expect(blocks() - empty <= 65536)
        #expect(Self.read(disk, 3 << 30, 4096) == [UInt8](repeating: 0, count: 4096))
    }
    /// Headers and tables with random changes, under a right checksum: an error, or a disk whose requests end, and a base that nobody
    /// has written.
    @Test func randomDamageHarmsNobody() throws {
        let folder = try Folder()
        let model = try folder.base("base", size: 1 << 20)
        try OverlayDisk.create(path: folder.path("top"), base: folder.path("base"), baseIsOverlay: false)
        let disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
        #expect(Self.write(disk, 65536, [UInt8](repeating: 9, count: 300_032)) == 0 && disk.flush() == 0)
        let good = try [UInt8](Data(contentsOf: folder.url.appendingPathComponent("top")))
        let bad = folder.url.appendingPathComponent("bad")
        var opened = 0
        for seed in Fuzzing.seeds(400) {
            var random = SeededGenerator(state: UInt64(seed))
            var bytes = good
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                // The header's numbers, the path, or the table.
                let place =
                    [Int.random(in: 8..<64, using: &random), Int.random(in: 64..<200, using: &random), Int.random(in: 4096..<4160, using: &random)].randomElement(using: &random)
                    ?? 8
                bytes[place] = [0, 1, 0x7F, 0x80, 0xFF, UInt8.random(in: 0...255, using: &random)].randomElement(using: &random) ?? 0
            }
            if Int.random(in: 0..<4, using: &random) == 0 { bytes = Array(bytes.prefix(Int.random(in: 4096..<bytes.count, using: &random))) }
            let sum = bytes[..<4092].reduce(0x811C_9DC5 as UInt32) { ($0 ^ UInt32($1)) &* 0x0100_0193 }
            for index in 0..<4 { bytes[4092 + index] = UInt8(truncatingIfNeeded: sum >> UInt32(8 * index)) }
            try Data(bytes).write(to: bad)
            guard let subject = try? OverlayDisk(path: bad.path, readOnly: false) else { continue }
            opened += 1
            let size = Int(min(subject.byteCount, 4 << 20))
            _ = Self.read(subject, 0, size)
            _ = Self.write(subject, Int.random(in: 0..<size / 512, using: &random) * 512, [UInt8](repeating: 3, count: 512))
            _ = subject.discard(at: 0, count: UInt64(size) & ~65535)
            _ = subject.flush()
            subject.finish()
        }
        #expect(opened > 0 || ProcessInfo.processInfo.environment["VZ_FUZZ_SECONDS"] != nil)
        #expect(try [UInt8](Data(contentsOf: folder.url.appendingPathComponent("base"))) == model)
    }
    @Test func damagedOverlaysAndChangedBasesAreRefused() throws {
        let folder = try Folder()
        _ = try folder.base("base", size: 1 << 20)
        try OverlayDisk.create(path: folder.path("top"), base: folder.path("base"), baseIsOverlay: false)
        #expect(throws: DiskError.self) { try OverlayDisk.create(path: folder.path("top"), base: folder.path("base"), baseIsOverlay: false) }
        #expect(throws: DiskError.self) { try OverlayDisk.create(path: folder.path("small"), base: folder.path("base"), baseIsOverlay: false, size: 4096) }
        #expect(throws: DiskError.self) { try OverlayDisk.create(path: folder.path("none"), base: folder.path("nowhere"), baseIsOverlay: false) }
        #expect(throws: DiskError.self) { try OverlayDisk.create(path: folder.path("none"), base: folder.path("base"), baseIsOverlay: true) }
        let disk = try OverlayDisk(path: folder.path("top"), readOnly: false)
        #expect(Self.write(disk, 0, [UInt8](repeating: 9, count: 200_704)) == 0 && disk.flush() == 0)
        let good = try Data(contentsOf: folder.url.appendingPathComponent("top"))
        let bad = folder.url.appendingPathComponent("bad")
        func refuses(_ bytes: Data) throws -> Bool {
            try bytes.write(to: bad)
            return Self.problem(bad.path) != nil
        }
        #expect(try !refuses(good))
        for count in [0, 8, 4095, 4096, 5000, 65535, 65536, 131_072] { #expect(try refuses(good.prefix(count)), "\(count) bytes") }
        for place in stride(from: 0, to: 4096, by: 13) {
            var bytes = good
            bytes[place] ^= 0x20
            #expect(try refuses(bytes), "byte \(place)")
        }
        // A table whose clusters are not in the file, or belong to two.
        for value in [200, 3, 0xFFFF_FFFE] as [UInt32] {
            var bytes = good
            withUnsafeBytes(of: value.littleEndian) { raw in for index in 0..<4 { bytes[4096 + index] = raw[index] } }
            #expect(try refuses(bytes), "entry \(value)")
        }
        // The base is another one.
        utimensat(AT_FDCWD, folder.path("base"), [timespec(tv_sec: 1, tv_nsec: 0), timespec(tv_sec: 1, tv_nsec: 0)], 0)
        #expect(Self.problem(folder.path("top"))?.contains("has changed") == true)
    }
}
