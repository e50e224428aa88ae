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

    /// The thunk for an SSE or MMX instruction; 0 when the host gives no executable memory.
    func thunk(_ i: Instruction, _ plan: ThunkPlan) -> UInt64 {
        var code = Emitter()
        let memory = i.isMemory
        let reg = Int(i.reg)
        let rm = Int(i.rm)
        if plan.reg == .xmm, plan.readsReg || plan.writesReg { code.loadXMM(reg) }
        if plan.reg == .gpr, plan.readsReg { code.loadGPR(0, reg) }
        if !memory {
            if plan.rm == .xmm { code.loadXMM(rm) }
            if plan.rm == .gpr { code.loadGPR(1, rm) }
        }
        let regField = plan.reg == .gpr ? 0 : (plan.reg == .mmx ? reg & 7 : reg)
        let rmField = memory ? 6 : (plan.rm == .gpr ? 1 : (plan.rm == .mmx ? rm & 7 : rm))
        if i.has66 { code.bytes.append(0x66) }
        if i.rep != 0 { code.bytes.append(i.rep) }
        let rex = (i.rexW ? 8 : 0) | (regField > 7 ? 4 : 0) | (!memory && rmField > 7 ? 1 : 0)
        if rex != 0 { code.bytes.append(UInt8(0x40 | rex)) }
        code.bytes += [0x0F, i.opcode, UInt8((memory ? 0 : 0xC0) | (regField & 7) << 3 | (rmField & 7))]
        if plan.hasImmediate { code.bytes.append(UInt8(truncatingIfNeeded: i.immediate)) }
        if plan.reg == .xmm, plan.writesReg { code.storeXMM(reg) }
        if plan.reg == .gpr, plan.writesReg { code.storeGPR(0, reg) }
        if !memory, plan.writesRM {
            if plan.rm == .xmm { code.storeXMM(rm) }
            if plan.rm == .gpr { code.storeGPR(1, rm) }
        }
        if plan.setsFlags { code.storeFlags() }
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

/// The few host instructions around a thunk's body; rdi is the CPU state.
private struct Emitter {
    var bytes: [UInt8] = []

    private mutating func displacement(_ value: Int) {
        for shift in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: value >> shift)) }
    }
    private mutating func xmm(_ opcode: UInt8, _ n: Int) {
        if n > 7 { bytes.append(0x44) }
        bytes += [0x0F, opcode, UInt8(0x87 | (n & 7) << 3)]
        displacement(Int(X86_XMM_OFFSET) + n * 16)
    }
    mutating func loadXMM(_ n: Int) { xmm(0x10, n) }
    mutating func storeXMM(_ n: Int) { xmm(0x11, n) }
    private mutating func gpr(_ opcode: UInt8, _ host: Int, _ n: Int) {
        bytes += [0x48, opcode, UInt8(0x87 | host << 3)]
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
