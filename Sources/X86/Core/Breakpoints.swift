import CX86

/// What debug registers say: where code, or data, is to raise a debug exception. SDM vol. 3 § 18.2.
///
/// Nothing that runs fast knows of them. A page with a data breakpoint is never in the TLB: whoever accesses it comes by here, and
/// begins anew as an instruction by itself, behind which the exception is raised. In a page with a code breakpoint each instruction is
/// a block by itself, which no cache holds.
struct Breakpoints: Equatable {
    private struct Place: Equatable {
        /// Of DR0–DR3.
        var number: Int
        var range: Range<UInt64>
        var kind: Kind
    }
    private enum Kind: UInt64 { case code, write, port, access }
    private var places: [Place] = []
    private(set) var watchesData = false
    private(set) var watchesCode = false

    init() {}
    init(_ addresses: [UInt64], control: UInt64) {
        for number in 0..<4 where control >> UInt64(2 * number) & 3 != 0 {
            let kind = Kind(rawValue: control >> UInt64(16 + 4 * number) & 3) ?? .access
            let length = [1, 2, 8, 4][Int(control >> UInt64(18 + 4 * number) & 3)] as UInt64
            let start = kind == .code ? addresses[number] : addresses[number] & ~(length - 1)
            // Not the last byte of all: no access ends there.
            guard kind != .port, start < .max - 8 else { continue }
            places.append(Place(number: number, range: start..<start + length, kind: kind))
            if kind == .code { watchesCode = true } else { watchesData = true }
        }
    }
    /// Pages whose data, or code, is watched, by addresses in them.
    func pages(ofCode: Bool) -> [UInt64] { places.filter { ($0.kind == .code) == ofCode }.map { $0.range.lowerBound & ~4095 } }
    func watchesPage(_ linear: UInt64, ofCode: Bool) -> Bool {
        places.contains { ($0.kind == .code) == ofCode && $0.range.lowerBound & ~4095 == linear & ~4095 }
    }
    /// Bits of DR6 for an access.
    func hits(_ linear: UInt64, _ size: Int, isWrite: Bool) -> UInt64 {
        // An access that goes over the end of addresses wraps; its parts come one by one.
        let (end, wraps) = linear.addingReportingOverflow(UInt64(size))
        return bits { $0.kind != .code && (isWrite || $0.kind == .access) && linear < $0.range.upperBound && (wraps || end > $0.range.lowerBound) }
    }
    /// The same for an instruction.
    func hits(_ linear: UInt64) -> UInt64 { bits { $0.kind == .code && $0.range.lowerBound == linear } }
    private func bits(_ isHit: (Place) -> Bool) -> UInt64 { places.reduce(0) { isHit($1) ? $0 | 1 << UInt64($1.number) : $0 } }
}

extension X86Core {
    /// A debug register was written.
    func updateBreakpoints() {
        let d = state.pointee.dr
        let new = Breakpoints([d.0, d.1, d.2, d.3], control: d.7)
        guard new != breakpoints else { return }
        breakpoints = new
        if new.watchesData {
            dropBaseCaches()
            savedTLBs.removeAll()
            for linear in new.pages(ofCode: false) { dropTLBEntries(linear) }
        }
        // What is known of the page's blocks: found anew, they are noted nowhere.
        if new.watchesCode { newContext() }
    }
    /// Before an access to a page that the TLB does not have. False when the instruction has to begin anew.
    func mayAccess(_ op: Op, _ linear: UInt64, _ size: Int, isWrite: Bool) -> Bool {
        guard op != systemOp, breakpoints.watchesPage(linear, ofCode: false) else { return true }
        if isAlone {
            breakpointHits |= breakpoints.hits(linear, size, isWrite: isWrite)
            return true
        }
        state.pointee.fault_op = op
        state.pointee.exit_reason = ExitReason.again
        return false
    }
    /// Whether an instruction has a breakpoint: then its exception is raised instead.
    func stopsBefore(_ linear: UInt64) -> Bool {
        let hits = breakpoints.hits(linear)
        guard hits != 0, !hasLoadedSS, state.pointee.rflags & EFlags.rf == 0 else { return false }
        raiseDebug(hits)
        return true
    }
    func raiseDebug(_ reasons: UInt64) {
        showReasons(reasons)
        deliver(vector: Vector.debug, error: nil, software: false, rip: state.pointee.rip)
    }
    private func showReasons(_ reasons: UInt64) { state.pointee.dr.6 = state.pointee.dr.6 & ~0xF | reasons }
    /// INT1 raises the exception that breakpoints would have raised behind it.
    func takeBreakpointHits() {
        if breakpointHits != 0 { showReasons(breakpointHits) }
        breakpointHits = 0
    }
    /// An instruction that ran by itself has ended, without an exception of its own.
    func endAlone(isStep: Bool) {
        // A breakpoint's exception waits, and is raised even if that is in the kernel then; a step's is not raised.
        if hasLoadedSS { return isAlone = breakpointHits != 0 }
        let reasons = breakpointHits | (isStep ? 1 << 14 : 0)
        breakpointHits = 0
        if reasons != 0 { raiseDebug(reasons) }
    }
}
