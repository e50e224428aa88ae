/// The queue that the guest receives from. Used under the table's lock, by whichever thread has something to say.
final class VsockReceiver {
    /// So many packets are filled with one system call at most.
    private static let mostChains = 16

    let queue: Virtqueue
    private let chains: ReceiveChains
    private let pieces = GuestPieces(capacity: 1024)  // IOV_MAX
    private let scratch = UnsafeMutableRawPointer.allocate(byteCount: VsockPacket.size, alignment: 8)

    init(_ queue: Virtqueue) {
        self.queue = queue
        chains = ReceiveChains(queue, limit: Self.mostChains)
    }
    deinit { scratch.deallocate() }

    /// A packet without data; false when the guest has given no buffer for it.
    func send(_ packet: VsockPacket) throws(QueueError) -> Bool {
        if chains.count == 0, try !chains.take() { return false }
        guard chains[0].writableCount >= VsockPacket.size else { throw .chainTooLong }
        packet.write(to: chains[0], scratch)
        chains.stage(0, written: VsockPacket.size)
        chains.publish(1)
        return true
    }
    /// Where data goes, at most `limit` bytes of it, with room for headers before; nil when the guest has given no buffers.
    func room(for limit: Int) throws(QueueError) -> GuestPieces? {
        while chains.room - chains.count * VsockPacket.size < limit, chains.count < Self.mostChains { if try !chains.take() { break } }
        guard chains.count > 0 else { return nil }
        pieces.clear()
        for index in 0..<chains.count {
            guard chains[index].writableCount >= VsockPacket.size else { throw .chainTooLong }
            pieces.append(chains[index].writable, skip: VsockPacket.size)
        }
        pieces.limit(to: limit)
        guard pieces.total > 0 else { throw .chainTooLong }
        return pieces
    }
    /// Shows the guest `count` bytes that were brought there, behind the headers that `packet` makes.
    func send(_ count: Int, _ packet: () -> VsockPacket) {
        var (left, used) = (count, 0)
        while left > 0, used < chains.count {
            let step = min(left, chains[used].writableCount - VsockPacket.size)
            var packet = packet()
            packet.count = UInt32(truncatingIfNeeded: step)
            packet.write(to: chains[used], scratch)
            chains.stage(used, written: VsockPacket.size + step)
            left -= step
            used += 1
        }
        chains.publish(used)
    }
}
