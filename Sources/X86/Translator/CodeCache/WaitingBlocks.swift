/// Blocks that have run often enough to be translated, and wait for each other. The translator is larger than the host's first caches, and between two
/// blocks the guest fills those: one by itself takes a sixth longer than one of many. Of a loop, all blocks are here when the first one comes again.
struct WaitingBlocks {
    struct Block {
        let first: Op
        let place: BlockPlace
    }
    private static let most = 128
    /// How often a block runs on before the others are no longer waited for.
    private static let patience: UInt32 = 16
    private(set) var list: [Block] = []

    /// Takes a block in, unless it has waited long enough, or there are enough.
    mutating func waits(_ block: Block) -> Bool {
        guard !list.contains(where: { $0.first == block.first }) else { return false }
        list.append(block)
        block.first.pointee.extra = Self.patience
        return list.count < Self.most
    }
    mutating func removeAll() { list.removeAll(keepingCapacity: true) }
}
