import CLinux
import Glibc
import LinuxSystem
import Synchronization

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
        /// A part of the region.
        package func part(_ index: Int, size: UInt64) -> Region { Region(base: base + UInt64(index) * size, size: size, host: host + index * Int(size)) }
    }
    /// RAM, and behind it the window.
    package let regions: [Region]
    package var ramRegions: ArraySlice<Region> { window == nil ? regions[...] : regions.dropLast() }
    /// Addresses that are no RAM, but memory of this process: files are mapped there (see `DirectWindow`).
    package let window: Region?
    /// Bytes of RAM.
    package let size: UInt64
    let mapping: UnsafeMutableRawPointer
    let fileDescriptor: Int32
    /// What the mapping shows.
    let backing: Mutex<Backing>
    /// Told of every write that a device makes (address, count): engines that cache decoded code need to know.
    /// Set once, before the first device runs.
    nonisolated(unsafe) package var deviceWriteObserver: (@Sendable (UInt64, Int) -> Void)?

    /// - Parameters:
    ///   - layout: guest-physical ranges, page aligned, in ascending order.
    ///   - window: guest-physical range, page aligned, apart from the RAM.
    ///   - contents: a file that holds what the memory begins with, one range behind the other, from an offset of whole pages on.
    ///     It is mapped, not read, and must not change as long as the memory lives. The descriptor is duplicated.
    package init(
        layout: [(base: UInt64, size: UInt64)], window: (base: UInt64, size: UInt64)? = nil, contents: (fileDescriptor: Int32, offset: UInt64)? = nil
    ) throws(SystemError) {
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
            backing = Mutex(Backing(file: (copy, contents.offset)))
        } else {
            backing = Mutex(Backing())
        }
        do throws(SystemError) { self.window = try window.map { range throws(SystemError) in try Self.makeWindow(range.base, range.size) } } catch {
            munmap(map, Int(total))
            close(fd)
            backing.withLock { if let file = $0.file { close(file.descriptor) } }
            throw error
        }
        madvise(map, Int(total), MADV_DONTFORK)
        madvise(map, Int(total), MADV_DONTDUMP)
        mapping = map
        fileDescriptor = fd
        size = total
        var offset = 0
        let ram = layout.map { item in
            defer { offset += Int(item.size) }
            return Region(base: item.base, size: item.size, host: map + offset)
        }
        regions = ram + [self.window].compactMap { $0 }
    }
    /// Memory that costs nothing before somebody writes it.
    private static func makeWindow(_ base: UInt64, _ size: UInt64) throws(SystemError) -> Region {
        let map = mmap(nil, Int(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let map, map != MAP_FAILED else { throw SystemError("reserve \(size >> 20) MiB of addresses for files") }
        madvise(map, Int(size), MADV_DONTFORK)
        madvise(map, Int(size), MADV_DONTDUMP)
        return Region(base: base, size: size, host: map)
    }
    deinit {
        if let window { munmap(window.host, Int(window.size)) }
        munmap(mapping, Int(size))
        close(fileDescriptor)
        backing.withLock { if let file = $0.file { close(file.descriptor) } }
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
        if let window, first &- window.base < window.size { return }
        let length = Int((last & ~4095) - first)
        let start = pointer - mapping
        backing.withLock { empty(start..<start + length, &$0) }
        noteWrite(first, length)
    }
}
