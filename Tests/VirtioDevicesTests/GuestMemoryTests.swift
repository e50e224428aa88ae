import Foundation
import GuestMemory
import TestSupport
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Memory that is frozen, restored, given back and settled, against a plain array.
@Suite struct GuestMemoryTests {
    private static let size = 40 << 20
    private final class Subject {
        let memory: GuestMemory
        var model: [UInt8]
        var random: SeededGenerator
        init(_ memory: GuestMemory, _ model: [UInt8], seed: UInt64) {
            self.memory = memory
            self.model = model
            random = SeededGenerator(state: seed)
        }
        func change(_ times: Int) throws {
            for _ in 0..<times {
                let length = Int.random(in: 1...Int.random(in: 1...300_000, using: &random), using: &random)
                let start = Int.random(in: 0..<model.count - length, using: &random)
                if Int.random(in: 0..<3, using: &random) == 0 {
                    // Whole pages only.
                    let (first, last) = ((start + 4095) & ~4095, (start + length) & ~4095)
                    memory.discard(UInt64(start), length)
                    if last > first { model.replaceSubrange(first..<last, with: repeatElement(0, count: last - first)) }
                } else {
                    let value = UInt8.random(in: 0...255, using: &random)
                    let bytes = [UInt8](repeating: value, count: length)
                    try memory.write(bytes, at: UInt64(start))
                    model.replaceSubrange(start..<start + length, with: bytes)
                }
            }
        }
        var isRight: Bool { model.elementsEqual(memory.contents) }
        /// What a saved state would have: the used ranges, and zeroes elsewhere.
        static func image(_ contents: UnsafeRawBufferPointer, _ ranges: [Range<Int>]) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: contents.count)
            for range in ranges { bytes.replaceSubrange(range, with: contents[range]) }
            return bytes
        }
        var usedIsRight: Bool { Self.image(memory.contents, memory.usedRanges) == model }
    }

    @Test func frozenMemoryStaysAsItWas() throws {
        let subject = Subject(try GuestMemory(layout: [(0, UInt64(Self.size))]), [UInt8](repeating: 0, count: Self.size), seed: 7)
        try subject.change(300)
        for _ in 0..<3 {
            #expect(subject.isRight && subject.usedIsRight && subject.memory.isSettled)
            do {
                let frozen = try subject.memory.freeze()
                let then = subject.model
                #expect(!subject.memory.isSettled)
                try subject.change(200)
                #expect(subject.isRight && subject.usedIsRight)
                #expect(Subject.image(frozen.contents, frozen.usedRanges) == then)
            }
            while try !subject.memory.settle() {
                #expect(subject.isRight)
                try subject.change(20)
                #expect(subject.isRight)
            }
            try subject.change(20)
        }
        #expect(subject.isRight && subject.usedIsRight)
        // What is given back is the host's again.
        subject.memory.discard(0, Self.size)
        #expect(subject.memory.usedRanges == [])
    }
    @Test func restoredMemoryIsSettledInto() throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("vz-memory-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: url) }
        var saved = [UInt8](repeating: 0, count: Self.size)
        for index in stride(from: 0, to: Self.size, by: 4096) where index / 500_000 % 3 == 0 { saved[index + index % 4095] = 1 }
        let fd = open(url.path, O_RDWR | O_CREAT, 0o600)
        defer { close(fd) }
        try #require(ftruncate(fd, Self.size + 8192) == 0)
        for index in stride(from: 0, to: Self.size, by: 4096) where saved[index..<index + 4096].contains(1) {
            try #require(saved.withUnsafeBytes { pwrite(fd, $0.baseAddress.map { $0 + index }, 4096, index + 8192) } == 4096)
        }
        let memory = try GuestMemory(layout: [(0, UInt64(Self.size))], contents: (fd, 8192))
        let subject = Subject(memory, saved, seed: 3)
        #expect(subject.isRight && subject.usedIsRight && !memory.isSettled)
        try subject.change(200)
        #expect(subject.isRight && subject.usedIsRight)
        while try !memory.settle() {
            try subject.change(20)
            #expect(subject.isRight)
        }
        #expect(subject.isRight && subject.usedIsRight)
        // The file is not needed any more, and has not changed.
        #expect(try [UInt8](Data(contentsOf: url)).dropFirst(8192).elementsEqual(saved))
        try #require(ftruncate(fd, 0) == 0)
        let then = subject.model
        let frozen = try memory.freeze()
        try subject.change(50)
        #expect(Subject.image(frozen.contents, frozen.usedRanges) == then && subject.isRight)
    }
}
