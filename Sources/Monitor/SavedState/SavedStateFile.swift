import CLinux
import Glibc
import LinuxSystem

/// A saved state on disk. Documentation/saved-state.md has the layout; little-endian, pages of 4096 bytes:
///
///     0      header: magic, version, sizes and checksums
///     4096   description: `MachineState`, as the owner encodes it
///     …      memory, at a page's start: all of it, one region behind the other, with holes for pages of zeroes
///     …      the memory's checksums
package enum SavedStateFile {
    package static let magic: [UInt8] = Array("VZSTATE\n".utf8)
    package static let version: UInt32 = 1
    private static let pageSize = MemorySum.pageSize
    private static let largestDescription = 64 << 20
    private static let headerSize = 64

    struct Header: Equatable {
        var descriptionCount: UInt64
        var descriptionChecksum: UInt32
        var memoryOffset: UInt64
        var memoryCount: UInt64
        /// Behind the memory; 0 in states of versions that had none.
        var sumsOffset: UInt64
        var sumsChecksum: UInt32

        var bytes: [UInt8] {
            func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
            let fields =
                SavedStateFile.magic + little(SavedStateFile.version) + little(descriptionChecksum) + little(descriptionCount) + little(memoryOffset)
                + little(memoryCount) + little(sumsOffset) + little(sumsChecksum)
            let body = fields + [UInt8](repeating: 0, count: SavedStateFile.headerSize - 4 - fields.count)
            return body + little(Checksum.of(body))
        }
        init(descriptionCount: UInt64, descriptionChecksum: UInt32, memoryOffset: UInt64, memoryCount: UInt64, sumsOffset: UInt64, sumsChecksum: UInt32) {
            self.descriptionCount = descriptionCount
            self.descriptionChecksum = descriptionChecksum
            self.memoryOffset = memoryOffset
            self.memoryCount = memoryCount
            self.sumsOffset = sumsOffset
            self.sumsChecksum = sumsChecksum
        }
        init(_ bytes: [UInt8]) throws(SavedStateError) {
            func number<T: FixedWidthInteger>(_ offset: Int, _: T.Type = T.self) -> T {
                (0..<MemoryLayout<T>.size).reduce(0 as T) { $0 | T(truncatingIfNeeded: bytes[offset + $1]) << T(8 * $1) }
            }
            guard bytes.count == SavedStateFile.headerSize, Array(bytes[0..<8]) == SavedStateFile.magic else {
                throw SavedStateError(.damaged, "it is no saved state of a virtual machine")
            }
            // A newer version may have another header: this comes before its checksum.
            let version: UInt32 = number(8)
            guard version <= SavedStateFile.version else {
                throw SavedStateError(.newer, "it has format version \(version); this program reads up to \(SavedStateFile.version)")
            }
            guard version > 0, number(SavedStateFile.headerSize - 4) == Checksum.of(Array(bytes[..<(SavedStateFile.headerSize - 4)])) else {
                throw SavedStateError(.damaged, "its header is damaged")
            }
            self.init(
                descriptionCount: number(16), descriptionChecksum: number(12), memoryOffset: number(24), memoryCount: number(32), sumsOffset: number(40),
                sumsChecksum: number(48))
        }
    }

    // MARK: writing

    /// Writes a state under a temporary name beside `path`, makes it permanent, and gives it its name. Nothing is left when that
    /// fails, and an older file is untouched.
    /// - Parameters:
    ///   - memory: all of it, one region behind the other.
    ///   - used: offsets in it of what may be other than zero, in ascending order.
    package static func write(
        to path: String, description: [UInt8], memory: UnsafeRawBufferPointer, used: [Range<Int>], progress: (Double) -> Void
    ) throws {
        let temporary = path + ".partial-\(getpid())"
        let fd = clinux_open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw SystemError("cannot write \(path)") }
        do {
            defer { close(fd) }
            let memoryOffset = (pageSize + description.count + pageSize - 1) & ~(pageSize - 1)
            try put(fd, description, at: pageSize, path)
            let sums = try putMemory(fd, memory, used, at: memoryOffset, path, progress)
            try put(fd, sums, at: memoryOffset + memory.count, path)
            let header = Header(
                descriptionCount: UInt64(description.count), descriptionChecksum: Checksum.of(description), memoryOffset: UInt64(memoryOffset),
                memoryCount: UInt64(memory.count), sumsOffset: UInt64(memoryOffset + memory.count), sumsChecksum: Checksum.of(sums))
            try put(fd, header.bytes, at: 0, path)
            guard fsync(fd) == 0 else { throw SystemError("cannot write \(path)") }
            guard rename(temporary, path) == 0 else { throw SystemError("cannot write \(path)") }
            HostDirectory.synchronize(of: path)
        } catch {
            unlink(temporary)
            throw error
        }
    }
    private static func put(_ fd: Int32, _ bytes: [UInt8], at offset: Int, _ path: String) throws {
        try bytes.withUnsafeBytes { try put(fd, $0, at: offset, path) }
    }
    private static func put(_ fd: Int32, _ bytes: UnsafeRawBufferPointer, at offset: Int, _ path: String) throws {
        let result = FileTransfer.write(fd, bytes, at: offset)
        if result != 0 { throw SystemError("cannot write \(path)", errno: result) }
    }
    /// Runs of pages that are not all zeroes, up to a few MiB at a time. Returns the checksums, 32 bits for each piece.
    private static func putMemory(
        _ fd: Int32, _ memory: UnsafeRawBufferPointer, _ ranges: [Range<Int>], at offset: Int, _ path: String, _ progress: (Double) -> Void
    ) throws -> [UInt8] {
        var sums = Array(repeating: MemorySum(), count: MemorySum.count(memory: memory.count))
        let total = max(ranges.reduce(0) { $0 + $1.count }, 1)
        var seen = 0
        for range in ranges {
            guard let base = memory.baseAddress else { break }
            var at = range.lowerBound
            while at < range.upperBound {
                let first = at
                while at < range.upperBound, at - first < 4 << 20, !MemorySum.isZero(base + at) {
                    sums[at / MemorySum.pieceSize].add(base + at, at: at)
                    at += pageSize
                }
                if at == first {
                    at += pageSize
                    continue
                }
                try put(fd, UnsafeRawBufferPointer(start: base + first, count: at - first), at: offset + first, path)
                progress(Double(seen + at - range.lowerBound) / Double(total))
            }
            seen += range.count
        }
        return sums.flatMap { withUnsafeBytes(of: $0.result.littleEndian, Array.init) }
    }

    // MARK: reading

    /// An open state whose header, description and checksums are whole; its memory is not read.
    package final class Opened: @unchecked Sendable {  // nothing changes after init
        package let description: [UInt8]
        package let memoryOffset: UInt64
        package let memoryCount: UInt64
        package let fileDescriptor: Int32
        /// Of each piece of the memory (`MemorySum`); none in states of versions that had none.
        let memorySums: [UInt32]

        package init(path: String) throws {
            let fd = open(path, O_RDONLY | O_CLOEXEC)
            guard fd >= 0 else { throw SystemError("cannot open \(path)") }
            do {
                var info = stat()
                guard fstat(fd, &info) == 0, clinux_is_reg(info.st_mode) != 0 else { throw SavedStateError(.damaged, "\(path) is not a regular file") }
                do throws(SavedStateError) {
                    let header = try Header(try Self.read(fd, at: 0, SavedStateFile.headerSize))
                    let size = UInt64(info.st_size)
                    let page = UInt64(SavedStateFile.pageSize)
                    guard header.descriptionCount <= UInt64(SavedStateFile.largestDescription), header.memoryOffset % page == 0,
                        header.memoryOffset >= page + header.descriptionCount, header.memoryOffset <= size, header.memoryCount <= size - header.memoryOffset
                    else { throw SavedStateError(.damaged, "it is not complete: \(size) bytes are not all of it") }
                    description = try Self.read(fd, at: Int(page), Int(header.descriptionCount))
                    guard Checksum.of(description) == header.descriptionChecksum else { throw SavedStateError(.damaged, "its description is damaged") }
                    (memoryOffset, memoryCount) = (header.memoryOffset, header.memoryCount)
                    memorySums = try Self.readSums(fd, header)
                } catch { throw SavedStateError(error.kind, "\(path) cannot be used: \(error.description)") }
            } catch {
                close(fd)
                throw error
            }
            fileDescriptor = fd
        }
        deinit { close(fileDescriptor) }

        private static func readSums(_ fd: Int32, _ header: Header) throws(SavedStateError) -> [UInt32] {
            guard header.sumsOffset != 0 else { return [] }
            guard header.sumsOffset == header.memoryOffset + header.memoryCount else { throw SavedStateError(.damaged, "its header is damaged") }
            let bytes = try read(fd, at: Int(header.sumsOffset), 4 * MemorySum.count(memory: Int(header.memoryCount)))
            guard Checksum.of(bytes) == header.sumsChecksum else { throw SavedStateError(.damaged, "its checksums are damaged") }
            return stride(from: 0, to: bytes.count, by: 4).map { at in
                (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << (8 * $1) }
            }
        }
        private static func read(_ fd: Int32, at offset: Int, _ count: Int) throws(SavedStateError) -> [UInt8] {
            guard let bytes = FileTransfer.read(fd, at: offset, count) else { throw SavedStateError(.damaged, "it is not complete") }
            return bytes
        }
    }
}
