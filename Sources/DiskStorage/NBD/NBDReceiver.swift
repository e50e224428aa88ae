import CLinux
import Glibc
import LinuxSystem

/// Replies on their way out of a socket.
final class NBDReceiver {
    /// What a reply says.
    enum Event {
        case simple(handle: UInt64, error: UInt32)
        case data(handle: UInt64, offset: UInt64, count: Int, isLast: Bool)
        case hole(handle: UInt64, offset: UInt64, count: Int)
        case failed(handle: UInt64, error: UInt32)
        /// The bytes of a request have come.
        case arrived(handle: UInt64, count: Int)
        case ended(handle: UInt64)
    }
    /// Where the bytes that follow a reply go.
    struct Room {
        var vectors: [iovec] = []
        var skip = 0
        var count = 0
        var handle: UInt64 = 0
        var endsRequest = false
    }
    private static let capacity = 65536
    /// What has been read of the stream but not looked at.
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
    private var start = 0
    private var end = 0
    private var room = Room()
    /// Bytes of the room that have come.
    private var filled = 0
    private let parts = UnsafeMutablePointer<iovec>.allocate(capacity: 260)

    deinit {
        buffer.deallocate()
        parts.deallocate()
    }
    func reset() {
        (start, end, filled) = (0, 0, 0)
        room = Room()
    }

    /// Reads until the socket has nothing more.
    func receive(_ descriptor: Int32, structured: Bool, _ heard: (Event) throws(NBDError) -> Room) throws(NBDError) {
        while true {
            while true {
                if try takeBytes(heard) { continue }
                if try takeReply(structured, heard) { continue }
                break
            }
            guard try read(descriptor) else { return }
        }
    }
    private func read(_ descriptor: Int32) throws(NBDError) -> Bool {
        if start == end { (start, end) = (0, 0) }
        if start > 0 {
            buffer.copyMemory(from: buffer + start, byteCount: end - start)
            (start, end) = (0, end - start)
        }
        // Into the guest's memory, and what is left into ours.
        var count = pieces()
        let direct = (0..<count).reduce(0) { $0 + parts[$1].iov_len }
        parts[count] = iovec(iov_base: buffer + end, iov_len: Self.capacity - end)
        count += 1
        while true {
            let done = readv(descriptor, parts, Int32(count))
            if done > 0 {
                filled += min(done, direct)
                end += max(0, done - direct)
                return true
            }
            if done == 0 { throw NBDError("the NBD server closed the connection", isPassing: true) }
            if errno == EINTR { continue }
            if errno == EAGAIN { return false }
            throw NBDError("the NBD server is gone: \(String(cString: strerror(errno)).lowercased())", isPassing: true)
        }
    }
    /// The rest of the room, as vectors. Nothing is in the buffer while there is any.
    private func pieces() -> Int {
        guard filled < room.count else { return 0 }
        return room.vectors.withUnsafeBufferPointer { vectors in
            guard let base = vectors.baseAddress else { return 0 }
            return MemoryPieces(pieces: base, count: vectors.count).slice(from: room.skip + filled, limit: room.count - filled, to: parts, capacity: 258)
        }
    }
    /// Bytes for the room that lie in the buffer; true when the room has become full.
    private func takeBytes(_ heard: (Event) throws(NBDError) -> Room) throws(NBDError) -> Bool {
        guard room.count > 0 else { return false }
        let count = pieces()
        for index in 0..<count where start < end {
            let step = min(parts[index].iov_len, end - start)
            parts[index].iov_base.copyMemory(from: buffer + start, byteCount: step)
            start += step
            filled += step
        }
        guard filled == room.count else { return false }
        let full = room
        room = Room()
        filled = 0
        _ = try heard(.arrived(handle: full.handle, count: full.count))
        if full.endsRequest { _ = try heard(.ended(handle: full.handle)) }
        return true
    }
    /// A reply's header; false when it is not all there, or bytes of the one before are still to come.
    private func takeReply(_ structured: Bool, _ heard: (Event) throws(NBDError) -> Room) throws(NBDError) -> Bool {
        guard room.count == 0, end - start >= 16 else { return false }
        let at = buffer + start
        switch at.loadBig(at: 0, as: UInt32.self) {
        case NBD.simpleReplyMagic:
            start += 16
            room = try heard(.simple(handle: at.loadBig(at: 8), error: at.loadBig(at: 4)))
            return true
        case NBD.structuredReplyMagic where structured: return try takeChunk(at, heard)
        default: throw violation
        }
    }
    private var violation: NBDError { NBDError("the NBD server answers against the protocol") }
    private func takeChunk(_ at: UnsafeMutableRawPointer, _ heard: (Event) throws(NBDError) -> Room) throws(NBDError) -> Bool {
        guard end - start >= 20 else { return false }
        let isLast = at.loadBig(at: 4, as: UInt16.self) & NBD.Chunk.isLast != 0
        let kind: UInt16 = at.loadBig(at: 6)
        let handle: UInt64 = at.loadBig(at: 8)
        let length = Int(at.loadBig(at: 16, as: UInt32.self))
        switch kind {
        case NBD.Chunk.none:
            guard length == 0, isLast else { throw violation }
            start += 20
        case NBD.Chunk.data:
            guard length > 8, length <= NBD.defaultPayload + 8 else { throw violation }
            guard end - start >= 28 else { return false }
            start += 28
            room = try heard(.data(handle: handle, offset: at.loadBig(at: 20), count: length - 8, isLast: isLast))
            return true  // its end is told when the bytes are there
        case NBD.Chunk.hole:
            guard length == 12 else { throw violation }
            guard end - start >= 32 else { return false }
            start += 32
            _ = try heard(.hole(handle: handle, offset: at.loadBig(at: 20), count: Int(at.loadBig(at: 28, as: UInt32.self))))
        case _ where kind & NBD.Chunk.error != 0:
            // A number, and a text that nobody reads.
            guard length >= 6, length <= 4096 + 64 else { throw violation }
            guard end - start >= 20 + length else { return false }
            start += 20 + length
            let error: UInt32 = at.loadBig(at: 20)
            guard error != 0 else { throw violation }
            _ = try heard(.failed(handle: handle, error: error))
        default: throw violation
        }
        if isLast { _ = try heard(.ended(handle: handle)) }
        return true
    }
}
