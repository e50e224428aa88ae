import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// What the mapping of a guest's memory shows. To begin with that is the memory file, shared. It is something else after a restore
/// (the saved state's file, copy-on-write) and after a freeze (the memory file itself, copy-on-write, so that the file stays as it
/// was); `GuestMemory.settle` brings everything back into the memory file.
struct Backing {
    enum Kind: Equatable { case own, file, frozen }
    private(set) var kind = Kind.own
    /// The saved state that is mapped, and where its memory begins.
    private(set) var file: (descriptor: Int32, offset: UInt64)?
    /// Everything before this offset is mapped from the memory file again.
    fileprivate(set) var settled = 0
    /// Ranges that were given back since the freeze: the memory file still has what was there.
    fileprivate(set) var emptied: [Range<Int>] = []

    init(file: (descriptor: Int32, offset: UInt64)? = nil) {
        self.file = file
        kind = file == nil ? .own : .file
    }
    fileprivate mutating func freeze() {
        kind = .frozen
        (settled, emptied) = (0, [])
    }
    fileprivate mutating func becomeOwn() {
        if let file { close(file.descriptor) }
        self = Backing()
    }
}

/// A guest's memory as it was at one instant, while the guest goes on in pages of its own.
package final class FrozenMemory: @unchecked Sendable {  // nobody writes the memory file while it is frozen; the mapping is fixed
    package let contents: UnsafeRawBufferPointer
    /// Offsets in `contents` of what may be other than zero, in ascending order.
    package let usedRanges: [Range<Int>]
    /// Keeps the memory file, and keeps it from being settled.
    private let memory: GuestMemory

    fileprivate init(_ memory: GuestMemory) throws(SystemError) {
        self.memory = memory
        let map = mmap(nil, Int(memory.size), PROT_READ, MAP_SHARED | MAP_NORESERVE, memory.fileDescriptor, 0)
        guard let map, map != MAP_FAILED else { throw SystemError("map the frozen memory") }
        contents = UnsafeRawBufferPointer(start: map, count: Int(memory.size))
        usedRanges = PageRanges.data(memory.fileDescriptor, from: 0, count: Int(memory.size))
    }
    deinit { munmap(UnsafeMutableRawPointer(mutating: contents.baseAddress), contents.count) }
}

extension GuestMemory {
    /// Pieces in which the memory is settled: what is copied while the machine waits.
    private static let piece = 16 << 20

    /// Whether `settle` has something to do; before that is done, the memory cannot be frozen.
    package var isSettled: Bool { backing.withLock { $0.kind == .own } }

    /// Lets the guest go on in copies of its pages, made as it writes to them. Neither the guest nor a device may run meanwhile; takes
    /// milliseconds. The memory must be settled.
    package func freeze() throws(SystemError) -> FrozenMemory {
        let frozen = try FrozenMemory(self)
        let result: Result<Void, SystemError> = backing.withLock { backing in
            guard map(0..<Int(size), MAP_PRIVATE, fileDescriptor, 0) else { return .failure(SystemError("map the memory anew")) }
            backing.freeze()
            return .success(())
        }
        try result.get()
        return frozen
    }
    /// Brings the next piece of what the mapping shows into the memory file, and maps that again; true when there is nothing left to
    /// do. Neither the guest nor a device may run meanwhile, and no `FrozenMemory` may be in use.
    package func settle() throws(SystemError) -> Bool {
        let result: Result<Bool, SystemError> = backing.withLock { backing in
            guard backing.kind != .own else { return .success(true) }
            var moved = 0
            while moved < Self.piece, backing.settled < Int(size) {
                let range = backing.settled..<min(backing.settled + Self.piece, Int(size))
                guard let copied = settle(range, backing) else { return .failure(SystemError("write the guest's memory")) }
                backing.settled = range.upperBound
                moved += copied
            }
            if backing.settled == Int(size) { backing.becomeOwn() }
            return .success(backing.kind == .own)
        }
        return try result.get()
    }
    /// Returns how many bytes had to be copied; nil with errno set when that failed, and nothing has changed then.
    private func settle(_ range: Range<Int>, _ backing: Backing) -> Int? {
        var own = PageRanges.private(mapping, range)
        if let file = backing.file {
            // What was given back is mapped from the memory file already.
            own = PageRanges.merged(own + PageRanges.data(file.descriptor, from: Int(file.offset), count: Int(size)).map { $0.clamped(to: range) })
            own = PageRanges.subtracting(backing.emptied, from: own)
        } else {
            for part in backing.emptied.map({ $0.clamped(to: range) }) where !part.isEmpty {
                guard clinux_fallocate(fileDescriptor, 3, Int64(part.lowerBound), Int64(part.count)) == 0 else { return nil }
            }
        }
        var copied = 0
        for part in own where !part.isEmpty {
            let result = FileTransfer.write(fileDescriptor, UnsafeRawBufferPointer(start: mapping + part.lowerBound, count: part.count), at: part.lowerBound)
            guard result == 0 else {
                errno = result
                return nil
            }
            copied += part.count
        }
        return map(range, MAP_SHARED, fileDescriptor, range.lowerBound) ? copied : nil
    }
    private func map(_ range: Range<Int>, _ kind: Int32, _ descriptor: Int32, _ offset: Int) -> Bool {
        let placed = mmap(mapping + range.lowerBound, range.count, PROT_READ | PROT_WRITE, kind | MAP_FIXED | MAP_NORESERVE, descriptor, off_t(offset))
        guard placed != MAP_FAILED else { return false }
        madvise(mapping + range.lowerBound, range.count, MADV_DONTFORK)
        madvise(mapping + range.lowerBound, range.count, MADV_DONTDUMP)
        return true
    }

    /// Gives a range's pages back to the host.
    func empty(_ range: Range<Int>, _ backing: inout Backing) {
        let other = backing.kind == .own ? range.upperBound..<range.upperBound : max(range.lowerBound, min(backing.settled, range.upperBound))..<range.upperBound
        let own = range.lowerBound..<other.lowerBound
        if !own.isEmpty { punch(own) }
        guard !other.isEmpty else { return }
        // The memory file is empty where a saved state is mapped, and must stay as it is where it is frozen.
        let isMapped = backing.kind == .file ? map(other, MAP_SHARED, fileDescriptor, other.lowerBound) : map(other, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        // Where the host allows no more mappings, zeroes do as well.
        guard isMapped else { return _ = memset(mapping + other.lowerBound, 0, other.count) }
        if backing.kind == .file { punch(other) }
        backing.emptied.append(other)
        if backing.emptied.count > 4096 { backing.emptied = PageRanges.merged(backing.emptied) }
    }
    /// Bytes of the host's memory that the guest's takes; nil while it is mapped from elsewhere.
    package var heldBytes: UInt64? {
        backing.withLock { backing in
            var info = stat()
            guard backing.kind == .own, fstat(fileDescriptor, &info) == 0 else { return nil }
            return UInt64(clamping: info.st_blocks) * 512
        }
    }
    private func punch(_ range: Range<Int>) { _ = clinux_fallocate(fileDescriptor, 3, Int64(range.lowerBound), Int64(range.count)) }  // PUNCH_HOLE, KEEP_SIZE

    // MARK: contents

    /// The memory's bytes, one region behind the other. Its guest may be writing them.
    package var contents: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: mapping, count: Int(size)) }
    /// Offsets in `contents` of what may be other than zero, in ascending order.
    package var usedRanges: [Range<Int>] {
        backing.withLock { backing in
            var ranges = PageRanges.data(fileDescriptor, from: 0, count: Int(size))
            if let file = backing.file { ranges += PageRanges.data(file.descriptor, from: Int(file.offset), count: Int(size)) }
            // What was written since lies in pages of its own: holes, too, may have become something.
            if backing.kind != .own { ranges += PageRanges.private(mapping, 0..<Int(size)) }
            return PageRanges.merged(ranges)
        }
    }
}
