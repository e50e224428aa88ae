import Glibc

/// Parts of guest memory, for one system call.
final class GuestPieces {
    let base: UnsafeMutablePointer<iovec>
    private(set) var count = 0
    private(set) var total = 0
    private let capacity: Int

    init(capacity: Int) {
        self.capacity = capacity
        base = .allocate(capacity: capacity)
    }
    deinit { base.deallocate() }

    func clear() { (count, total) = (0, 0) }
    /// Adds buffers without their first `skip` bytes; what is beyond the capacity is left out. Returns what of `skip` is left.
    @discardableResult
    func append(_ buffers: [GuestBuffer], skip: Int) -> Int {
        var skip = skip
        for buffer in buffers {
            if skip >= buffer.count {
                skip -= buffer.count
                continue
            }
            guard count < capacity else { return 0 }
            base[count] = iovec(iov_base: buffer.pointer + skip, iov_len: buffer.count - skip)
            count += 1
            total += buffer.count - skip
            skip = 0
        }
        return skip
    }
    /// Cuts the pieces down to `limit` bytes in all.
    func limit(to limit: Int) {
        while count > 0, total > limit {
            let excess = total - limit
            let last = base[count - 1].iov_len
            if excess < last {
                base[count - 1].iov_len = last - excess
                total = limit
            } else {
                count -= 1
                total -= last
            }
        }
    }
}
