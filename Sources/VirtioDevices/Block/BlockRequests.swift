import DiskStorage
import Glibc

/// Serves the requests of one block queue. Everything it needs is allocated once.
final class BlockRequests {
    /// § 5.2.6.
    private enum Kind {
        static let read: UInt32 = 0
        static let write: UInt32 = 1
        static let flush: UInt32 = 4
        static let getID: UInt32 = 8
        static let discard: UInt32 = 11
        static let writeZeroes: UInt32 = 13
    }
    private enum Status {
        static let ok: UInt8 = 0
        static let ioError: UInt8 = 1
        static let unsupported: UInt8 = 2
    }
    private static let headerSize = 16

    private let backend: any BlockBackend
    private let identifier: [UInt8]
    private let rangesPerRequest: Int
    private let chain = DescriptorChain(capacity: Int(BlockDevice.queueSize))
    private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: Int(BlockDevice.queueSize))

    init(backend: any BlockBackend, identifier: [UInt8], rangesPerRequest: Int) {
        self.backend = backend
        self.identifier = identifier
        self.rangesPerRequest = rangesPerRequest
    }
    deinit { vectors.deallocate() }

    func serve(_ queue: Virtqueue) throws(QueueError) {
        while try queue.pop(chain) {
            let written = execute()
            queue.complete(chain, written: written)
            queue.notify()
        }
    }

    /// Runs one request; returns the bytes written to the chain, status included.
    private func execute() -> Int {
        // The last writable byte is the status; a chain without one can be told nothing.
        guard chain.writableCount >= 1 else { return 0 }
        let dataRoom = chain.writableCount - 1
        guard let kind: UInt32 = chain.load(at: 0), let sector: UInt64 = chain.load(at: 8) else { return finish(Status.ioError, 0, dataRoom) }
        switch kind {
        case Kind.read:
            guard dataRoom % 512 == 0, inRange(sector, dataRoom) else { return finish(Status.ioError, 0, dataRoom) }
            let count = collect(chain.writable, skip: 0, count: dataRoom)
            let result = backend.read(at: sector * 512, vectors, count)
            return finish(result == 0 ? Status.ok : Status.ioError, result == 0 ? dataRoom : 0, dataRoom)
        case Kind.write:
            let size = chain.readableCount - Self.headerSize
            guard size >= 0, size % 512 == 0, inRange(sector, size), !backend.isReadOnly else { return finish(Status.ioError, 0, dataRoom) }
            let count = collect(chain.readable, skip: Self.headerSize, count: size)
            return finish(backend.write(at: sector * 512, vectors, count) == 0 ? Status.ok : Status.ioError, 0, dataRoom)
        case Kind.flush: return finish(backend.flush() == 0 ? Status.ok : Status.ioError, 0, dataRoom)
        case Kind.getID: return identify(dataRoom)
        case Kind.discard, Kind.writeZeroes: return finish(ranges(zero: kind == Kind.writeZeroes), 0, dataRoom)
        default: return finish(Status.unsupported, 0, dataRoom)
        }
    }

    private func inRange(_ sector: UInt64, _ bytes: Int) -> Bool {
        let capacity = backend.byteCount / 512
        return sector <= capacity && UInt64(bytes) / 512 <= capacity - sector
    }
    /// Fills `vectors` with `count` bytes of the buffers from `skip` on; returns how many it took.
    private func collect(_ buffers: [GuestBuffer], skip: Int, count: Int) -> Int {
        var skip = skip
        var left = count
        var used = 0
        for buffer in buffers where left > 0 {
            if skip >= buffer.count {
                skip -= buffer.count
                continue
            }
            let step = min(buffer.count - skip, left)
            vectors[used] = iovec(iov_base: buffer.pointer + skip, iov_len: step)
            used += 1
            left -= step
            skip = 0
        }
        return used
    }
    private func finish(_ status: UInt8, _ written: Int, _ dataRoom: Int) -> Int {
        var status = status
        _ = chain.write(at: dataRoom, from: &status, count: 1)
        // The status lies behind the whole data area, so that much counts as written.
        return dataRoom + 1
    }
    private func identify(_ dataRoom: Int) -> Int {
        var text = (identifier + [UInt8](repeating: 0, count: 20)).prefix(20).map { $0 }
        let count = min(dataRoom, 20)
        _ = chain.write(at: 0, from: &text, count: count)
        return finish(Status.ok, count, dataRoom)
    }
    /// § 5.2.6: segments of sector, count and flags behind the header.
    private func ranges(zero: Bool) -> UInt8 {
        let size = chain.readableCount - Self.headerSize
        guard size > 0, size % 16 == 0, size / 16 <= rangesPerRequest, !backend.isReadOnly else { return Status.ioError }
        for index in 0..<size / 16 {
            let at = Self.headerSize + index * 16
            guard let sector: UInt64 = chain.load(at: at), let count: UInt32 = chain.load(at: at + 8), let flags: UInt32 = chain.load(at: at + 12)
            else { return Status.ioError }
            if flags & ~1 != 0 || (!zero && flags != 0) { return Status.unsupported }
            guard inRange(sector, Int(count) * 512) else { return Status.ioError }
            if count == 0 { continue }
            let result =
                zero
                ? backend.writeZeroes(at: sector * 512, count: UInt64(count) * 512, mayUnmap: flags & 1 != 0)
                : backend.discard(at: sector * 512, count: UInt64(count) * 512)
            if result != 0 { return Status.ioError }
        }
        return Status.ok
    }
}
