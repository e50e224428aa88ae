import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// A range of guest-physical addresses that shows files of the host: the guest reads and writes them where the host has them, in
/// its page cache. VIRTIO 1.2 § 5.11.6.4. Any thread.
///
/// What is not mapped is memory like any other, which nobody asks for, and so is what lies beyond the end of a file that has become
/// shorter: inotify tells of that, if this user has a watch left. A guest that comes first raises SIGBUS on the software engine, which
/// `clinux_window_add` deals with; on KVM it waits.
package final class DirectWindow: @unchecked Sendable {  // the address is fixed; what lies there is shared with the guest by nature
    /// Linux maps pieces of this size, and no other may be mapped: so there are few of them, whatever the guest does.
    package static let pieceSize = 2 << 20

    /// A piece of a file, and what the file was like when the guest's processors may have begun to keep code from it.
    struct Piece {
        /// 0 when the file is none of the server's any more.
        fileprivate(set) var node: UInt64
        let key: Node.Key
        let descriptor: Descriptor
        let offset: Int64
        let isWritable: Bool
        var seen: FileStamp
        /// Bytes of the piece, whole pages, that the file has.
        fileprivate var end: Int
        /// There is memory behind `end`.
        fileprivate var isCovered = false
        /// inotify's number for the file.
        fileprivate var watch: Int32 = -1

        init(node: UInt64, descriptor: Descriptor, offset: Int64, isWritable: Bool, status: stat) {
            (self.node, self.descriptor, self.offset, self.isWritable) = (node, descriptor, offset, isWritable)
            (key, seen) = (Node.Key(status), FileStamp(status))
            end = Self.end(status, offset)
        }
        static func end(_ status: stat, _ offset: Int64) -> Int {
            max(0, min(DirectWindow.pieceSize, (Int(clamping: Int64(status.st_size) - offset) &+ 4095) & ~4095))
        }
    }
    /// What changes when a file is written.
    struct FileStamp: Equatable {
        let size: Int
        let seconds: Int
        let nanoseconds: Int
        init(_ status: stat) { (size, seconds, nanoseconds) = (Int(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec) }
    }
    private let host: UnsafeMutableRawPointer
    package let size: Int
    private let pieces: Mutex<[Piece?]>
    /// Whether `isCovered` may be true anywhere. Set before the file is looked at, so that who makes it longer sees one or the other.
    private let covers = Atomic<Bool>(false)
    /// Told of bytes of the window (offset, count) that are others now: the software engine may hold code from them.
    private let changed: @Sendable (Int, Int) -> Void
    private let number: Int32
    private let inotify: Int32
    private let wake: EventFD
    private let stopping = Atomic<Bool>(false)
    private let watcher = Mutex<HostThread?>(nil)

    /// - Parameters:
    ///   - host: where the window is in this process: whole pieces, which stay mapped as long as this object.
    ///   - changed: called with offset and count.
    package init(host: UnsafeMutableRawPointer, size: Int, changed: @escaping @Sendable (Int, Int) -> Void) throws(SystemError) {
        (self.host, self.size, self.changed) = (host, size, changed)
        pieces = Mutex(Array(repeating: nil, count: size / Self.pieceSize))
        wake = try EventFD()
        inotify = inotify_init1(Int32(O_CLOEXEC | O_NONBLOCK))  // -1 where this user has too many: nobody tells then
        number = clinux_window_add(host, UInt(size), wake.fileDescriptor)
        guard number >= 0 else {
            if inotify >= 0 { Glibc.close(inotify) }
            throw SystemError("watch over the memory of files", errno: ENOSPC)
        }
    }
    deinit {
        clinux_window_remove(number)
        if inotify >= 0 { Glibc.close(inotify) }
    }
    /// The last call: nothing is mapped any more, and no thread is left.
    package func close() {
        stopping.store(true, ordering: .releasing)
        wake.signal()
        watcher.withLock { $0 }?.join()
        clear()
    }

    // MARK: mapping

    private func map(_ piece: Piece, at index: Int) -> Bool {
        // Who may only read writes into copies: no write can fail, and none reaches the file.
        let kind = piece.isWritable ? MAP_SHARED : MAP_PRIVATE
        let place = host + index * Self.pieceSize
        return mmap(place, Self.pieceSize, PROT_READ | PROT_WRITE, kind | MAP_FIXED | MAP_NORESERVE, piece.descriptor.fd, off_t(piece.offset)) != MAP_FAILED
    }
    /// Memory instead of a file. Where the host has no more mappings, the file stays where it was.
    @discardableResult private func cover(_ index: Int, from start: Int) -> Bool {
        let place = host + index * Self.pieceSize + start
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
        return mmap(place, Self.pieceSize - start, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED
    }

    /// Shows a piece of a file at one place of the window, whatever was there. False when the host refuses: it has no room for the
    /// mapping, or for what is to be read there.
    func place(_ piece: Piece, at index: Int) -> Bool {
        startWatching()
        let isPlaced = pieces.withLock { pieces -> Bool in
            guard pieces.indices.contains(index) else { return false }
            var piece = piece
            // Truncating a file modifies it, too. Where the host allows no more watches, the file is shown all the same.
            piece.watch = inotify < 0 ? -1 : inotify_add_watch(inotify, piece.descriptor.path, UInt32(IN_MODIFY))
            let old = pieces[index]
            guard map(piece, at: index) else { return false }
            pieces[index] = piece
            if let old { unwatch(old, pieces) }
            return true
        }
        let isReadable = isPlaced && populate(index, piece)
        if isPlaced, !isReadable { remove(at: index) }
        changed(index * Self.pieceSize, Self.pieceSize)
        return isReadable
    }
    /// What the host has in its memory is there at once, instead of page by page. What it would have to read waits for somebody who
    /// wants it. False when a hole cannot even be read: tmpfs wants room for that, and a guest on KVM would wait until there is some.
    private func populate(_ index: Int, _ piece: Piece) -> Bool {
        let place = host + index * Self.pieceSize
        let end = piece.end
        let pages = end / 4096
        let isInMemory = withUnsafeTemporaryAllocation(of: UInt8.self, capacity: Self.pieceSize / 4096) { there in
            mincore(place, end, there.baseAddress) == 0 && there.prefix(pages).count { $0 & 1 != 0 } == pages
        }
        let holesNeedRoom = !piece.isWritable && Self.isOnTmpfs(piece.descriptor)
        guard pages > 0, isInMemory || holesNeedRoom else { return true }
        // MADV_POPULATE_READ; older hosts do not know it. EFAULT: who reads this gets SIGBUS.
        return madvise(place, end, 22) == 0 || errno != EFAULT || !holesNeedRoom
    }
    private static func isOnTmpfs(_ file: Descriptor) -> Bool {
        var system = statfs()
        return fstatfs(file.fd, &system) == 0 && system.f_type == 0x0102_1994
    }
    func remove(at index: Int) {
        let isRemoved = pieces.withLock { pieces -> Bool in
            guard pieces.indices.contains(index), let old = pieces[index] else { return false }
            cover(index, from: 0)
            pieces[index] = nil
            unwatch(old, pieces)
            return true
        }
        if isRemoved { changed(index * Self.pieceSize, Self.pieceSize) }
    }
    /// The guest keeps what it has mapped, but nobody knows any more by which numbers.
    func forgetNodes() { pieces.withLock { pieces in for index in pieces.indices { pieces[index]?.node = 0 } } }
    func clear() { for index in 0..<size / Self.pieceSize { remove(at: index) } }

    private func unwatch(_ old: Piece, _ pieces: [Piece?]) {
        // The file may be mapped in other pieces, too.
        if old.watch >= 0, !pieces.contains(where: { $0?.watch == old.watch }) { inotify_rm_watch(inotify, old.watch) }
    }

    // MARK: files that change

    /// The thread that looks after files' ends runs as soon as there is something to look after.
    private func startWatching() {
        watcher.withLock { thread in
            guard thread == nil, !stopping.load(ordering: .acquiring) else { return }
            thread = try? HostThread(name: "vz-fs-window") { [self] in lookAfterEnds() }
        }
    }
    private func lookAfterEnds() {
        var entries = [pollfd(fd: wake.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: inotify, events: Int16(POLLIN), revents: 0)]
        while !stopping.load(ordering: .acquiring) {
            _ = poll(&entries, 2, -1)
            wake.drain()
            withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { while read(inotify, $0.baseAddress, 4096) > 0 {} }
            repair()
            // A file that is written all the time is not looked at all the time; and a guest goes on meanwhile with what there is.
            usleep(10_000)
        }
    }
    private func repair() {
        let pagesWereMissing = clinux_window_take_holes(number) != 0
        covers.store(true, ordering: .sequentiallyConsistent)
        let isAnyCovered = pieces.withLock { pieces -> Bool in
            for index in pieces.indices {
                guard var piece = pieces[index], let status = try? NodeTable.status(piece.descriptor) else { continue }
                if pagesWereMissing, map(piece, at: index) { piece.isCovered = false }
                settle(&piece, at: index, end: Piece.end(status, piece.offset))
                pieces[index] = piece
            }
            let isAnyCovered = pieces.contains { $0?.isCovered == true }
            covers.store(isAnyCovered, ordering: .sequentiallyConsistent)
            return isAnyCovered
        }
        if pagesWereMissing || isAnyCovered { changed(0, size) }
    }
    /// The file up to its end, memory behind that.
    private func settle(_ piece: inout Piece, at index: Int, end: Int) {
        if piece.isCovered, end > piece.end, map(piece, at: index) { piece.isCovered = false }
        if end < Self.pieceSize, !piece.isCovered || end < piece.end { piece.isCovered = cover(index, from: end) }
        piece.end = end
    }
    /// The guest has made a file longer, as it will see with its next access.
    func becameLonger(_ descriptor: Descriptor) {
        guard covers.load(ordering: .sequentiallyConsistent), let status = try? NodeTable.status(descriptor) else { return }
        let key = Node.Key(status)
        pieces.withLock { pieces in
            for index in pieces.indices where pieces[index]?.key == key && pieces[index]?.isCovered == true {
                guard var piece = pieces[index], let status = try? NodeTable.status(piece.descriptor) else { continue }
                settle(&piece, at: index, end: Piece.end(status, piece.offset))
                pieces[index] = piece
            }
        }
    }
    /// The guest asks for the file, or opens it. Its processors forget code from it when somebody has written it meanwhile. Where it
    /// is mapped for writing, the next write changes its time again.
    func look(at status: stat) {
        let key = Node.Key(status)
        let stamp = FileStamp(status)
        var others: [Int] = []
        pieces.withLock { pieces in
            for index in pieces.indices where pieces[index]?.key == key {
                guard var piece = pieces[index], piece.seen != stamp else { continue }
                piece.seen = stamp
                if piece.isWritable, map(piece, at: index), piece.isCovered { cover(index, from: piece.end) }
                if piece.isCovered, let now = try? NodeTable.status(piece.descriptor) { settle(&piece, at: index, end: Piece.end(now, piece.offset)) }
                pieces[index] = piece
                others.append(index)
            }
        }
        for index in others { changed(index * Self.pieceSize, Self.pieceSize) }
    }
    /// Pieces of a file that may be written.
    func writablePieces(of key: Node.Key) -> [Piece] { pieces.withLock { $0.compactMap { $0?.isWritable == true && $0?.key == key ? $0 : nil } } }
    /// What is mapped, for a saved state.
    func list() -> [(Int, Piece)] { pieces.withLock { $0.enumerated().compactMap { index, piece in piece.map { (index, $0) } } } }
}
