import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// One overlay file over its base, which is never written: what is written goes into the file, everything else is read from the base. Any
/// thread.
///
/// Data goes to its place at once; the table that says where it is reaches the file when the guest flushes, after the data. So what
/// a guest has flushed is there after a crash, and what it has not is as it was before: never something else.
final class OverlayLayer: BlockBackend {
    static let cluster = OverlayHeader.clusterSize
    /// Overlays over overlays over …
    private static let deepest = 128

    let byteCount: UInt64
    let isReadOnly: Bool
    let path: String
    let header: OverlayHeader
    let base: any BlockBackend
    let file: Int32
    let table: OverlayTable
    private let synchronization: RawDisk.Synchronization
    private let writeBehind = WriteBehind()
    /// How many overlays are below.
    private let depth: Int
    private struct State {
        /// The next cluster of the file that is free.
        var next: UInt32
        /// Entries that the file does not have yet.
        var changed: Set<Int> = []
    }
    private let state: Mutex<State>
    /// One flush at a time.
    private let flushing = Mutex(())

    // MARK: making and opening

    /// Makes an overlay of `base`, empty to begin with. The file must not exist.
    /// - Parameter size: of the disk, in bytes; nil for the base's. A larger disk has zeroes behind the base's end.
    static func create(path: String, base: String, baseIsOverlay: Bool, size: UInt64? = nil) throws(DiskError) {
        let resolved = withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(PATH_MAX)) { realpath(base, $0.baseAddress).map { String(cString: $0) } }
        guard let resolved else { throw DiskError(.system, "cannot find the base \(base): \(String(cString: strerror(errno)).lowercased())", errno: errno) }
        let lower = try openBase(resolved, isOverlay: baseIsOverlay, depth: 1)
        var info = stat()
        guard stat(resolved, &info) == 0 else { throw DiskError(.system, "cannot examine the base \(base)", errno: errno) }
        let header = OverlayHeader(
            diskSize: size ?? lower.byteCount, baseSize: lower.byteCount, baseModified: OverlayHeader.modified(info), baseIsOverlay: baseIsOverlay, basePath: resolved)
        guard header.diskSize >= lower.byteCount, header.diskSize % 512 == 0, header.diskSize <= OverlayHeader.largestDisk else {
            throw DiskError(.notADisk, "a disk of \(header.diskSize) bytes is smaller than its base \(base), larger than 16 TiB, or no multiple of 512")
        }
        guard let bytes = header.bytes else { throw DiskError(.notADisk, "the path of the base \(base) is too long") }
        let fd = clinux_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw DiskError(.system, "cannot make the overlay \(path): \(String(cString: strerror(errno)).lowercased())", errno: errno) }
        defer { close(fd) }
        guard pwrite(fd, bytes, bytes.count, 0) == bytes.count, ftruncate(fd, off_t(header.dataOffset)) == 0, fsync(fd) == 0 else {
            let code = errno
            unlink(path)
            throw DiskError(.system, "cannot write the overlay \(path): \(String(cString: strerror(code)).lowercased())", errno: code)
        }
    }
    private static func openBase(_ path: String, isOverlay: Bool, depth: Int) throws(DiskError) -> any BlockBackend {
        guard depth < deepest else { throw DiskError(.notADisk, "the overlay's bases are more than \(deepest) deep, or a circle") }
        return isOverlay ? try OverlayLayer(path: path, readOnly: true, depth: depth) : try RawDisk(path: path, readOnly: true)
    }
    convenience init(path: String, readOnly: Bool, synchronization: RawDisk.Synchronization = .full) throws(DiskError) {
        try self.init(path: path, readOnly: readOnly, synchronization: synchronization, depth: 0)
    }
    private init(path: String, readOnly: Bool, synchronization: RawDisk.Synchronization = .full, depth: Int) throws(DiskError) {
        let fd = Glibc.open(path, (readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC)
        guard fd >= 0 else { throw DiskError(.system, "cannot open the overlay \(path): \(String(cString: strerror(errno)).lowercased())", errno: errno) }
        do throws(DiskError) {
            let header = try OverlayHeader(try Self.bytes(fd, 0, OverlayHeader.size, path), path)
            base = try Self.openBase(header.basePath, isOverlay: header.baseIsOverlay, depth: depth + 1)
            try Self.check(header, base, path)
            self.depth = (base as? OverlayLayer).map { $0.depth + 1 } ?? 0
            let entries = try Self.entries(fd, header, path)
            self.header = header
            table = OverlayTable(entries)
            let next = entries.reduce(0) { $1 == OverlayTable.zeroes ? $0 : max($0, $1) } + 1
            // What a crash left behind the last cluster that the table knows.
            if !readOnly { _ = ftruncate(fd, off_t(header.dataOffset + (Int(next) - 1) * Self.cluster)) }
            state = Mutex(State(next: next))
        } catch {
            close(fd)
            throw error
        }
        file = fd
        self.path = path
        isReadOnly = readOnly
        self.synchronization = synchronization
        byteCount = header.diskSize
    }
    /// A new, empty layer over `lower`, in a file with a name for the time being. What it says of its base's time of modification is
    /// not right before `adopt`.
    /// - Parameter basePath: the name that the lower layer's file will have.
    init(over lower: OverlayLayer, basePath: String, temporary: String) throws(DiskError) {
        guard lower.depth + 1 < Self.deepest else { throw DiskError(.notADisk, "there are \(Self.deepest) overlays below \(lower.path) already; merge some of them") }
        let header = OverlayHeader(diskSize: lower.byteCount, baseSize: lower.byteCount, baseModified: 0, baseIsOverlay: true, basePath: basePath)
        guard let bytes = header.bytes else { throw DiskError(.notADisk, "the path \(basePath) is too long") }
        let fd = clinux_open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw DiskError(.system, "cannot make the overlay \(temporary): \(String(cString: strerror(errno)).lowercased())", errno: errno) }
        // What it needs on the disk it gets now: later there must be no reason to fail.
        let size = off_t(header.dataOffset)
        guard pwrite(fd, bytes, bytes.count, 0) == bytes.count, clinux_fallocate(fd, 0, 0, Int64(size)) == 0 || ftruncate(fd, size) == 0, fsync(fd) == 0,
            clinux_lock(fd, Int32(F_WRLCK)) == 0
        else {
            let code = errno
            close(fd)
            unlink(temporary)
            throw DiskError(.system, "cannot write the overlay \(temporary): \(String(cString: strerror(code)).lowercased())", errno: code)
        }
        self.header = header
        base = lower
        depth = lower.depth + 1
        table = OverlayTable([UInt32](repeating: OverlayTable.inBase, count: header.clusterCount))
        state = Mutex(State(next: 1))
        file = fd
        path = lower.path
        isReadOnly = false
        synchronization = lower.synchronization
        byteCount = header.diskSize
    }
    /// Everything that the base has is permanent, and nothing of it will change any more: from here on this layer fits it. Returns 0 or
    /// an errno.
    func adopt() -> Int32 {
        guard let lower = base as? OverlayLayer else { return EINVAL }
        let stored = lower.flushing.withLock { _ in lower.store() }
        if stored != 0 { return stored }
        var info = stat()
        guard fsync(lower.file) == 0, fstat(lower.file, &info) == 0 else { return errno }
        var header = header
        header.baseModified = OverlayHeader.modified(info)
        guard let bytes = header.bytes else { return EINVAL }
        errno = EIO
        guard pwrite(file, bytes, bytes.count, 0) == bytes.count, fsync(file) == 0 else { return errno }
        _ = clinux_lock(lower.file, Int32(F_RDLCK))
        return 0
    }
    deinit { close(file) }

    private static func check(_ header: OverlayHeader, _ base: any BlockBackend, _ path: String) throws(DiskError) {
        var info = stat()
        guard stat(header.basePath, &info) == 0, base.byteCount == header.baseSize, OverlayHeader.modified(info) == header.baseModified else {
            throw DiskError(.notADisk, "the base \(header.basePath) of the overlay \(path) has changed since the overlay was made; what both hold no longer fits")
        }
    }
    private static func bytes(_ fd: Int32, _ offset: Int, _ count: Int, _ path: String) throws(DiskError) -> [UInt8] {
        guard let bytes = FileTransfer.read(fd, at: offset, count) else { throw DiskError(.notADisk, "the overlay \(path) is not complete") }
        return bytes
    }
    /// The table, checked: each cluster is in the file and belongs to one entry.
    private static func entries(_ fd: Int32, _ header: OverlayHeader, _ path: String) throws(DiskError) -> [UInt32] {
        var info = stat()
        guard fstat(fd, &info) == 0, Int(info.st_size) >= header.dataOffset else { throw DiskError(.notADisk, "the overlay \(path) is not complete") }
        let raw = try bytes(fd, OverlayHeader.size, header.tableSize, path)
        let entries = raw.withUnsafeBytes { raw in (0..<header.clusterCount).map { UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self)) } }
        let available = (Int(info.st_size) - header.dataOffset + cluster - 1) / cluster
        var taken = [Bool](repeating: false, count: available + 1)
        for entry in entries where entry != OverlayTable.inBase && entry != OverlayTable.zeroes {
            guard Int(entry) <= available, !taken[Int(entry)] else { throw DiskError(.notADisk, "the table of the overlay \(path) is damaged") }
            taken[Int(entry)] = true
        }
        return entries
    }

    /// Claims the overlay for a running machine, and its bases for reading.
    func lock() throws(DiskError) {
        if clinux_lock(file, isReadOnly ? Int32(F_RDLCK) : Int32(F_WRLCK)) != 0, errno == EAGAIN || errno == EACCES {
            throw DiskError(.inUse, "the overlay \(path) is in use by another virtual machine", errno: errno)
        }
        do throws(DiskError) {
            if let raw = base as? RawDisk { try raw.lock(path: header.basePath) }
            if let overlay = base as? OverlayLayer { try overlay.lock() }
        } catch {
            _ = clinux_lock(file, Int32(F_UNLCK))
            throw error
        }
    }
    func unlock() {
        _ = clinux_lock(file, Int32(F_UNLCK))
        (base as? RawDisk)?.unlock()
        (base as? OverlayLayer)?.unlock()
    }
    /// Clusters of the disk, and how many of them the overlay has itself.
    var usage: (clusters: Int, own: Int) { (table.count, (0..<table.count).count { table[$0] != OverlayTable.inBase }) }
    var basePath: String { header.basePath }

    // MARK: reading

    private func place(_ entry: UInt32) -> Int { header.dataOffset + (Int(entry) - 1) * Self.cluster }

    func read(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 {
        var pieces = VectorCursor(vectors, count)
        var at = offset
        while pieces.left > 0 {
            let (entry, length) = run(at, pieces.left)
            let result = pieces.take(length) { part, number in
                switch entry {
                case OverlayTable.zeroes: return Self.clear(part, number)
                case OverlayTable.inBase: return readBase(at, part, number, length)
                default: return FileTransfer.move(file, at: UInt64(place(entry) + Int(at % UInt64(Self.cluster))), part, number) { preadv($0, $1, $2, $3) }
                }
            }
            if result != 0 { return result }
            at += UInt64(length)
        }
        return 0
    }
    /// Only of what lies in one piece.
    func readPromptly(at offset: UInt64, _ vectors: UnsafePointer<iovec>, _ count: Int, _ total: Int) -> FileTransfer.PromptRead {
        let (entry, length) = run(offset, total)
        guard length == total else { return .unknown }
        switch entry {
        case OverlayTable.zeroes: return .unknown
        case OverlayTable.inBase: return offset + UInt64(length) <= base.byteCount ? base.readPromptly(at: offset, vectors, count, total) : .unknown
        default: return FileTransfer.readPromptly(file, at: UInt64(place(entry)) + offset % UInt64(Self.cluster), vectors, count, total: total)
        }
    }
    func waits(_ kind: DiskOperation.Kind) -> Bool {
        switch kind {
        case .read, .write: false
        case .flush: synchronization == .full && !isReadOnly
        case .discard, .writeZeroes: true
        }
    }
    /// How far it goes on from `offset` in one piece of one source.
    private func run(_ offset: UInt64, _ limit: Int) -> (entry: UInt32, length: Int) {
        var index = Int(offset / UInt64(Self.cluster))
        let first = table[index]
        var length = min(limit, Self.cluster - Int(offset % UInt64(Self.cluster)))
        var expected = first
        while length < limit {
            index += 1
            if first != OverlayTable.inBase, first != OverlayTable.zeroes { expected &+= 1 }
            guard index < table.count, table[index] == expected else { break }
            length = min(limit, length + Self.cluster)
        }
        return (first, length)
    }
    /// The base may end before the disk does.
    private func readBase(_ offset: UInt64, _ part: UnsafeMutablePointer<iovec>, _ number: Int, _ length: Int) -> Int32 {
        if offset + UInt64(length) <= base.byteCount { return base.read(at: offset, part, number) }
        if offset >= base.byteCount { return Self.clear(part, number) }
        var pieces = VectorCursor(part, number)
        let result = pieces.take(Int(base.byteCount - offset)) { base.read(at: offset, $0, $1) }
        return result != 0 ? result : pieces.take(pieces.left) { Self.clear($0, $1) }
    }
    private static func clear(_ part: UnsafeMutablePointer<iovec>, _ number: Int) -> Int32 {
        for index in 0..<number { memset(part[index].iov_base, 0, part[index].iov_len) }
        return 0
    }

    // MARK: writing

    func write(at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int) -> Int32 {
        guard !isReadOnly else { return EROFS }
        var pieces = VectorCursor(vectors, count)
        var at = offset
        while pieces.left > 0 {
            let (entry, length) = run(at, pieces.left)
            let isOwn = entry != OverlayTable.inBase && entry != OverlayTable.zeroes
            let step = isOwn ? length : min(length, Self.cluster - Int(at % UInt64(Self.cluster)))
            let result = pieces.take(step) { part, number in
                if isOwn { return FileTransfer.move(file, at: UInt64(place(entry) + Int(at % UInt64(Self.cluster))), part, number) { pwritev($0, $1, $2, $3) } }
                return writeNew(at, part, number, step)
            }
            if result != 0 { return result }
            // Where a first write put it is known only now; another request may have discarded it since.
            let written = isOwn ? entry : table[Int(at / UInt64(Self.cluster))]
            if synchronization == .full, written != OverlayTable.inBase, written != OverlayTable.zeroes {
                writeBehind.wrote(file, at: UInt64(place(written)) + at % UInt64(Self.cluster), step)
            }
            at += UInt64(step)
        }
        return 0
    }
    /// The first write to a cluster: its other bytes come along.
    private func writeNew(_ offset: UInt64, _ part: UnsafeMutablePointer<iovec>, _ number: Int, _ length: Int) -> Int32 {
        let index = Int(offset / UInt64(Self.cluster))
        let within = Int(offset % UInt64(Self.cluster))
        return state.withLock { state in
            // Another request may have been first.
            let entry = table[index]
            if entry != OverlayTable.inBase, entry != OverlayTable.zeroes {
                return FileTransfer.move(file, at: UInt64(place(entry) + within), part, number) { pwritev($0, $1, $2, $3) }
            }
            guard state.next < OverlayTable.zeroes - 1 else { return ENOSPC }
            let new = state.next
            let size = min(Self.cluster, Int(byteCount - UInt64(index) * UInt64(Self.cluster)))
            var result: Int32 = 0
            if entry == OverlayTable.inBase, length < size { result = copyBase(index, size, to: place(new)) }
            if result == 0 { result = FileTransfer.move(file, at: UInt64(place(new) + within), part, number) { pwritev($0, $1, $2, $3) } }
            // The file's end is a cluster's, so that the table can be checked against it.
            if result == 0, ftruncate(file, off_t(place(new) + Self.cluster)) != 0 { result = errno }
            guard result == 0 else {
                // Nothing of a failed attempt may shine through the next one.
                _ = ftruncate(file, off_t(place(new)))
                return result
            }
            state.next += 1
            state.changed.insert(index)
            table[index] = new
            return 0
        }
    }
    /// The file is empty there: zeroes need not be written.
    private func copyBase(_ index: Int, _ size: Int, to place: Int) -> Int32 {
        withUnsafeTemporaryAllocation(byteCount: Self.cluster, alignment: 4096) { buffer in
            guard let memory = buffer.baseAddress else { return ENOMEM }
            var vector = iovec(iov_base: memory, iov_len: size)
            let result = readBase(UInt64(index) * UInt64(Self.cluster), &vector, 1, size)
            if result != 0 { return result }
            if memory.load(as: UInt64.self) == 0, size > 8, memcmp(memory, memory + 8, size - 8) == 0 { return 0 }
            vector = iovec(iov_base: memory, iov_len: size)
            return FileTransfer.move(file, at: UInt64(place), &vector, 1) { pwritev($0, $1, $2, $3) }
        }
    }

    // MARK: flushing

    func flush() -> Int32 {
        guard !isReadOnly, synchronization == .full else { return 0 }
        return flushing.withLock { _ in store() }
    }
    /// What the guest has not flushed is not lost when the machine merely ends.
    func finish() { if !isReadOnly { _ = flushing.withLock { _ in store() } } }

    /// Writes the table as it is now, after the data that it names.
    private func store() -> Int32 {
        func synchronize() -> Bool { synchronization == .none || fdatasync(file) == 0 }
        let changed = state.withLock { state in
            defer { state.changed = [] }
            return state.changed
        }
        guard synchronize() else { return failed(changed) }
        if changed.isEmpty { return 0 }
        for index in changed {
            var entry = table[index].littleEndian
            guard pwrite(file, &entry, 4, off_t(OverlayHeader.size + index * 4)) == 4 else { return failed(changed) }
        }
        return synchronize() ? 0 : failed(changed)
    }
    private func failed(_ changed: Set<Int>) -> Int32 {
        let code = errno
        state.withLock { $0.changed.formUnion(changed) }
        return code
    }

    // MARK: discarding

    func discard(at offset: UInt64, count: UInt64) -> Int32 { zero(offset, count, isAdvice: true) }
    func writeZeroes(at offset: UInt64, count: UInt64, mayUnmap: Bool) -> Int32 { zero(offset, count, isAdvice: false) }

    /// Whole clusters become zeroes that take no room; parts of clusters are written, unless it is advice only.
    private func zero(_ offset: UInt64, _ count: UInt64, isAdvice: Bool) -> Int32 {
        guard !isReadOnly else { return EROFS }
        var at = offset
        let end = offset + count
        while at < end {
            let within = Int(at % UInt64(Self.cluster))
            let step = min(UInt64(Self.cluster - within), end - at)
            let index = Int(at / UInt64(Self.cluster))
            let isWhole = within == 0 && (step == UInt64(Self.cluster) || at + step == byteCount)
            let result = isWhole ? zeroCluster(index) : isAdvice ? discardPart(index, within, Int(step)) : zeroPart(at, Int(step))
            if result != 0 { return result }
            at += step
        }
        return 0
    }
    private func zeroCluster(_ index: Int) -> Int32 {
        state.withLock { state in
            let entry = table[index]
            if entry == OverlayTable.zeroes { return 0 }
            if entry == OverlayTable.inBase {
                table[index] = OverlayTable.zeroes
                state.changed.insert(index)
                return 0
            }
            // The cluster stays this one's, as a hole: nobody else may get it before the table has reached the file.
            return clinux_fallocate(file, 3, Int64(place(entry)), Int64(Self.cluster)) == 0 ? 0 : errno  // PUNCH_HOLE, KEEP_SIZE
        }
    }
    private func discardPart(_ index: Int, _ within: Int, _ count: Int) -> Int32 {
        let entry = table[index]
        guard entry != OverlayTable.inBase, entry != OverlayTable.zeroes else { return 0 }
        _ = clinux_fallocate(file, 3, Int64(place(entry) + within), Int64(count))
        return 0
    }
    private func zeroPart(_ offset: UInt64, _ count: Int) -> Int32 {
        withUnsafeTemporaryAllocation(byteCount: Self.cluster, alignment: 4096) { buffer in
            guard let memory = buffer.baseAddress else { return ENOMEM }
            memset(memory, 0, count)
            var vector = iovec(iov_base: memory, iov_len: count)
            return write(at: offset, &vector, 1)
        }
    }
}
