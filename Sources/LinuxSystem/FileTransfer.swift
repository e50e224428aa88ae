import CLinux
import Glibc

/// Reads and writes of a file that move all bytes or fail.
package enum FileTransfer {
    /// `preadv` or `pwritev`, until all is done. `vectors` are changed. Returns 0 or an errno; EIO where the file ends.
    /// - Parameter other: a descriptor of the same file, for what this one refuses with EINVAL, as O_DIRECT does; -1 for none.
    @inline(__always) package static func move(
        _ descriptor: Int32, orElse other: Int32 = -1, at offset: UInt64, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int,
        _ call: (Int32, UnsafePointer<iovec>, Int32, off_t) -> Int
    ) -> Int32 {
        var (fd, at, vector, left) = (descriptor, off_t(offset), vectors, count)
        while left > 0 {
            var done = call(fd, vector, Int32(left), at)
            if done < 0 {
                if Glibc.errno == EINTR { continue }
                guard Glibc.errno == EINVAL, other >= 0, fd != other else { return Glibc.errno }
                fd = other
                continue
            }
            if done == 0 { return EIO }
            at += done
            while left > 0, done >= vector.pointee.iov_len {
                done -= vector.pointee.iov_len
                vector += 1
                left -= 1
            }
            if done > 0 {
                vector.pointee.iov_base += done
                vector.pointee.iov_len -= done
            }
        }
        return 0
    }
    package enum PromptRead: Sendable {
        case done
        /// Not all of it is in memory.
        case waits
        /// The file system cannot tell.
        case unknown
    }
    /// Reads all that `vectors` take, `total` bytes, if that needs no waiting; they may be partly filled otherwise.
    @inline(__always) package static func readPromptly(_ descriptor: Int32, at offset: UInt64, _ vectors: UnsafePointer<iovec>, _ count: Int, total: Int) -> PromptRead {
        let done = clinux_read_nowait(descriptor, vectors, Int32(count), Int64(clamping: offset))
        if done == total { return .done }
        return done >= 0 || Glibc.errno == EAGAIN ? .waits : .unknown
    }
    /// Exactly `count` bytes; nil where the file ends before, or with errno set.
    package static func read(_ descriptor: Int32, at offset: Int, _ count: Int) -> [UInt8]? {
        var result: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
            var vector = iovec(iov_base: buffer.baseAddress, iov_len: count)
            result = count == 0 ? 0 : move(descriptor, at: UInt64(offset), &vector, 1) { preadv($0, $1, $2, $3) }
            used = result == 0 ? count : 0
        }
        if result != 0 { errno = result }
        return result == 0 ? bytes : nil
    }
    /// Returns 0 or an errno.
    package static func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: Int) -> Int32 {
        guard let base = bytes.baseAddress, bytes.count > 0 else { return 0 }
        var vector = iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: bytes.count)
        return move(descriptor, at: UInt64(offset), &vector, 1) { pwritev($0, $1, $2, $3) }
    }
}
