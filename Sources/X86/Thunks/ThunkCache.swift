import CX86
import Synchronization

/// Machine code that loads the registers an instruction names, runs that very instruction on the host with its memory
/// operand at [rsi], and stores what it wrote: bit-exact results without a second implementation.
///
/// A thunk is a function `(x86_cpu *rdi, void *rsi)`. It touches the CPU state, the bytes at rsi and nothing else. Code is
/// written through one mapping and run through another (W^X). Thunks are made once for each distinct instruction form and
/// live as long as the process.
final class ThunkCache: Sendable {
    static let shared = ThunkCache()

    private struct Pool {
        var known: [[UInt8]: UInt64] = [:]
        var writable: UnsafeMutablePointer<UInt8>?
        var executable: UInt64 = 0
        var used = 0
    }
    private static let poolSize = 1 << 20
    // SAFETY: the pool and the memory it points to are only written under the lock; finished thunks never change.
    private let pool = Mutex(Pool())

    /// The thunk for an instruction with a plan; 0 when the host gives no executable memory.
    func thunk(_ i: Instruction, _ plan: ThunkPlan) -> UInt64 {
        var code = Emitter()
        let wide = plan.isVEX
        let fourth = UInt8(truncatingIfNeeded: i.immediate >> 4) & 15
        if plan.reg == .xmm, plan.readsReg || plan.writesReg { code.loadVector(Int(i.reg), wide) }
        if plan.reg == .gpr, plan.readsReg { code.loadGPR(HostPlace.reg, Int(i.reg)) }
        if !i.isMemory {
            if plan.rm == .xmm { code.loadVector(Int(i.rm), wide) }
            if plan.rm == .gpr { code.loadGPR(HostPlace.rm, HostPlace.byteParent(i, plan)) }
        }
        if plan.vvvv == .xmm { code.loadVector(Int(i.vvvv), wide) }
        if plan.vvvv == .gpr { code.loadGPR(HostPlace.vvvv, Int(i.vvvv)) }
        if plan.fourth == .xmm { code.loadVector(Int(fourth), wide) }
        if plan.implicitXMM0 { code.loadVector(0, wide) }
        if plan.readsRDX || plan.comparesText { code.loadGPR(2, 2) }
        if plan.comparesText { code.loadGPR(0, 0) }
        code.instruction(i, plan)
        // Before the first operand: MULX may name one register for both.
        if plan.writesV, plan.vvvv == .gpr, !plan.setsFlags { code.storeGPR(HostPlace.vvvv, Int(i.vvvv)) }
        // RAX carries the flags out: a result in it goes first.
        if plan.setsFlags {
            if plan.reg == .gpr, plan.writesReg { code.storeGPR(HostPlace.reg, Int(i.reg)) }
            code.storeFlags()
            if plan.writesV, plan.vvvv == .gpr { code.storeGPR(HostPlace.vvvv, Int(i.vvvv)) }
        }
        if plan.writesV, plan.vvvv == .xmm { code.storeVector(Int(i.vvvv), wide) }
        if plan.reg == .xmm, plan.writesReg { code.storeVector(Int(i.reg), wide) }
        if plan.reg == .gpr, plan.writesReg, !plan.setsFlags { code.storeGPR(HostPlace.reg, Int(i.reg)) }
        if !i.isMemory, plan.writesRM {
            if plan.rm == .xmm { code.storeVector(Int(i.rm), wide) }
            if plan.rm == .gpr { code.storeGPR(HostPlace.rm, Int(i.rm)) }
        }
        if plan.writesXMM0 { code.storeVector(0, wide) }
        if plan.comparesText, !plan.writesXMM0 { code.storeGPR(1, 1) }
        // Upper halves in use make the host's SSE code slow.
        if plan.isVEX, plan.usesVector { code.bytes += [0xC5, 0xF8, 0x77] }
        return install(code)
    }

    /// The thunk for an x87 instruction: its registers are live in the host's own x87 unit while a core runs.
    func thunk(x87 i: Instruction, loadsFlags: Bool, setsFlags: Bool) -> UInt64 {
        var code = Emitter()
        if loadsFlags { code.loadFlags() }
        code.bytes += [i.opcode, UInt8((i.isMemory ? 0 : 0xC0) | Int(i.group) << 3 | (i.isMemory ? 6 : Int(i.rm & 7)))]
        if setsFlags { code.storeFlags() }
        return install(code)
    }

    /// EMMS, which has no operands.
    func emms() -> UInt64 {
        var code = Emitter()
        code.bytes += [0x0F, 0x77]
        return install(code)
    }

    private func install(_ code: consuming Emitter) -> UInt64 {
        let bytes = code.bytes + [0xC3]
        return pool.withLock { pool -> UInt64 in
            if let known = pool.known[bytes] { return known }
            if pool.writable == nil || pool.used + bytes.count > Self.poolSize {
                var writable: UnsafeMutableRawPointer?
                var executable: UnsafeMutableRawPointer?
                guard cx_code_buffer(UInt(Self.poolSize), &writable, &executable) == 0, let writable, let executable else { return 0 }
                pool.writable = writable.assumingMemoryBound(to: UInt8.self)
                pool.executable = UInt64(UInt(bitPattern: executable))
                pool.used = 0
            }
            guard let target = pool.writable else { return 0 }
            for (index, byte) in bytes.enumerated() { target[pool.used + index] = byte }
            let address = pool.executable + UInt64(pool.used)
            pool.used += (bytes.count + 15) & ~15
            pool.known[bytes] = address
            return address
        }
    }
}

/// Where a thunk has the guest's general registers: RAX, RCX and R8.
private enum HostPlace {
    static let reg = 0
    static let rm = 1
    static let vvvv = 8
    /// AH to BH are parts of the first four registers.
    static func byteParent(_ i: Instruction, _ plan: ThunkPlan) -> Int { Int(isHighByte(i, plan) ? i.rm - 4 : i.rm) }
    static func isHighByte(_ i: Instruction, _ plan: ThunkPlan) -> Bool { plan.byteRM && !i.isMemory && !i.hasREX && (4...7).contains(i.rm) }
}

/// The few host instructions around a thunk's body; rdi is the CPU state.
private struct Emitter {
    var bytes: [UInt8] = []

    /// The guest's instruction with its operands where the thunk has them.
    mutating func instruction(_ i: Instruction, _ plan: ThunkPlan) {
        let regField = plan.reg == .gpr ? HostPlace.reg : (plan.reg == .mmx ? Int(i.reg & 7) : Int(i.reg))
        var rmField = 6
        if !i.isMemory {
            switch plan.rm {
            case .gpr: rmField = HostPlace.isHighByte(i, plan) ? 5 : HostPlace.rm
            case .mmx: rmField = Int(i.rm & 7)
            default: rmField = Int(i.rm)
            }
        }
        let high = (regField > 7 ? 4 : 0) | (!i.isMemory && rmField > 7 ? 1 : 0)
        if plan.isVEX {
            let vvvv = plan.vvvv == .gpr ? HostPlace.vvvv : (plan.vvvv == .none ? 0 : Int(i.vvvv))
            let prefix = i.has66 ? 1 : (i.rep == 0xF3 ? 2 : (i.rep == 0xF2 ? 3 : 0))
            bytes += [0xC4, UInt8((~high & 7) << 5 | i.map.number), UInt8((i.significantW ? 0x80 : 0) | (~vvvv & 15) << 3 | (i.vexL ? 4 : 0) | prefix), i.opcode]
        } else {
            if plan.isSizedByPrefix ? i.operandSize == 2 : i.has66 { bytes.append(0x66) }
            if i.rep != 0 { bytes.append(i.rep) }
            let rex = (i.rexW ? 8 : 0) | high
            if rex != 0 { bytes.append(UInt8(0x40 | rex)) }
            bytes.append(0x0F)
            if i.map == .three38 { bytes.append(0x38) }
            if i.map == .three3A { bytes.append(0x3A) }
            bytes.append(i.opcode)
        }
        bytes.append(UInt8((i.isMemory ? 0 : 0xC0) | (regField & 7) << 3 | (rmField & 7)))
        if plan.hasImmediate { bytes.append(UInt8(truncatingIfNeeded: i.immediate)) }
    }

    private mutating func displacement(_ value: Int) {
        for shift in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: value >> shift)) }
    }
    /// MOVUPS, or VMOVUPS of all 256 bits.
    private mutating func vector(_ opcode: UInt8, _ n: Int, _ wide: Bool) {
        if wide {
            bytes += [0xC5, n > 7 ? 0x7C : 0xFC]
        } else {
            if n > 7 { bytes.append(0x44) }
            bytes.append(0x0F)
        }
        bytes += [opcode, UInt8(0x87 | (n & 7) << 3)]
        displacement(vectorOffset(n))
    }
    mutating func loadVector(_ n: Int, _ wide: Bool) { vector(0x10, n, wide) }
    mutating func storeVector(_ n: Int, _ wide: Bool) {
        vector(0x11, n, wide)
        guard wide else { return }
        bytes += [0xC6, 0x87]  // mov byte [rdi+…], 1
        displacement(Int(X86_UPPER_IN_USE_OFFSET))
        bytes.append(1)
    }
    private mutating func gpr(_ opcode: UInt8, _ host: Int, _ n: Int) {
        bytes += [host > 7 ? 0x4C : 0x48, opcode, UInt8(0x87 | (host & 7) << 3)]
        displacement(n * 8)
    }
    mutating func loadGPR(_ host: Int, _ n: Int) { gpr(0x8B, host, n) }
    mutating func storeGPR(_ host: Int, _ n: Int) { gpr(0x89, host, n) }
    mutating func storeFlags() {
        bytes += [0x9C, 0x58, 0x89, 0x87]  // pushfq; pop rax; mov [rdi+...], eax
        displacement(Int(X86_RAW_FLAGS_OFFSET))
    }
    mutating func loadFlags() {
        bytes += [0x8B, 0x87]
        displacement(Int(X86_RAW_FLAGS_OFFSET))
        bytes += [0x50, 0x9D]  // push rax; popfq
    }
}

extension Instruction.Map {
    /// As VEX counts them.
    var number: Int {
        switch self {
        case .one: return 0
        case .two: return 1
        case .three38: return 2
        case .three3A: return 3
        }
    }
}

/// Where vector register `n` lies in the CPU state: 32 bytes each.
func vectorOffset(_ n: Int) -> Int { Int(X86_XMM_OFFSET) + n * 32 }
