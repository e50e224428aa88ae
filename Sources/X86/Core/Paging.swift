import CX86

/// Page-fault error code bits. SDM vol. 3 § 4.7.
enum PageFaultCode {
    static let present: UInt64 = 1
    static let write: UInt64 = 2
    static let user: UInt64 = 4
    static let reserved: UInt64 = 8
    static let fetch: UInt64 = 16
}
/// Page-table entry bits. SDM vol. 3 § 4.5.
enum PTE {
    static let present: UInt64 = 1
    static let writable: UInt64 = 2
    static let user: UInt64 = 4
    static let accessed: UInt64 = 1 << 5
    static let dirty: UInt64 = 1 << 6
    static let large: UInt64 = 1 << 7
    static let global: UInt64 = 1 << 8
    static let noExecute: UInt64 = 1 << 63
    static let address: UInt64 = 0x000F_FFFF_FFFF_F000
}
enum ControlRegister {
    static let pe: UInt64 = 1
    static let mp: UInt64 = 2
    static let em: UInt64 = 4
    static let ts: UInt64 = 8
    static let ne: UInt64 = 1 << 5
    static let wp: UInt64 = 1 << 16
    static let pg: UInt64 = 1 << 31
    static let pae: UInt64 = 1 << 5
    static let pge: UInt64 = 1 << 7
    static let osfxsr: UInt64 = 1 << 9
    static let pcide: UInt64 = 1 << 17
    static let osxsave: UInt64 = 1 << 18
    static let lme: UInt64 = 1 << 8
    static let lma: UInt64 = 1 << 10
    static let nxe: UInt64 = 1 << 11
    static let sce: UInt64 = 1
}

enum Access: Equatable { case read, write, fetch }

struct Translation {
    var gpa: UInt64
    var writable: Bool
    var dirty: Bool
    /// The mapping outlives a change of CR3.
    var global = false
    var executable = false
    /// log2 of the page's size.
    var shift: UInt64 = 12
}
enum TranslationResult {
    case ok(Translation)
    /// A page fault with this error code.
    case fault(UInt64)
}

extension X86Core {
    /// Walks the page tables for one linear address, sets accessed and dirty bits. SDM vol. 3 § 4.5.
    func translate(_ linear: UInt64, _ access: Access, user: Bool) -> TranslationResult {
        let s = state
        guard s.pointee.cr0 & ControlRegister.pg != 0 else {
            return .ok(Translation(gpa: linear & 0xFFFF_FFFF, writable: true, dirty: true))
        }
        let base: UInt64 =
            (user ? PageFaultCode.user : 0) | (access == .write ? PageFaultCode.write : 0)
            | (access == .fetch && s.pointee.efer & ControlRegister.nxe != 0 ? PageFaultCode.fetch : 0)
        if s.pointee.lma == 0 { return translateLegacy(linear, access, user: user, base) }
        var table = s.pointee.cr3 & PTE.address
        var writable = true
        var userAllowed = true
        var noExecute = false
        var shift: UInt64 = 39
        while true {
            guard let cell = memory.host(table + ((linear >> shift) & 511) * 8) else { return .fault(base | PageFaultCode.present | PageFaultCode.reserved) }
            let pointer = cell.assumingMemoryBound(to: UInt64.self)
            let entry = pointer.pointee
            guard entry & PTE.present != 0 else { return .fault(base) }
            if entry & 0x000F_0000_0000_0000 != 0 || (entry & PTE.noExecute != 0 && s.pointee.efer & ControlRegister.nxe == 0)
                || (entry & PTE.large != 0 && shift == 39)
            {
                return .fault(base | PageFaultCode.present | PageFaultCode.reserved)
            }
            writable = writable && entry & PTE.writable != 0
            userAllowed = userAllowed && entry & PTE.user != 0
            noExecute = noExecute || entry & PTE.noExecute != 0
            let leaf = shift == 12 || entry & PTE.large != 0
            if !leaf {
                if entry & PTE.accessed == 0 { setBits(pointer, entry, PTE.accessed) }
                table = entry & PTE.address
                shift -= 9
                continue
            }
            let mayWrite = writable || (!user && s.pointee.cr0 & ControlRegister.wp == 0)
            if (user && !userAllowed) || (access == .write && !mayWrite) || (access == .fetch && noExecute) {
                return .fault(base | PageFaultCode.present)
            }
            let wanted = PTE.accessed | (access == .write ? PTE.dirty : 0)
            if entry & wanted != wanted, !setBits(pointer, entry, wanted) { return translate(linear, access, user: user) }
            let offsetMask = (UInt64(1) << shift) - 1
            let gpa = (entry & PTE.address & ~offsetMask) | (linear & offsetMask)
            let global = entry & PTE.global != 0 && s.pointee.cr4 & ControlRegister.pge != 0
            return .ok(Translation(gpa: gpa, writable: mayWrite, dirty: (entry | wanted) & PTE.dirty != 0, global: global, executable: !noExecute, shift: shift))
        }
    }

    /// 32-bit paging with 4 KiB and 4 MiB pages, and PAE. SDM vol. 3 § 4.3, 4.4.
    private func translateLegacy(_ linear: UInt64, _ access: Access, user: Bool, _ base: UInt64) -> TranslationResult {
        let s = state
        let pae = s.pointee.cr4 & ControlRegister.pae != 0
        var writable = true
        var userAllowed = true
        var noExecute = false
        var table: UInt64
        var shifts: [UInt64]
        if pae {
            guard let cell = memory.host((s.pointee.cr3 & 0xFFFF_FFE0) + ((linear >> 30) & 3) * 8) else { return .fault(base) }
            let entry = cell.load(as: UInt64.self)
            guard entry & PTE.present != 0 else { return .fault(base) }
            table = entry & PTE.address
            shifts = [21, 12]
        } else {
            table = s.pointee.cr3 & 0xFFFF_F000
            shifts = [22, 12]
        }
        while let shift = shifts.first {
            shifts.removeFirst()
            let size: UInt64 = pae ? 8 : 4
            let index = (linear >> shift) & (pae ? 511 : 1023)
            guard let cell = memory.host(table + index * size) else { return .fault(base | PageFaultCode.present | PageFaultCode.reserved) }
            let entry = pae ? cell.load(as: UInt64.self) : UInt64(cell.load(as: UInt32.self))
            guard entry & PTE.present != 0 else { return .fault(base) }
            writable = writable && entry & PTE.writable != 0
            userAllowed = userAllowed && entry & PTE.user != 0
            noExecute = noExecute || entry & PTE.noExecute != 0
            let leaf = shift == 12 || (entry & PTE.large != 0 && (pae || s.pointee.cr4 & 16 != 0))
            if !leaf {
                cell.storeBytes(of: UInt8(truncatingIfNeeded: entry | PTE.accessed), as: UInt8.self)
                table = entry & PTE.address
                continue
            }
            let mayWrite = writable || (!user && s.pointee.cr0 & ControlRegister.wp == 0)
            if (user && !userAllowed) || (access == .write && !mayWrite) || (access == .fetch && noExecute) {
                return .fault(base | PageFaultCode.present)
            }
            let wanted = entry | PTE.accessed | (access == .write ? PTE.dirty : 0)
            cell.storeBytes(of: UInt8(truncatingIfNeeded: wanted), as: UInt8.self)
            let offsetMask = (UInt64(1) << shift) - 1
            return .ok(
                Translation(
                    gpa: (entry & PTE.address & ~offsetMask) | (linear & offsetMask), writable: mayWrite,
                    dirty: wanted & PTE.dirty != 0, shift: shift))
        }
        return .fault(base)
    }

    /// Sets bits in an entry if it still is `expected`: another vCPU may be changing it.
    @discardableResult private func setBits(_ cell: UnsafeMutablePointer<UInt64>, _ expected: UInt64, _ bits: UInt64) -> Bool {
        var old = expected
        return cx_cas64(cell, &old, expected | bits) != 0
    }

    /// The page behind a linear address, entered into the TLB when it is RAM. nil: a fault was raised.
    func fill(_ op: Op, _ linear: UInt64, _ access: Access) -> (gpa: UInt64, host: UnsafeMutableRawPointer?)? {
        let s = state
        guard checkCanonical(op, linear) else { return nil }
        switch translate(linear, access, user: s.pointee.cpl == 3) {
        case .fault(let code):
            s.pointee.cr2 = linear
            _ = raise(op, s, Vector.pageFault, code)
            return nil
        case .ok(let translation):
            guard let host = enter(translation, linear) else { return (translation.gpa, nil) }
            return (translation.gpa, host)
        }
    }

    /// Puts a translation into the TLB of the current privilege; the page's host address, nil when it is not RAM.
    @discardableResult func enter(_ translation: Translation, _ linear: UInt64) -> UnsafeMutableRawPointer? {
        let s = state
        guard let host = memory.host(translation.gpa) else { return nil }
        if breakpoints.watchesData, breakpoints.watchesPage(linear, ofCode: false) { return host }
        let tag = linear & ~4095
        let isWritable = translation.writable && translation.dirty && mayWrite(translation.gpa) && lockStep?.isRecording != true
        if linear >> 47 == 0 { noteLowerHalf(translation, linear) }
        // A TLB may forget: that only the kernel's half stays when CR3 changes lets INVLPG forget large user pages.
        let global = translation.global && linear >> 47 != 0
        let entry = tlbEntry(s, linear)
        // What is filled again is in its list.
        if entry.readTag != tag || entry.gpa & TLBBit.global != (global ? TLBBit.global : 0) || lockStep != nil { noteFill(linear, isGlobal: global) }
        entry.set(
            tag, writeTag: isWritable ? tag : tag ^ 4096, delta: UInt64(UInt(bitPattern: host)) & ~4095 &- tag,
            gpa: translation.gpa & ~4095 | (global ? TLBBit.global : 0) | (translation.executable ? TLBBit.executable : 0))
        return host
    }
    /// What INVLPG has to know of pages in the lower half.
    @inline(__always) func noteLowerHalf(_ translation: Translation, _ linear: UInt64) {
        if translation.shift > 12 { largeRegions.insert(linear, isLarger: translation.shift > 21) }
        if translation.global { holdsGlobalUserPages = true }
    }
    /// Whether a page may have a write tag.
    private func mayWrite(_ gpa: UInt64) -> Bool {
        guard let page = memory.page(gpa), !memory.holdsCode(page) else { return false }
        writtenPages.insert(page)
        return !memory.holdsCode(page)
    }
    /// Whether an address is canonical; a fault was raised when not.
    func checkCanonical(_ op: Op, _ linear: UInt64) -> Bool {
        guard state.pointee.mode == 2, !isCanonical(linear) else { return true }
        let stack = op.pointee.seg == UInt8(SegmentRegister.ss) * 8
        _ = raise(op, state, stack ? Vector.stackFault : Vector.generalProtection, 0)
        return false
    }
    private func cut(_ linear: UInt64) -> UInt64 { state.pointee.mode == 2 ? linear : linear & 0xFFFF_FFFF }

    func load(_ op: Op, _ address: UInt64, _ size: Int, _ access: Access) -> UInt64 {
        let linear = cut(address)
        let inPage = 4096 - Int(linear & 4095)
        if inPage >= size { return loadPart(op, linear, size, access) }
        // An address form that is wrong anywhere comes before a page that is not there.
        guard checkCanonical(op, linear &+ UInt64(size - 1)) else { return 0 }
        let low = loadPart(op, linear, inPage, access)
        if state.pointee.exit_reason != 0 { return 0 }
        let high = loadPart(op, cut(linear &+ UInt64(inPage)), size - inPage, access)
        return low | high << UInt64(inPage * 8)
    }
    private func loadPart(_ op: Op, _ linear: UInt64, _ size: Int, _ access: Access) -> UInt64 {
        if breakpoints.watchesData, !mayAccess(op, linear, size, isWrite: access == .write) { return 0 }
        guard let (gpa, host) = fill(op, linear, access) else { return 0 }
        guard let host else {
            lockStep?.noteOnce()
            return outside { environment.memoryRead(gpa, size: size) }
        }
        switch size {
        case 1: return UInt64(host.load(as: UInt8.self))
        case 2: return UInt64(host.loadUnaligned(as: UInt16.self))
        case 4: return UInt64(host.loadUnaligned(as: UInt32.self))
        case 8: return host.loadUnaligned(as: UInt64.self)
        default:
            var value: UInt64 = 0
            for i in 0..<size { value |= UInt64((host + i).load(as: UInt8.self)) << UInt64(8 * i) }
            return value
        }
    }
    func store(_ op: Op, _ address: UInt64, _ value: UInt64, _ size: Int) -> Bool {
        let linear = cut(address)
        let inPage = 4096 - Int(linear & 4095)
        if inPage >= size { return storePart(op, linear, value, size) }
        // Both pages must be writable before either is written.
        let second = cut(linear &+ UInt64(inPage))
        guard checkCanonical(op, second), fill(op, linear, .write) != nil, fill(op, second, .write) != nil else { return false }
        if breakpoints.watchesData, !mayAccess(op, second, size - inPage, isWrite: true) { return false }
        return storePart(op, linear, value, inPage) && storePart(op, second, value >> UInt64(inPage * 8), size - inPage)
    }
    private func storePart(_ op: Op, _ linear: UInt64, _ value: UInt64, _ size: Int) -> Bool {
        if breakpoints.watchesData, !mayAccess(op, linear, size, isWrite: true) { return false }
        guard let (gpa, host) = fill(op, linear, .write) else { return false }
        lockStep?.note(host, size)
        guard let host else {
            let mask = size >= 8 ? UInt64.max : (1 << UInt64(size * 8)) - 1
            outside { environment.memoryWrite(gpa, value & mask, size: size) }
            return true
        }
        switch size {
        case 1: host.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
        case 2: host.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
        case 4: host.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        case 8: host.storeBytes(of: value, as: UInt64.self)
        default:
            for i in 0..<size { (host + i).storeBytes(of: UInt8(truncatingIfNeeded: value >> UInt64(8 * i)), as: UInt8.self) }
        }
        noteStore(op, gpa, size)
        return true
    }
    /// An operand of RAM in one page that has been found to be writable, for an atomic update behind the TLB's back. nil when it is none, or a fault was
    /// raised.
    func beginUpdate(_ op: Op, _ address: UInt64, _ size: Int) -> (host: UnsafeMutableRawPointer, gpa: UInt64)? {
        let linear = cut(address)
        // Lock-step has one processor, and notes what stores overwrite.
        guard lockStep == nil, Int(linear & 4095) + size <= 4096 else { return nil }
        if breakpoints.watchesData, !mayAccess(op, linear, size, isWrite: true) { return nil }
        guard let (gpa, host) = fill(op, linear, .write), let host else { return nil }
        return (host, gpa)
    }
    /// When a store hit the code that it belongs to, the operation after it becomes the way out of the (now stale) block.
    func noteStore(_ op: Op, _ gpa: UInt64, _ size: Int) {
        guard memory.noteWrite(gpa, size) else { return }
        lockStep?.noteOnce()
        if op != systemOp, !isCurrent(blockStart(op)) { (op + 1).pointee.fn = leaveBlock }
    }
    /// The first operation of the block that an operation belongs to: before the instructions' own, which have lengths.
    private func blockStart(_ op: Op) -> Op {
        var start = op
        while start.pointee.len > 0 { start -= 1 }
        return start
    }
}

/// Ends a block whose code changed under it.
let leaveBlock: Handler = { op, s in
    s.pointee.rip = instructionRIP(op, s)
    return 0
}

@inline(__always) func core(_ s: CPU) -> X86Core {
    // SAFETY: the core owns the state and clears the pointer when it goes.
    Unmanaged<X86Core>.fromOpaque(s.pointee.core.unsafelyUnwrapped).takeUnretainedValue()
}
/// The same without reference counting, for what guests do often.
@inline(__always) func withCore<R>(_ s: CPU, _ body: (X86Core) -> R) -> R {
    Unmanaged<X86Core>.fromOpaque(s.pointee.core.unsafelyUnwrapped)._withUnsafeGuaranteedRef(body)
}
/// Not inlined: the local that clock_gettime fills would keep a handler from ending in a jump.
@inline(never) func timeStampCounter(_ s: CPU) -> UInt64 {
    let product = (cx_monotonic() &- s.pointee.tsc_origin).multipliedFullWidth(by: s.pointee.tsc_scale)
    return s.pointee.tsc_start &+ (product.high << 32 | product.low >> 32)
}
@inline(never) func slowLoad(_ op: Op, _ s: CPU, _ linear: UInt64, _ size: Int) -> UInt64 {
    core(s).load(op, linear, size, .read)
}
@inline(never) func slowLoadForWrite(_ op: Op, _ s: CPU, _ linear: UInt64, _ size: Int) -> UInt64 {
    core(s).load(op, linear, size, .write)
}
@inline(never) func beginUpdate(_ op: Op, _ s: CPU, _ linear: UInt64, _ size: Int) -> (host: UnsafeMutableRawPointer, gpa: UInt64)? {
    core(s).beginUpdate(op, linear, size)
}
@inline(never) func endUpdate(_ op: Op, _ s: CPU, _ gpa: UInt64, _ size: Int) { core(s).noteStore(op, gpa, size) }
@inline(never) func beginSplitUpdate(_ s: CPU) { core(s).memory.lockSplitUpdates() }
@inline(never) func endSplitUpdate(_ s: CPU) { core(s).memory.unlockSplitUpdates() }
@inline(never) func slowStore(_ op: Op, _ s: CPU, _ linear: UInt64, _ value: UInt64, _ size: Int) -> Bool {
    core(s).store(op, linear, value, size)
}
