import DiskStorage
import Glibc

/// What a driver asks of a disk, checked. VIRTIO 1.2 § 5.2.6.
enum BlockRequest {
    case transfer(DiskOperation)
    /// Segments of sector, count and flags behind the header.
    case ranges(zero: Bool)
    case identify
    /// To be refused, with this status.
    case refused(UInt8)

    enum Status {
        static let ok: UInt8 = 0
        static let ioError: UInt8 = 1
        static let unsupported: UInt8 = 2
    }
    private enum Kind {
        static let read: UInt32 = 0
        static let write: UInt32 = 1
        static let flush: UInt32 = 4
        static let getID: UInt32 = 8
        static let discard: UInt32 = 11
        static let writeZeroes: UInt32 = 13
    }
    static let headerSize = 16
    /// Largest read or write; drivers stay far below it.
    private static let largest = 64 << 20

    /// - Parameter chain: has room for the status, at the end of its writable part.
    init(_ chain: DescriptorChain, _ storage: any BlockStorage) {
        self = .refused(Status.ioError)
        guard let kind: UInt32 = chain.load(at: 0), let sector: UInt64 = chain.load(at: 8) else { return }
        switch kind {
        case Kind.read:
            let size = chain.writableCount - 1
            if Self.inRange(sector, size, storage) { self = .transfer(DiskOperation(.read, offset: sector * 512, count: size)) }
        case Kind.write:
            let size = chain.readableCount - Self.headerSize
            if size >= 0, Self.inRange(sector, size, storage), !storage.isReadOnly {
                self = .transfer(DiskOperation(.write, offset: sector * 512, count: size))
            }
        case Kind.flush: self = .transfer(DiskOperation(.flush))
        case Kind.getID: self = .identify
        case Kind.discard, Kind.writeZeroes: if !storage.isReadOnly { self = .ranges(zero: kind == Kind.writeZeroes) }
        default: self = .refused(Status.unsupported)
        }
    }
    private static func inRange(_ sector: UInt64, _ bytes: Int, _ storage: any BlockStorage) -> Bool {
        let (capacity, block) = (storage.byteCount / 512, storage.blockSize)
        guard bytes <= largest, bytes % block == 0, sector <= capacity, sector % UInt64(block / 512) == 0 else { return false }
        return UInt64(bytes) / 512 <= capacity - sector
    }

    /// How many ranges the chain holds; nil for what is no list of at most `limit`.
    static func rangeCount(_ chain: DescriptorChain, limit: Int) -> Int? {
        let size = chain.readableCount - headerSize
        return size > 0 && size % 16 == 0 && size / 16 <= limit ? size / 16 : nil
    }
    /// One range; the status that refuses it otherwise.
    static func range(_ chain: DescriptorChain, _ index: Int, zero: Bool, _ storage: any BlockStorage) -> Result<DiskOperation, Refusal> {
        let at = headerSize + index * 16
        guard let sector: UInt64 = chain.load(at: at), let count: UInt32 = chain.load(at: at + 8), let flags: UInt32 = chain.load(at: at + 12)
        else { return .failure(Refusal(status: Status.ioError)) }
        if flags & ~1 != 0 || (!zero && flags != 0) { return .failure(Refusal(status: Status.unsupported)) }
        let (capacity, block) = (storage.byteCount / 512, UInt64(storage.blockSize / 512))
        guard sector <= capacity, UInt64(count) <= capacity - sector, sector % block == 0, UInt64(count) % block == 0 else {
            return .failure(Refusal(status: Status.ioError))
        }
        return .success(DiskOperation(zero ? .writeZeroes(mayUnmap: flags & 1 != 0) : .discard, offset: sector * 512, count: Int(count) * 512))
    }
    struct Refusal: Error { let status: UInt8 }

    /// Fills `vectors` with `count` bytes of the buffers from `skip` on; returns how many it took.
    static func collect(_ buffers: [GuestBuffer], skip: Int, count: Int, into vectors: UnsafeMutablePointer<iovec>) -> Int {
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
    /// The vectors of a read or a write.
    static func vectors(_ operation: DiskOperation, _ chain: DescriptorChain, into vectors: UnsafeMutablePointer<iovec>) -> Int {
        switch operation.kind {
        case .read: collect(chain.writable, skip: 0, count: operation.count, into: vectors)
        case .write: collect(chain.readable, skip: headerSize, count: operation.count, into: vectors)
        default: 0
        }
    }
    /// Writes the status; returns the bytes written to the chain: the status lies behind the whole data area, so that much counts.
    static func finish(_ chain: DescriptorChain, _ status: UInt8) -> Int {
        var status = status
        _ = chain.write(at: chain.writableCount - 1, from: &status, count: 1)
        return chain.writableCount
    }
    static func identify(_ chain: DescriptorChain, _ identifier: [UInt8]) -> Int {
        var text = (identifier + [UInt8](repeating: 0, count: 20)).prefix(20).map { $0 }
        _ = chain.write(at: 0, from: &text, count: min(chain.writableCount - 1, 20))
        return finish(chain, Status.ok)
    }
}
