import CLinux
import Glibc
import LinuxSystem

/// A guest-physical address.
package struct GuestAddress: Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
    package var rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    package var description: String { "0x" + String(rawValue, radix: 16) }
}

/// The guest named memory it does not have.
package struct GuestFault: Error, Equatable, Sendable {
    package let address: GuestAddress
    package let count: Int
    package init(address: GuestAddress, count: Int) {
        self.address = address
        self.count = count
    }
}

/// All RAM of one machine: one memfd, mapped once, seen by the guest in one or two regions. Any thread.
///
/// The guest writes while we read. So bytes are copied out before they are checked, and no Swift span ever covers them.
package final class GuestMemory: @unchecked Sendable {  // the mapping is fixed; its bytes are shared with the guest by nature
    package struct Region: @unchecked Sendable {  // a fixed address; what it points to is shared with the guest
        package let base: UInt64
        package let size: UInt64
        /// Host address of the region's first byte.
        package let host: UnsafeMutableRawPointer
    }
    package let regions: [Region]
    package let size: UInt64
    private let mapping: UnsafeMutableRawPointer
    private let fileDescriptor: Int32
    /// Contents that the memory began with: a file, mapped copy-on-write over the memory file; -1 for none.
    private let origin: (fileDescriptor: Int32, offset: UInt64)
    /// Told of every write that a device makes (address, count): engines that cache decoded code need to know.
    /// Set once, before the first device runs.
    nonisolated(unsafe) package var deviceWriteObserver: (@Sendable (UInt64, Int) -> Void)?

    /// - Parameters:
    ///   - layout: guest-physical ranges, page aligned, in ascending order.
    ///   - contents: a file that holds what the memory begins with, one range behind the other, from an offset of whole pages on.
    ///     It is mapped, not read, and must not change as long as the memory lives. The descriptor is duplicated.
    package init(layout: [(base: UInt64, size: UInt64)], contents: (fileDescriptor: Int32, offset: UInt64)? = nil) throws(SystemError) {
        let total = layout.reduce(0) { $0 + $1.size }
        let fd = Int32(try SystemError.check("memfd_create for guest memory") { Int(clinux_memfd_create("vz-guest-memory")) })
        guard ftruncate(fd, Int(total)) == 0 else {
            let error = SystemError("reserve \(total >> 20) MiB of guest memory")
            close(fd)
            throw error
        }
        let map = mmap(nil, Int(total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        guard let map, map != MAP_FAILED else {
            let error = SystemError("map \(total >> 20) MiB of guest memory")
            close(fd)
            throw error
        }
        if let contents {
            let copy = fcntl(contents.fileDescriptor, F_DUPFD_CLOEXEC, 3)
            let placed = mmap(map, Int(total), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, contents.fileDescriptor, off_t(contents.offset))
            guard copy >= 0, placed != MAP_FAILED else {
                let error = SystemError("map the saved memory")
                munmap(map, Int(total))
                close(fd)
                if copy >= 0 { close(copy) }
                throw error
            }
            origin = (copy, contents.offset)
        } else {
            origin = (-1, 0)
        }
        madvise(map, Int(total), MADV_DONTFORK)
        madvise(map, Int(total), MADV_DONTDUMP)
        mapping = map
        fileDescriptor = fd
        size = total
        var offset = 0
        regions = layout.map { item in
            defer { offset += Int(item.size) }
            return Region(base: item.base, size: item.size, host: map + offset)
        }
    }
    deinit {
        munmap(mapping, Int(size))
        close(fileDescriptor)
        if origin.fileDescriptor >= 0 { close(origin.fileDescriptor) }
    }

    /// The host address of `count` bytes, all in one region.
    @inline(__always)
    package func pointer(_ address: UInt64, _ count: Int) -> UnsafeMutableRawPointer? {
        guard count >= 0 else { return nil }
        for region in regions {
            let offset = address &- region.base
            if offset < region.size, UInt64(count) <= region.size - offset { return region.host + Int(offset) }
        }
        return nil
    }
    package func checked(_ address: UInt64, _ count: Int) throws(GuestFault) -> UnsafeMutableRawPointer {
        guard let pointer = pointer(address, count) else { throw GuestFault(address: GuestAddress(address), count: count) }
        return pointer
    }

    package func load<T: FixedWidthInteger>(_ address: UInt64, as: T.Type = T.self) throws(GuestFault) -> T {
        T(littleEndian: try checked(address, MemoryLayout<T>.size).loadUnaligned(as: T.self))
    }
    package func store<T: FixedWidthInteger>(_ value: T, at address: UInt64) throws(GuestFault) {
        try checked(address, MemoryLayout<T>.size).storeBytes(of: value.littleEndian, as: T.self)
        noteWrite(address, MemoryLayout<T>.size)
    }
    package func write(_ bytes: UnsafeRawBufferPointer, at address: UInt64) throws(GuestFault) {
        let target = try checked(address, bytes.count)
        if let source = bytes.baseAddress { target.copyMemory(from: source, byteCount: bytes.count) }
        noteWrite(address, bytes.count)
    }
    package func write(_ bytes: [UInt8], at address: UInt64) throws(GuestFault) {
        let result: Result<Void, GuestFault> = bytes.withUnsafeBytes { raw in
            do throws(GuestFault) {
                try write(raw, at: address)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        try result.get()
    }
    package func read(_ address: UInt64, _ count: Int) throws(GuestFault) -> [UInt8] {
        Array(UnsafeRawBufferPointer(start: try checked(address, count), count: count))
    }
    /// To be called after writing through `pointer`.
    @inline(__always) package func noteWrite(_ address: UInt64, _ count: Int) { deviceWriteObserver?(address, count) }

    /// Gives the whole pages of a range back to the host; they read as zero afterwards. What is no RAM is left alone.
    package func discard(_ address: UInt64, _ count: Int) {
        let first = (address &+ 4095) & ~4095
        let (last, overflow) = address.addingReportingOverflow(UInt64(max(count, 0)))
        guard !overflow, first >= address, last & ~4095 > first, let pointer = pointer(first, Int((last & ~4095) - first)) else { return }
        let length = Int((last & ~4095) - first)
        punch(pointer - mapping, length)
        noteWrite(first, length)
    }
    private func punch(_ offset: Int, _ length: Int) {
        if origin.fileDescriptor >= 0 {
            // Back to the memory file, which is empty there. Where the host allows no more mappings, zeroes do as well.
            let placed = mmap(mapping + offset, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fileDescriptor, off_t(offset))
            if placed == MAP_FAILED { memset(mapping + offset, 0, length) }
            madvise(mapping + offset, length, MADV_DONTFORK)
            madvise(mapping + offset, length, MADV_DONTDUMP)
        }
        _ = clinux_fallocate(fileDescriptor, 3, Int64(offset), Int64(length))  // PUNCH_HOLE, KEEP_SIZE
    }

    // MARK: contents

    /// The memory's bytes, one region behind the other. Its guest may be writing them.
    package var contents: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: mapping, count: Int(size)) }
    /// Offsets in `contents` of what may be other than zero, in ascending order.
    package var usedRanges: [Range<Int>] {
        var ranges = Self.dataRanges(fileDescriptor, from: 0, count: Int(size))
        if origin.fileDescriptor >= 0 { ranges += Self.dataRanges(origin.fileDescriptor, from: Int(origin.offset), count: Int(size)) }
        // What was written over the contents lies in pages of their own: the contents' holes, too, may have become something.
        if origin.fileDescriptor >= 0 { ranges += residentRanges }
        return Self.merged(ranges)
    }
    private static func dataRanges(_ descriptor: Int32, from start: Int, count: Int) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        var at = start
        let end = start + count
        while at < end {
            let data = lseek(descriptor, off_t(at), 3)  // SEEK_DATA
            if data < 0 { return Glibc.errno == ENXIO ? ranges : [0..<count] }
            guard data < end else { return ranges }
            let hole = lseek(descriptor, data, 4)  // SEEK_HOLE
            let stop = hole < 0 ? end : min(Int(hole), end)
            ranges.append(Int(data) - start..<stop - start)
            at = stop
        }
        return ranges
    }
    /// Pages that the host has somewhere, in memory or swapped out (proc(5), pagemap).
    private var residentRanges: [Range<Int>] {
        let pages = Int(size) / 4096
        let fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return [0..<Int(size)] }
        defer { close(fd) }
        var ranges: [Range<Int>] = []
        var entries = [UInt64](repeating: 0, count: 8192)
        var first = -1
        var page = 0
        while page < pages {
            let wanted = min(entries.count, pages - page)
            guard pread(fd, &entries, wanted * 8, off_t((Int(bitPattern: mapping) / 4096 + page) * 8)) == wanted * 8 else { return [0..<Int(size)] }
            for index in 0..<wanted {
                let isThere = entries[index] >> 62 != 0
                if isThere, first < 0 { first = page + index }
                if !isThere, first >= 0 {
                    ranges.append(first * 4096..<(page + index) * 4096)
                    first = -1
                }
            }
            page += wanted
        }
        if first >= 0 { ranges.append(first * 4096..<pages * 4096) }
        return ranges
    }
    private static func merged(_ ranges: [Range<Int>]) -> [Range<Int>] {
        var result: [Range<Int>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = result.last, range.lowerBound <= last.upperBound {
                result[result.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                result.append(range)
            }
        }
        return result
    }
    /// Gives all pages back to the host; they read as zero afterwards.
    package func clear() { punch(0, Int(size)) }
}
