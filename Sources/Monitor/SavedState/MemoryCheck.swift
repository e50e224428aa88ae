import Glibc
import LinuxSystem
import Synchronization

/// Compares the memory in a saved state's file with its checksums, on a thread of its own, while the guest runs already: its pages are
/// mapped, and read as it touches them.
final class MemoryCheck: Sendable {
    private let file: SavedStateFile.Opened
    /// Milliseconds that the guest has for itself: it has just been restored because somebody wants it.
    private static let delay: Int32 = 300
    private let cancelled = Atomic(false)
    private let wake: EventFD
    private let thread = Mutex<HostThread?>(nil)

    /// - Parameter failed: called on that thread, at most once, with what is wrong.
    init(_ file: SavedStateFile.Opened, failed: @escaping @Sendable (String) -> Void) throws(SystemError) {
        self.file = file
        wake = try EventFD()
        guard !file.memorySums.isEmpty else { return }
        let started = try HostThread(name: "vz-check") { [self] in
            var entry = pollfd(fd: wake.fileDescriptor, events: Int16(POLLIN), revents: 0)
            _ = poll(&entry, 1, Self.delay)
            if let reason = damage() { failed(reason) }
        }
        thread.withLock { $0 = started }
    }
    /// Returns when nothing of it runs any more.
    func cancel() {
        cancelled.store(true, ordering: .relaxed)
        wake.signal()
        thread.withLock { $0 }?.join()
    }

    private func damage() -> String? {
        let memory = Int(file.memoryCount)
        let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: MemorySum.pieceSize, alignment: MemorySum.pageSize)
        defer { piece.deallocate() }
        let sumOfNothing = MemorySum().result
        for (index, sum) in file.memorySums.enumerated() where !cancelled.load(ordering: .relaxed) {
            let offset = index * MemorySum.pieceSize
            let bytes = UnsafeMutableRawBufferPointer(rebasing: piece[..<min(MemorySum.pieceSize, memory - offset)])
            if sum == sumOfNothing, isHole(offset, bytes.count) { continue }
            var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
            let result = FileTransfer.move(file.fileDescriptor, at: file.memoryOffset + UInt64(offset), &vector, 1) { preadv($0, $1, $2, $3) }
            let place = "\(offset >> 20) MiB"
            if result != 0 { return "the saved memory that it runs from cannot be read at \(place): \(String(cString: strerror(result)))" }
            if MemorySum.of(UnsafeRawBufferPointer(bytes), at: offset) != sum { return "the saved memory that it runs from is damaged at \(place)" }
        }
        return nil
    }
    private func isHole(_ offset: Int, _ count: Int) -> Bool {
        let start = off_t(file.memoryOffset) + off_t(offset)
        let data = lseek(file.fileDescriptor, start, SEEK_DATA)
        return data < 0 ? errno == ENXIO : data >= start + off_t(count)
    }
}
