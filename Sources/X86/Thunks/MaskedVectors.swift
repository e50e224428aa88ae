import CX86

// Vector instructions that touch only some elements in memory: an element that is not wanted must not fault.

extension ThunkHandlers {
    /// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ. `size`: bytes of an element; `aux` 1: a store; `extra`: the mask
    /// register and, in bit 8, 256 bits.
    static let maskedElements: Handler = { op, s in
        guard mayUseVectors(op, s) else { return 0 }
        return core(s).maskedElements(op) ? step(op, s) : 0
    }
    /// VGATHER… and VPGATHER…. `size`: bytes of an element; `extra`: mask register, 256 bits in bit 8, quadword indices in bit
    /// 9; `index`: the vector of indices.
    static let gather: Handler = { op, s in
        guard mayUseVectors(op, s) else { return 0 }
        return core(s).gather(op) ? step(op, s) : 0
    }
}

extension X86Core {
    private func vector(_ n: Int) -> UnsafeMutableRawPointer { UnsafeMutableRawPointer(state) + vectorOffset(n) }
    private func element(_ vector: UnsafeRawPointer, _ n: Int, _ size: Int) -> UInt64 {
        size == 8 ? vector.load(fromByteOffset: n * 8, as: UInt64.self) : UInt64(vector.load(fromByteOffset: n * 4, as: UInt32.self))
    }
    private func setElement(_ vector: UnsafeMutableRawPointer, _ n: Int, _ size: Int, _ value: UInt64) {
        if size == 8 {
            vector.storeBytes(of: value, toByteOffset: n * 8, as: UInt64.self)
        } else {
            vector.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: n * 4, as: UInt32.self)
        }
    }
    /// A result of the first `used` elements: all others become zero.
    private func finish(_ vector: UnsafeMutableRawPointer, _ used: Int) {
        (vector + used).initializeMemory(as: UInt8.self, repeating: 0, count: 32 - used)
        state.pointee.upper_in_use = 1
    }

    func maskedElements(_ op: Op) -> Bool {
        let size = Int(op.pointee.size)
        let width = op.pointee.extra & 0x100 != 0 ? 32 : 16
        let mask = vector(Int(op.pointee.extra & 15))
        let target = vector(Int(op.pointee.reg / 8))
        let linear = address(op, state)
        func wanted(_ n: Int) -> Bool { element(mask, n, size) >> UInt64(size * 8 - 1) & 1 != 0 }
        if op.pointee.aux == 1 {
            // All or nothing: a fault must leave memory as it was.
            for n in 0..<width / size where wanted(n) {
                _ = load(op, linear &+ UInt64(n * size), size, .write)
                if state.pointee.exit_reason != ExitReason.next { return false }
            }
            for n in 0..<width / size where wanted(n) {
                guard store(op, linear &+ UInt64(n * size), element(target, n, size), size) else { return false }
            }
            return true
        }
        var values: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
        return withUnsafeMutableBytes(of: &values) { raw in
            for n in 0..<width / size where wanted(n) {
                let value = load(op, linear &+ UInt64(n * size), size, .read)
                if state.pointee.exit_reason != ExitReason.next { return false }
                raw.storeBytes(of: value, toByteOffset: n * 8, as: UInt64.self)
            }
            for n in 0..<width / size { setElement(target, n, size, raw.load(fromByteOffset: n * 8, as: UInt64.self)) }
            finish(target, width)
            return true
        }
    }

    func gather(_ op: Op) -> Bool {
        let size = Int(op.pointee.size)
        let width = op.pointee.extra & 0x100 != 0 ? 32 : 16
        let indexSize = op.pointee.extra & 0x200 != 0 ? 8 : 4
        let count = width / max(size, indexSize)
        let (target, mask, indices) = (vector(Int(op.pointee.reg / 8)), vector(Int(op.pointee.extra & 15)), vector(Int(op.pointee.index / 8)))
        let shift = UInt64(op.pointee.ashift)
        for n in 0..<count where element(mask, n, size) >> UInt64(size * 8 - 1) & 1 != 0 {
            var index = element(indices, n, indexSize)
            if indexSize == 4 { index = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: index))) }
            let base: UInt64 = reg(state, op.pointee.base)
            let offset = base &+ (index &<< UInt64(op.pointee.scale)) &+ UInt64(bitPattern: op.pointee.disp)
            let value = load(op, (offset &<< shift) &>> shift &+ segmentBase(state, op.pointee.seg), size, .read)
            if state.pointee.exit_reason != ExitReason.next { return false }
            setElement(target, n, size, value)
            setElement(mask, n, size, 0)
        }
        finish(target, count * size)
        finish(mask, 0)
        return true
    }
}
