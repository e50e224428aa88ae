import Glibc

/// A ring of bytes whose memory exists only while it holds some.
package struct ByteRing: ~Copyable {
    private var memory: UnsafeMutableRawPointer?
    package private(set) var capacity = 0
    private var head = 0
    package private(set) var count = 0

    package init() {}
    deinit { memory?.deallocate() }

    package var free: Int { capacity - count }
    package mutating func allocate(_ size: Int) {
        guard memory == nil else { return }
        memory = .allocate(byteCount: size, alignment: 64)
        (capacity, head, count) = (size, 0, 0)
    }
    package mutating func release() {
        memory?.deallocate()
        (memory, capacity, head, count) = (nil, 0, 0, 0)
    }

    /// The free part, in at most two pieces.
    package func freePieces(_ target: UnsafeMutablePointer<iovec>) -> Int { pieces(from: count, size: free, target) }
    /// `size` bytes from `offset`, in at most two pieces. Both must lie within the ring.
    package func pieces(from offset: Int, size: Int, _ target: UnsafeMutablePointer<iovec>) -> Int {
        guard let memory, size > 0 else { return 0 }
        var start = head + offset
        if start >= capacity { start -= capacity }
        let first = min(size, capacity - start)
        target[0] = iovec(iov_base: memory + start, iov_len: first)
        guard first < size else { return 1 }
        target[1] = iovec(iov_base: memory, iov_len: size - first)
        return 2
    }
    package mutating func appended(_ size: Int) { count += size }
    package mutating func drop(_ size: Int) {
        count -= size
        head += size
        if head >= capacity { head -= capacity }
    }
}
