import Glibc

/// A list of buffers that is used up from the front, in stretches that may end inside of a buffer.
struct VectorCursor {
    private var vectors: UnsafeMutablePointer<iovec>
    private var count: Int
    private(set) var left: Int

    init(_ vectors: UnsafeMutablePointer<iovec>, _ count: Int) {
        self.vectors = vectors
        self.count = count
        left = (0..<count).reduce(0) { $0 + vectors[$1].iov_len }
    }
    /// Hands the next `length` bytes to `body`, which may change the buffers it is given.
    mutating func take(_ length: Int, _ body: (UnsafeMutablePointer<iovec>, Int) -> Int32) -> Int32 {
        var number = 0
        var sum = 0
        while number < count, sum + vectors[number].iov_len <= length {
            sum += vectors[number].iov_len
            number += 1
        }
        left -= length
        guard sum < length else {
            defer {
                vectors += number
                count -= number
            }
            return number == 0 ? 0 : body(vectors, number)
        }
        // The last buffer is used in part.
        let whole = vectors[number]
        let used = length - sum
        vectors[number].iov_len = used
        let result = body(vectors, number + 1)
        vectors += number
        count -= number
        vectors.pointee = iovec(iov_base: whole.iov_base + used, iov_len: whole.iov_len - used)
        return result
    }
}
