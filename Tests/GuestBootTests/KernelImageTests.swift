import Foundation
import GuestBoot
import Testing

/// Debian's kernel with its payload packed anew by gzip, xz and zstd: the same kernel comes out of each.
@Suite(.serialized) struct KernelImageTests {
    private static let original: [UInt8] = {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let assets = String(decoding: output("/bin/sh", ["-c", root.path + "/Scripts/test-assets"], Data()), as: UTF8.self)
        return [UInt8]((try? Data(contentsOf: URL(fileURLWithPath: assets.trimmingCharacters(in: .whitespacesAndNewlines) + "/vmlinuz"))) ?? Data())
    }()
    private static func output(_ program: String, _ arguments: [String], _ input: Data) -> Data {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        let (stdin, stdout) = (Pipe(), Pipe())
        process.standardInput = stdin
        process.standardOutput = stdout
        do { try process.run() } catch { return Data() }
        Thread {
            stdin.fileHandleForWriting.write(input)
            try? stdin.fileHandleForWriting.close()
        }.start()
        let data = stdout.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return data
    }
    private func value(_ file: [UInt8], _ offset: Int) -> Int { (0..<4).reduce(0) { $0 | Int(file[offset + $1]) << (8 * $1) } }
    private func put(_ file: inout [UInt8], _ offset: Int, _ value: Int) { for index in 0..<4 { file[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) } }

    /// Header as it was, but for the sizes; the unpacked size behind the payload, as the kernel's build puts it.
    private func repacked(_ program: String, _ arguments: [String], kernel: [UInt8]) throws -> [UInt8] {
        var payload = [UInt8](Self.output(program, arguments, Data(kernel)))
        try #require(payload.count > 1 << 20, "\(program) gave nothing")
        payload += (0..<4).map { UInt8(truncatingIfNeeded: kernel.count >> (8 * $0)) }
        let start = (Int(Self.original[0x1F1]) + 1) * 512
        var file = Array(Self.original[..<(start + value(Self.original, 0x248))]) + payload
        file += [UInt8](repeating: 0, count: (16 - (file.count - start) % 16) % 16)
        put(&file, 0x1F4, (file.count - start) / 16)
        put(&file, 0x24C, payload.count)
        return file
    }

    @Test(arguments: [("gzip", ["-1"]), ("xz", ["-0", "--check=crc32"]), ("zstd", ["-1"])])
    func everyCompressionGivesTheSameKernel(program: String, arguments: [String]) throws {
        let kernel = try KernelImage(Self.original).content
        let file = try repacked("/usr/bin/" + program, arguments, kernel: kernel)
        let image = try KernelImage(file)
        #expect(image.content == kernel)
        #expect(!image.selfExtracting)
        // The unpacked ELF file itself is a kernel, too.
        #expect(try KernelImage(kernel).segments.count == image.segments.count)
    }
    @Test func unpackedKernelsAreKeptAndDamagedOnesIgnored() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("vz-cache-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: directory) }
        let kernel = try KernelImage(Self.original).content
        let file = try repacked("/usr/bin/xz", ["-0", "--check=crc32"], kernel: kernel)
        let cache = KernelCache(directory: directory.path + "/a/b")
        #expect(try KernelImage(file, cache: cache).content == kernel)
        let names = try FileManager.default.contentsOfDirectory(atPath: cache.directory)
        let name = try #require(names.first)
        #expect(names.count == 1)
        #expect(try KernelImage(file, cache: cache).content == kernel)
        // A flipped byte, then a short file: unpacked anew, and the cache is whole again.
        let entry = URL(fileURLWithPath: cache.directory).appendingPathComponent(name)
        for damage in [{ (data: inout Data) in data[data.count / 2] ^= 1 }, { $0.removeLast(100) }] {
            var data = try Data(contentsOf: entry)
            let whole = data
            damage(&data)
            try data.write(to: entry)
            #expect(try KernelImage(file, cache: cache).content == kernel)
            let mended = try Data(contentsOf: entry)
            #expect(mended == whole)
        }
    }
    @Test func cacheWithoutADirectoryDoesNoHarm() throws {
        let kernel = try KernelImage(Self.original).content
        let file = try repacked("/usr/bin/gzip", ["-1"], kernel: kernel)
        #expect(try KernelImage(file, cache: KernelCache(directory: "/proc/no/such/place")).content == kernel)
    }
}
