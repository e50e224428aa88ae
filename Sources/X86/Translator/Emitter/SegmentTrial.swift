import CX86

// Operands that are watched for whether they stay in their page: see AccessTrial.
extension BlockTranslator {
    /// Numbers the operands that could do either.
    mutating func numberSites() {
        siteCount = 0
        ownCaches = InlineArray(repeating: 0)
        if case .none = phase { return }
        for index in lines.indices where siteCount < AccessTrial.mostSites && isSite(lines[index]) {
            lines[index].site = Int8(siteCount)
            siteCount += 1
        }
    }
    private func isSite(_ line: Line) -> Bool {
        let i = line.instruction
        return i.isMemory && line.plan.kind != .bitString && line.plan.size > 0 && i.base >= 0 && i.base != 4 && !i.isRIPRelative && i.segmentOverride < 4
    }
    /// The base cache of a line's memory operand; nil for those that ask the TLB.
    func operandCache(_ line: Line) -> BaseCache? {
        guard line.site >= 0 else { return baseCache(line.instruction) }
        switch phase {
        case .trial where counters != 0 && usesWindows: return .own(line.site)
        case .judged(let stays): return stays >> UInt32(line.site) & 1 != 0 && usesWindows ? .own(line.site) : nil
        default: return baseCache(line.instruction)
        }
    }
    /// Where the base cache that is an operand's own lies: the turns of a loop share it, but not those that write with those that do not.
    mutating func ownCache(_ site: Int8, write: Bool) -> UInt {
        let number = Int(site) * 2 + (write ? 1 : 0)
        if ownCaches[number] == 0 { ownCaches[number] = cache.makeOperandCache() }
        return ownCaches[number]
    }
    /// The same for the operand that opens a window.
    func windowCache(_ line: Line) -> BaseCache? {
        guard line.site >= 0, counters != 0 else { return nil }
        return operandCache(line)
    }
    /// Where the segment's body begins; with flags that are nobody's or in memory, where executions are counted.
    mutating func beginTrial() {
        counters = 0
        switch phase {
        case .none: first.counters = 0
        case .counted(let count):
            (first.counters, first.watchedOperands) = (countExecutions(count), 0)
            first.hasNothingToWatch = siteCount == 0
        case .trial(let count):
            (first.counters, first.watchedOperands) = (cache.makeTrialCounters(siteCount, of: countExecutions(count)), siteCount)
            counters = cache.address(of: first.counters)
        case .judged(let stays):
            if stays != 0 { counters = cache.address(of: cache.makeCounter(AccessTrial.patience)) }
        }
    }
    /// Returns the counter.
    private mutating func countExecutions(_ count: Int16) -> TranslationCache.CodeOffset {
        let counter = cache.makeCounter(count)
        first.isOnProbation = false
        code.decrement(cache.address(of: counter))
        trialEnd = code.jump(if: 8)
        return counter
    }
    mutating func finishTrial() {
        guard let jump = trialEnd.take() else { return }
        code.patch(jump)
        code.exit(Host.address, cache.offset(of: first), to: startFlags == .dead ? shared.judge.dead : shared.judge.memory)
    }
    /// In the way of an operand whose base cache failed. r9 is lost, and EFLAGS.
    mutating func countMiss(_ miss: Miss) {
        guard miss.site >= 0, counters != 0 else { return }
        if case .trial = phase { return code.increment(counters + 4 + UInt(miss.site) * 4) }
        code.decrement(counters)
        exhausted.append((code.jump(if: 8), miss.slow))
    }
    /// For handlers that see to the block in which they were met. r11 is lost.
    mutating func nameBlock() {
        code.moveOperation(Host.address, cache.offset(of: first))
        code.store(Host.address, Host.cell(Int(X86_T1_TARGET_OFFSET)))
    }
    /// The block's operands wander after all: the interpreter sees to this one, and the block is watched again.
    mutating func finishExhausted() {
        for (jump, number) in exhausted {
            let path = slow[number]
            code.patch(jump)
            nameBlock()
            path.vectors.store(&code)
            leave(path.op, unsafeBitCast(TranslatorHandlers.watchAgain, to: UInt.self), path.flags)
        }
        exhausted.removeAll(keepingCapacity: true)
    }
}
