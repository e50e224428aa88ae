import CX86

/// Turns the bytes at one address into a block of operations in the cache.
struct BlockBuilder {
    private let cache: BlockCache
    private let code: CodeKind
    /// Executions after which a block is translated; 0 for never.
    private let features: X86Features
    private let threshold: UInt32
    private let untranslated: Int

    /// - Parameter untranslated: where translated code goes that wants a block without a translation.
    init(cache: BlockCache, code: CodeKind, features: X86Features, threshold: UInt32, untranslated: Int) {
        self.features = features
        self.cache = cache
        self.code = code
        self.threshold = code.isTranslated ? threshold : 0
        self.untranslated = untranslated
    }
    private func counter(_ gpa: UInt64, crossing: Bool) -> x86_op {
        var op = BlockCache.blankOperation
        op.fn = threshold == 0 || crossing ? TranslatorHandlers.skip : TranslatorHandlers.count
        op.extra = threshold
        op.aux = threshold == 0 || crossing ? 2 : 0
        op.disp = Int64(bitPattern: gpa)
        op.imm = UInt64(untranslated)
        return op
    }

    /// Decodes until control leaves, `limit` instructions, or the end of `bytes` (a page). nil when not even one
    /// instruction fits, so that it goes on in the next page.
    ///
    /// - Parameters:
    ///   - one, two: address and value of the version cells of the pages the bytes come from.
    mutating func build(
        _ bytes: UnsafeBufferPointer<UInt8>, gpa: UInt64, one: (cell: UInt, version: UInt32), two: (cell: UInt, version: UInt32)? = nil, limit: Int
    ) -> Op? {
        let header = cache.open()
        var op = header + 1
        // Offsets count from the page's start, so that going from block to block in a page leaves `block_base` alone.
        let start = Int(gpa & 4095)
        op.pointee = counter(gpa, crossing: two != nil || limit == 1)
        op.pointee.off = UInt16(start)
        op += 1
        var offset = start
        var count = 0
        var shadow = false  // the last instruction was STI: one more belongs to the block
        var ended = false
        while !ended, count < limit || shadow, offset - start < BlockCache.maximumBytes {
            let rest = UnsafeBufferPointer(rebasing: bytes[min(offset - start, bytes.count)...])
            let endsHere = shadow
            switch InstructionDecoder.decode(rest, code: code.size) {
            case .truncated:
                if count == 0 { return nil }
                ended = true
                if shadow { (op - 1).pointee.extra = 1 }
                continue
            case .invalid(let length):
                op.pointee = BlockCache.blankOperation
                op.pointee.fn = SystemHandlers.undefined
                op.pointee.off = UInt16(offset)
                op.pointee.len = UInt8(length)
                ended = true
            case .instruction(let instruction):
                op.pointee = BlockCache.blankOperation
                op.pointee.off = UInt16(offset)
                op.pointee.len = UInt8(instruction.length)
                var selector = HandlerSelector(instruction, offset: offset, features: features)
                switch selector.select(&op.pointee) {
                case .next: break
                case .ends: ended = true
                case .undefined:
                    op.pointee.fn = SystemHandlers.undefined
                    ended = true
                }
                shadow = selector.isSTI
                offset += instruction.length
            }
            op += 1
            count += 1
            if endsHere { break }
        }
        op.pointee = BlockCache.blankOperation
        op.pointee.fn = SystemHandlers.endBlock
        op.pointee.off = UInt16(offset)
        op.pointee.size = code.size == .bits16 ? 2 : 4
        op += 1
        header.pointee = BlockCache.blankOperation
        header.pointee.imm = UInt64(one.cell)
        header.pointee.disp = Int64(Int(bitPattern: two?.cell ?? UInt(bitPattern: cache.zeroCell)))
        header.pointee.extra = one.version &+ (two?.version ?? 0)
        header.pointee.reg = two == nil ? 0 : 1
        header.pointee.size = code.rawValue
        cache.commit(op - header)
        return header + 1
    }
}
