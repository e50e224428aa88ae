import Glibc

/// A ring of bytes whose memory exists only while it holds some.
struct ByteRing: ~Copyable {
    private var memory: UnsafeMutableRawPointer?
    private(set) var capacity = 0
    private var head = 0
    private(set) var count = 0

    deinit { memory?.deallocate() }

    var free: Int { capacity - count }
    mutating func allocate(_ size: Int) {
        guard memory == nil else { return }
        memory = .allocate(byteCount: size, alignment: 64)
        (capacity, head, count) = (size, 0, 0)
    }
    mutating func release() {
        memory?.deallocate()
        (memory, capacity, head, count) = (nil, 0, 0, 0)
    }

    /// The free part, in at most two pieces.
    func freePieces(_ target: UnsafeMutablePointer<iovec>) -> Int { pieces(from: count, size: free, target) }
    /// `size` bytes from `offset`, in at most two pieces. Both must lie within the ring.
    func pieces(from offset: Int, size: Int, _ target: UnsafeMutablePointer<iovec>) -> Int {
        guard let memory, size > 0 else { return 0 }
        var start = head + offset
        if start >= capacity { start -= capacity }
        let first = min(size, capacity - start)
        target[0] = iovec(iov_base: memory + start, iov_len: first)
        guard first < size else { return 1 }
        target[1] = iovec(iov_base: memory, iov_len: size - first)
        return 2
    }
    mutating func appended(_ size: Int) { count += size }
    mutating func drop(_ size: Int) {
        count -= size
        head += size
        if head >= capacity { head -= capacity }
    }
}
