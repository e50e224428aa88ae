import Glibc

/// Bytes that lie in several places, such as a frame in guest memory. Valid as long as those.
package struct MemoryPieces {
    package let pieces: UnsafePointer<iovec>
    package let count: Int
    package init(pieces: UnsafePointer<iovec>, count: Int) { (self.pieces, self.count) = (pieces, count) }

    package var total: Int { UnsafeBufferPointer(start: pieces, count: count).reduce(0) { $0 + $1.iov_len } }

    /// Copies up to `limit` bytes from `offset`; says how many.
    @discardableResult
    package func copy(from offset: Int, limit: Int, to target: UnsafeMutableRawPointer) -> Int {
        var (skip, done) = (offset, 0)
        for piece in UnsafeBufferPointer(start: pieces, count: count) where done < limit {
            guard let base = piece.iov_base else { continue }
            if skip >= piece.iov_len {
                skip -= piece.iov_len
                continue
            }
            let step = min(piece.iov_len - skip, limit - done)
            memcpy(target + done, base + skip, step)
            (done, skip) = (done + step, 0)
        }
        return done
    }
    /// The pieces of `limit` bytes from `offset`, written to `target` (room for `capacity`); says how many.
    package func slice(from offset: Int, limit: Int, to target: UnsafeMutablePointer<iovec>, capacity: Int) -> Int {
        var (skip, left, made) = (offset, limit, 0)
        for piece in UnsafeBufferPointer(start: pieces, count: count) where left > 0 && made < capacity {
            guard let base = piece.iov_base else { continue }
            if skip >= piece.iov_len {
                skip -= piece.iov_len
                continue
            }
            let step = min(piece.iov_len - skip, left)
            target[made] = iovec(iov_base: base + skip, iov_len: step)
            (made, left, skip) = (made + 1, left - step, 0)
        }
        return made
    }
    /// Fills `count` bytes from `offset` with zeroes.
    package func clear(from offset: Int, count limit: Int) {
        var (skip, left) = (offset, limit)
        for piece in UnsafeBufferPointer(start: pieces, count: count) where left > 0 {
            guard let base = piece.iov_base else { continue }
            if skip >= piece.iov_len {
                skip -= piece.iov_len
                continue
            }
            let step = min(piece.iov_len - skip, left)
            memset(base + skip, 0, step)
            (left, skip) = (left - step, 0)
        }
    }
    /// Copies into the pieces; says how many bytes found room.
    @discardableResult
    package func write(_ bytes: UnsafeRawPointer, _ size: Int, at offset: Int) -> Int {
        var (skip, done) = (offset, 0)
        for piece in UnsafeBufferPointer(start: pieces, count: count) where done < size {
            guard let base = piece.iov_base else { continue }
            if skip >= piece.iov_len {
                skip -= piece.iov_len
                continue
            }
            let step = min(piece.iov_len - skip, size - done)
            memcpy(base + skip, bytes + done, step)
            (done, skip) = (done + step, 0)
        }
        return done
    }
}
