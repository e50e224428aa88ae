/// Chains of a queue that the driver filled with room: taken ahead, so that one system call fills several of them, and given
/// back in their order. Belongs to the queue's thread.
final class ReceiveChains {
    let queue: Virtqueue
    private let limit: Int
    private var chains: [DescriptorChain] = []
    /// How many chains are taken and not given back.
    private(set) var count = 0
    /// Bytes that they have room for.
    private(set) var room = 0

    /// - Parameter limit: more chains than anything needs; a driver that gives so many without room is broken.
    init(_ queue: Virtqueue, limit: Int) {
        self.queue = queue
        self.limit = limit
    }
    subscript(_ index: Int) -> DescriptorChain { chains[index] }

    /// Takes one more; false when the driver has given none.
    func take() throws(QueueError) -> Bool {
        guard count < limit else { throw .chainTooLong }
        if count == chains.count { chains.append(DescriptorChain(capacity: 8)) }
        guard try queue.pop(chains[count]) else { return false }
        room += chains[count].writableCount
        count += 1
        return true
    }
    /// Says of the chain at `index` that `written` bytes are in it; the driver sees it with `publish`.
    func stage(_ index: Int, written: Int) {
        room -= chains[index].writableCount
        queue.stage(chains[index], written: written)
    }
    /// Shows the driver the first `used` chains, which have all been staged; the others come first next time.
    func publish(_ used: Int) {
        queue.publish()
        if used < count { chains[..<count].rotate(used) }
        count -= used
    }
}

extension MutableCollection where Self: RandomAccessCollection, Index == Int {
    /// Moves the first `count` elements to the end.
    fileprivate mutating func rotate(_ count: Int) {
        func reverse(_ range: Range<Int>) {
            var (low, high) = (range.lowerBound, range.upperBound - 1)
            while low < high {
                swapAt(low, high)
                (low, high) = (low + 1, high - 1)
            }
        }
        let middle = startIndex + count
        reverse(startIndex..<middle)
        reverse(middle..<endIndex)
        reverse(startIndex..<endIndex)
    }
}
