import CLinux
import Glibc
import LinuxSystem

/// Raw images as files.
extension RawDisk {
    /// Writes all of a disk to a new file, with holes for zeroes. Nothing is left of it when that fails.
    package static func write(_ disk: any BlockBackend, to path: String, progress: (Double) -> Void) throws(DiskError) {
        func failure(_ code: Int32) -> DiskError { DiskError(.system, "cannot write the image \(path): \(String(cString: strerror(code)).lowercased())", errno: code) }
        let fd = clinux_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw failure(errno) }
        defer { close(fd) }
        let step = 1 << 20
        var result: Int32 = ftruncate(fd, off_t(disk.byteCount)) == 0 ? 0 : errno
        withUnsafeTemporaryAllocation(byteCount: step, alignment: 4096) { buffer in
            guard let memory = buffer.baseAddress else { return result = ENOMEM }
            var at: UInt64 = 0
            while result == 0, at < disk.byteCount {
                let count = Int(min(UInt64(step), disk.byteCount - at))
                var vector = iovec(iov_base: memory, iov_len: count)
                result = disk.read(at: at, &vector, 1)
                if result == 0 { result = put(fd, memory, count, at: at) }
                at += UInt64(count)
                progress(Double(at) / Double(disk.byteCount))
            }
        }
        if result == 0, fsync(fd) != 0 { result = errno }
        guard result == 0 else {
            unlink(path)
            throw failure(result)
        }
    }
    /// What is not all zeroes, by pieces of 64 KiB.
    private static func put(_ fd: Int32, _ memory: UnsafeRawPointer, _ count: Int, at offset: UInt64) -> Int32 {
        for start in stride(from: 0, to: count, by: 65536) {
            let length = min(65536, count - start)
            let piece = memory + start
            if piece.loadUnaligned(as: UInt64.self) == 0, memcmp(piece, piece + 8, length - 8) == 0 { continue }
            let result = FileTransfer.write(fd, UnsafeRawBufferPointer(start: piece, count: length), at: Int(offset) + start)
            if result != 0 { return result }
        }
        return 0
    }
    /// Makes an image larger, with a hole at its end. Throws when it is in use.
    package static func grow(_ path: String, to size: UInt64) throws(DiskError) {
        let disk = try RawDisk(path: path, readOnly: false)
        try disk.lock(path: path)
        guard size >= disk.byteCount, size % 512 == 0 else {
            throw DiskError(.notADisk, "the disk image \(path) has \(disk.byteCount) bytes; it can only grow, to a multiple of 512")
        }
        guard truncate(path, off_t(size)) == 0 else { throw DiskError(.system, "cannot enlarge \(path): \(String(cString: strerror(errno)).lowercased())", errno: errno) }
    }
}
