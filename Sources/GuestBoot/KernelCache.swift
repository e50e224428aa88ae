import CCompression
import CLinux
import Glibc

/// Unpacked kernels on disk, by content: unpacking XZ takes a second and a half, reading the result back a few hundredths.
///
/// A file holds the unpacked kernel and a checksum behind it; it is written under a temporary name, synced and renamed, so
/// that a damaged or half-written one is never used. Any failure here only means that the kernel is unpacked again.
package struct KernelCache: Sendable {
    private static let maximumFileCount = 8
    private static let trailerSize = 8
    package let directory: String

    package init(directory: String) { self.directory = directory }

    /// `$VZ_CACHE/kernels`, else `$XDG_CACHE_HOME/vz/kernels`, else `~/.cache/vz/kernels`; nil when none of them is known.
    package static var standard: KernelCache? {
        func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 } }
        if let path = variable("VZ_CACHE") { return KernelCache(directory: path + "/kernels") }
        if let path = variable("XDG_CACHE_HOME") { return KernelCache(directory: path + "/vz/kernels") }
        return variable("HOME").map { KernelCache(directory: $0 + "/.cache/vz/kernels") }
    }

    /// Two checksums and the length of the compressed bytes.
    static func key(_ payload: UnsafeRawBufferPointer) -> String {
        let wide = ccompression_crc64(payload.baseAddress, payload.count)
        let narrow = ccompression_crc32(payload.baseAddress, payload.count)
        return String(wide, radix: 16) + "-" + String(narrow, radix: 16) + "-" + String(payload.count, radix: 16)
    }

    func load(_ key: String, size: Int) -> [UInt8]? {
        let fd = open(directory + "/" + key, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var info = stat()
        guard fstat(fd, &info) == 0, Int(info.st_size) == size + Self.trailerSize else { return nil }
        var bytes = [UInt8](unsafeUninitializedCapacity: size + Self.trailerSize) { buffer, count in
            while count < buffer.count, let base = buffer.baseAddress {
                let done = read(fd, base + count, buffer.count - count)
                if done <= 0 { break }
                count += done
            }
        }
        guard bytes.count == size + Self.trailerSize else { return nil }
        let matches = bytes.withUnsafeBytes {
            $0.loadUnaligned(fromByteOffset: size, as: UInt64.self) == ccompression_crc64($0.baseAddress, size)
        }
        guard matches else { return nil }
        bytes.removeLast(Self.trailerSize)
        futimens(fd, nil)  // used lately
        return bytes
    }

    func store(_ key: String, _ kernel: [UInt8]) {
        makeDirectories()
        let temporary = directory + "/.\(key).\(getpid()).\(UInt32.random(in: 0 ... .max))"
        let fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { return }
        var checksum = kernel.withUnsafeBytes { ccompression_crc64($0.baseAddress, $0.count) }
        let written =
            kernel.withUnsafeBytes { Self.writeAll(fd, $0) } && withUnsafeBytes(of: &checksum) { Self.writeAll(fd, $0) } && fsync(fd) == 0
        close(fd)
        if !written || rename(temporary, directory + "/" + key) != 0 { unlink(temporary) }
        removeOldest()
    }
    private static func writeAll(_ fd: Int32, _ bytes: UnsafeRawBufferPointer) -> Bool {
        var at = 0
        while at < bytes.count, let base = bytes.baseAddress {
            let done = write(fd, base + at, bytes.count - at)
            if done < 0, errno == EINTR { continue }
            if done <= 0 { return false }
            at += done
        }
        return true
    }
    private func makeDirectories() {
        var path = ""
        for part in directory.split(separator: "/") {
            path += "/" + part
            mkdir(path, 0o700)
        }
    }
    private func removeOldest() {
        guard let listing = opendir(directory) else { return }
        defer { closedir(listing) }
        var files: [(path: String, used: Int)] = []
        while let entry = readdir(listing) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) } }
            var info = stat()
            guard !name.hasPrefix("."), stat(directory + "/" + name, &info) == 0 else { continue }
            files.append((directory + "/" + name, info.st_mtim.tv_sec))
        }
        for file in files.sorted(by: { $0.used > $1.used }).dropFirst(Self.maximumFileCount) { unlink(file.path) }
    }
}
