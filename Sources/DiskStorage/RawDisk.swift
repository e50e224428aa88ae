import CLinux
import Glibc
import LinuxSystem

/// Why a disk cannot be used, in a sentence that names the file.
package struct DiskError: Error, CustomStringConvertible, Equatable, Sendable {
    package enum Kind: Equatable, Sendable { case notADisk, inUse, system }
    package let kind: Kind
    package let description: String
    package let errno: Int32
    package init(_ kind: Kind, _ description: String, errno: Int32 = 0) {
        self.kind = kind
        self.description = description
        self.errno = errno
    }
}

/// A raw image file, or a block device of the host's, as a disk. Any thread.
package final class RawDisk: BlockBackend {
    package enum Caching: Sendable { case cached, uncached }
    /// What a guest flush does.
    package enum Synchronization: Sendable { case full, none }

    package let byteCount: UInt64
    package let isReadOnly: Bool
    package let blockSize: Int
    private let fileDescriptor: Int32
    /// The same file with O_DIRECT, for aligned requests in uncached mode; -1 without.
    private let directDescriptor: Int32
    private let synchronization: Synchronization
    /// On a file system that is memory: nothing waits, and it cannot be asked.
    private let isInMemory: Bool
    private let writeBehind = WriteBehind()

    /// Opens and checks the file; takes no lock yet.
    package init(path: String, readOnly: Bool, caching: Caching = .cached, synchronization: Synchronization = .full) throws(DiskError) {
        self.isReadOnly = readOnly
        self.synchronization = synchronization
        let flags = (readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC
        let fd = open(path, flags)
        guard fd >= 0 else {
            let code = Glibc.errno
            if code == EISDIR { throw DiskError(.notADisk, "\(path) is a directory, not a disk image", errno: code) }
            throw DiskError(.system, "cannot open the disk image \(path): \(String(cString: strerror(code)))", errno: code)
        }
        do throws(DiskError) { byteCount = try Self.check(path, fd) } catch {
            close(fd)
            throw error
        }
        fileDescriptor = fd
        isInMemory = clinux_is_in_memory(fd) != 0
        blockSize = 512
        directDescriptor = caching == .uncached ? open(path, flags | O_DIRECT) : -1
    }
    /// A block device that is open as `descriptor`, which is duplicated.
    package init(blockDevice descriptor: Int32, readOnly: Bool, synchronization: Synchronization = .full) throws(DiskError) {
        isReadOnly = readOnly
        self.synchronization = synchronization
        var info = stat()
        guard fstat(descriptor, &info) == 0 else { throw DiskError(.system, "the file handle is not open", errno: Glibc.errno) }
        guard clinux_is_blk(info.st_mode) != 0 else { throw DiskError(.notADisk, "the file handle does not refer to a block device") }
        let access = clinux_fcntl_getfl(descriptor) & O_ACCMODE
        guard readOnly ? access != O_WRONLY : access == O_RDWR else {
            throw DiskError(.notADisk, "the file handle of the block device is not open for \(readOnly ? "reading" : "reading and writing")")
        }
        var size: UInt64 = 0
        guard clinux_ioctl_pointer(descriptor, 0x8008_1272, &size) == 0, size >= 512 else {  // BLKGETSIZE64
            throw DiskError(.notADisk, "the block device has no size")
        }
        byteCount = size & ~511
        fileDescriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
        guard fileDescriptor >= 0 else { throw DiskError(.system, "cannot duplicate the file handle", errno: Glibc.errno) }
        directDescriptor = -1
        isInMemory = false
        var block: Int32 = 512
        _ = clinux_ioctl_pointer(descriptor, 0x1268, &block)  // BLKSSZGET
        blockSize = min(max(Int(block), 512), 4096)
    }
    private static func check(_ path: String, _ fd: Int32) throws(DiskError) -> UInt64 {
        var info = stat()
        guard fstat(fd, &info) == 0 else { throw DiskError(.system, "cannot examine \(path)", errno: Glibc.errno) }
        if clinux_is_dir(info.st_mode) != 0 { throw DiskError(.notADisk, "\(path) is a directory, not a disk image") }
        guard clinux_is_reg(info.st_mode) != 0 else { throw DiskError(.notADisk, "\(path) is not a regular file") }
        guard info.st_size > 0 else { throw DiskError(.notADisk, "the disk image \(path) is empty; give it a size first (truncate -s 10G \(path))") }
        guard info.st_size % 512 == 0 else {
            throw DiskError(.notADisk, "the size of the disk image \(path), \(info.st_size) bytes, is not a multiple of 512")
        }
        return UInt64(info.st_size)
    }
    deinit {
        close(fileDescriptor)
        if directDescriptor >= 0 { close(directDescriptor) }
    }

    /// Claims the image for a running machine: alone for writing, with others for reading.
    package func lock(path: String) throws(DiskError) {
        if clinux_lock(fileDescriptor, isReadOnly ? Int32(F_RDLCK) : Int32(F_WRLCK)) == 0 { return }
        let code = Glibc.errno
        guard code == EAGAIN || code == EACCES else { return }  // a file system without locks
        throw DiskError(.inUse, "the disk image \(path) is in use by another virtual machine\(holder)", errno: code)
    }
    package func unlock() { _ = clinux_lock(fileDescriptor, Int32(F_UNLCK)) }

    /// ", held by process 123" when /proc tells.
    private var holder: String {
        var info = stat()
        guard fstat(fileDescriptor, &info) == 0, let directory = opendir("/proc") else { return "" }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) } }
            guard Int32(name) != nil, let links = opendir("/proc/\(name)/fd") else { continue }
            defer { closedir(links) }
            while let link = readdir(links) {
                let number = withUnsafePointer(to: &link.pointee.d_name) { $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) } }
                var target = stat()
                guard stat("/proc/\(name)/fd/\(number)", &target) == 0, target.st_ino == info.st_ino, target.st_dev == info.st_dev else { continue }
                return ", held by process \(name)"
            }
        }
        return ""
    }

    package func read(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 {
        FileTransfer.move(first, orElse: fileDescriptor, at: offset, vectors, count) { preadv($0, $1, $2, $3) }
    }
    package func readPromptly(at offset: UInt64, _ vectors: UnsafePointer<iovec>, _ count: Int, _ total: Int) -> FileTransfer.PromptRead {
        isInMemory ? .unknown : FileTransfer.readPromptly(fileDescriptor, at: offset, vectors, count, total: total)
    }
    package func waits(_ kind: DiskOperation.Kind) -> Bool {
        switch kind {
        case .read, .write: directDescriptor >= 0
        case .flush: synchronization == .full && !isReadOnly
        case .discard, .writeZeroes: true
        }
    }
    package func write(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 {
        guard directDescriptor < 0, synchronization == .full else {
            return FileTransfer.move(first, orElse: fileDescriptor, at: offset, vectors, count) { pwritev($0, $1, $2, $3) }
        }
        let total = (0..<count).reduce(0) { $0 + vectors[$1].iov_len }
        let result = FileTransfer.move(fileDescriptor, at: offset, vectors, count) { pwritev($0, $1, $2, $3) }
        if result == 0 { writeBehind.wrote(fileDescriptor, at: offset, total) }
        return result
    }
    /// O_DIRECT refuses what is not aligned: that part goes through the cache.
    private var first: Int32 { directDescriptor >= 0 ? directDescriptor : fileDescriptor }
    package func flush() -> Int32 {
        if synchronization == .none || isReadOnly { return 0 }
        return fdatasync(fileDescriptor) == 0 ? 0 : Glibc.errno
    }
    package func discard(at offset: UInt64, count: UInt64) -> Int32 {
        let result = clinux_fallocate(fileDescriptor, 3, Int64(offset), Int64(count))  // PUNCH_HOLE, KEEP_SIZE
        // Discard is advice: a file system without holes keeps the bytes.
        return result == 0 || Glibc.errno == EOPNOTSUPP ? 0 : Glibc.errno
    }
    package func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) -> Int32 {
        let mode: Int32 = mayUnmap ? 3 : 0x11  // PUNCH_HOLE or ZERO_RANGE, with KEEP_SIZE
        if clinux_fallocate(fileDescriptor, mode, Int64(offset), Int64(count)) == 0 { return 0 }
        if Glibc.errno != EOPNOTSUPP { return Glibc.errno }
        return zeroByWriting(offset, count)
    }
    private func zeroByWriting(_ offset: UInt64, _ count: UInt64) -> Int32 {
        let zeroes = [UInt8](repeating: 0, count: 64 * 1024)
        for at in stride(from: Int(offset), to: Int(offset + count), by: zeroes.count) {
            let step = min(zeroes.count, Int(offset + count) - at)
            let result = zeroes.withUnsafeBytes { FileTransfer.write(fileDescriptor, UnsafeRawBufferPointer(rebasing: $0[..<step]), at: at) }
            if result != 0 { return result }
        }
        return 0
    }
}
