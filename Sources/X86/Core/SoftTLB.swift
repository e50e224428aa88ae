import CX86

/// What the low bits of an entry's `gpa` say.
enum TLBBit {
    /// The mapping stays when CR3 changes.
    static let global: UInt64 = 1
    /// Instructions may be fetched from it.
    static let executable: UInt64 = 2
}

/// A page's place in a TLB table.
struct TLBEntry {
    private let cells: UnsafeMutablePointer<UInt64>

    @inline(__always) init(_ table: UnsafeMutablePointer<UInt64>, _ index: Int) { cells = table + index }
    @inline(__always) static func index(_ linear: UInt64) -> Int { Int(truncatingIfNeeded: (linear &>> 12) & UInt64(X86_TLB_SIZE - 1)) }

    private static let column = Int(X86_TLB_COLUMN) / 8
    @inline(__always) var readTag: UInt64 { cells[0] }
    @inline(__always) var writeTag: UInt64 { cells[Self.column] }
    /// From linear to host addresses.
    @inline(__always) var delta: UInt64 { cells[2 * Self.column] }
    @inline(__always) var gpa: UInt64 { cells[3 * Self.column] }

    func set(_ tag: UInt64, writeTag: UInt64, delta: UInt64, gpa: UInt64) {
        cells[0] = tag
        cells[Self.column] = writeTag
        cells[2 * Self.column] = delta
        cells[3 * Self.column] = gpa
    }
    /// Nothing looks at the rest of an entry whose tags match no address.
    func clear(_ index: Int) {
        cells[0] = Self.never(index)
        cells[Self.column] = Self.never(index)
    }
    func isEmpty(_ index: Int) -> Bool { cells[0] == Self.never(index) || (cells[0] == 0 && index != 0) }
    func dropWriteTag(_ index: Int) { cells[Self.column] = Self.never(index) }
    /// Zeroes are empty entries, but for the first: page 0 belongs there.
    static func makeTable(_ zeroes: UnsafeMutablePointer<UInt64>) { TLBEntry(zeroes, 0).clear(0) }
    /// No address that belongs here has these bits.
    private static func never(_ index: Int) -> UInt64 { UInt64((index ^ 1) << 12) }
}

/// Which entries of a TLB were filled since it was emptied, so that emptying it costs what filling it did.
struct FilledEntries {
    /// A gigabyte's pages.
    private let capacity = 1 << 18
    /// Taken as it is used.
    private let indices: UnsafeMutablePointer<UInt32>
    private(set) var count = 0

    init() {
        indices = cx_map_zeroed(UInt(capacity * MemoryLayout<UInt32>.stride)).bindMemory(to: UInt32.self, capacity: capacity)
    }
    func deallocate() { cx_unmap(indices, UInt(capacity * MemoryLayout<UInt32>.stride)) }
    /// Gives the list's memory back, too.
    mutating func release() {
        count = 0
        cx_discard(indices, UInt(capacity * MemoryLayout<UInt32>.stride), 0)
    }
    /// False when there is no more room: then the whole table counts as filled.
    mutating func append(_ index: Int) -> Bool {
        guard count < capacity else { return false }
        indices[count] = UInt32(truncatingIfNeeded: index)
        count += 1
        return true
    }
    subscript(_ n: Int) -> Int { Int(indices[n]) }
    mutating func shrink(to n: Int) { count = n }
}

// The soft TLB: a table for each privilege, direct-mapped by page number. SDM vol. 3 § 4.10.
extension X86Core {
    /// Empties the base caches of translated code. A tag always matches some page: an empty one a page of non-canonical
    /// addresses drawn by lot, which no guest knows, and there it leads to a page of our own that holds nothing.
    func dropBaseCaches() {
        let host = UInt64(UInt(bitPattern: scratchPage))
        let window = x86_base_cache(tag_r: nowhere, way_r: host &- nowhere, tag_w: nowhere, way_w: host &- nowhere)
        let named = x86_base_cache(tag_r: nowhere, way_r: host, tag_w: nowhere, way_w: host)
        state.pointee.stack_cache = (window, window)
        translations?.operandCaches.emptyAll()
        let caches = UnsafeMutableRawPointer(state).advanced(by: Int(X86_BASE_CACHE_OFFSET)).assumingMemoryBound(to: x86_base_cache.self)
        for kind in 0..<(usesNarrowCaches ? 3 : 2) {
            let first = caches + kind * Int(X86_BASE_CACHES)
            first.update(repeating: window, count: Int(X86_WINDOW_CACHES))
            (first + Int(X86_WINDOW_CACHES)).update(repeating: named, count: Int(X86_NAMED_CACHES))
        }
        usesNarrowCaches = state.pointee.narrow != 0
    }

    private static func clear(_ table: UnsafeMutablePointer<UInt64>, _ filled: inout FilledEntries) {
        for n in 0..<filled.count { TLBEntry(table, filled[n]).clear(filled[n]) }
        filled.shrink(to: 0)
    }
    /// More than are emptied one by one: the table's memory is given back instead.
    private static let many = 32768
    private func clearUser() {
        if filledUser.count > Self.many { releaseTLB(user: true) } else { Self.clear(state.pointee.tlb_user, &filledUser) }
    }
    /// Empties a table by giving its memory back.
    private static func release(_ table: UnsafeMutablePointer<UInt64>) {
        cx_discard(table, UInt(X86_TLB_BYTES), 0)
        TLBEntry.makeTable(table)
    }
    func makeTables() {
        for table in [state.pointee.tlb_supervisor, state.pointee.tlb_user] { TLBEntry.makeTable(table) }
        supervisorJumps.makeTable()
        userJumps.makeTable()
    }

    /// Everything, global mappings too.
    ///
    /// - Parameter codeMayStay: nothing has changed but page tables.
    func flushTLB(codeMayStay: Bool = false) {
        lockStep?.tablesAreStale = true
        Self.clear(state.pointee.tlb_supervisor, &filledSupervisor)
        Self.clear(state.pointee.tlb_supervisor, &filledGlobal)
        clearUser()
        savedTLBs.removeAll()
        largeRegions.clear()
        holdsGlobalUserPages = false
        dropBaseCaches()
        guard codeMayStay, state.pointee.mode == 2, isInPlace(user: false) else { return newContext() }
        if !isInPlace(user: true) { leaveUserCode() }
    }
    /// Forgets what the TLB knows and gives its memory back.
    func releaseTLB() {
        lockStep?.tablesAreStale = true
        dropBaseCaches()
        for user in [false, true] { releaseTLB(user: user) }
        savedTLBs.release()
        // Not the large regions: code is still known there.
        holdsGlobalUserPages = false
    }
    private func releaseTLB(user: Bool) {
        if user {
            filledUser.release()
            Self.release(state.pointee.tlb_user)
        } else {
            filledSupervisor.release()
            filledGlobal.release()
            Self.release(state.pointee.tlb_supervisor)
        }
    }
    /// SDM vol. 3 § 4.10.4.1.
    ///
    /// - Parameter keeps: what is known of the new process-context identifier stays.
    func writeCR3(_ value: UInt64, keeps: Bool = false) {
        let old = state.pointee.cr3
        state.pointee.cr3 = value
        let isKnown = changeUserTLB(from: old, keeps: keeps)
        flushTLBButGlobal()
        // Code that the kernel runs from global pages stays where it is.
        if supervisorRunsPrivatePages { return newContext() }
        if state.pointee.mode == 2 { changeUserCode(from: old, isKnown: isKnown) } else { dropCode(user: true) }
    }
    /// INVPCID. SDM vol. 2; vol. 3 § 4.10.4.1.
    func invalidateContext(_ type: UInt64, identifier: UInt64, linear: UInt64) {
        let isCurrent = identifier == currentIdentifier
        switch type {
        case 0 where isCurrent: invalidatePage(linear)
        case 0: savedTLBs.remove(identifier)
        case 1 where !isCurrent: savedTLBs.remove(identifier)
        case 1: writeCR3(state.pointee.cr3)
        case 2: flushTLB(codeMayStay: true)
        default:
            savedTLBs.removeAll()
            writeCR3(state.pointee.cr3)
        }
    }
    private var currentIdentifier: UInt64 { state.pointee.cr4 & ControlRegister.pcide == 0 ? 0 : state.pointee.cr3 & 0xFFF }
    /// The user's TLB holds what is known of the new address space. True when that is all it was when the guest left it.
    private func changeUserTLB(from old: UInt64, keeps: Bool) -> Bool {
        let (new, table) = (state.pointee.cr3, state.pointee.tlb_user)
        let hasIdentifiers = state.pointee.cr4 & ControlRegister.pcide != 0 && lockStep == nil
        if hasIdentifiers, (old ^ new) & 0xFFF != 0, !holdsGlobalUserPages, filledUser.count <= Self.many {
            savedTLBs.save(old, table, &filledUser)
        } else {
            clearUser()
        }
        holdsGlobalUserPages = false
        guard hasIdentifiers, keeps, savedTLBs.restore(new, table, &filledUser) else {
            savedTLBs.remove(new & 0xFFF)
            return false
        }
        return true
    }
    /// Of the supervisor's: only the upper half keeps mappings, see `enter`.
    private func flushTLBButGlobal() {
        lockStep?.tablesAreStale = true
        dropBaseCaches()
        // Of an entry that has become a global one since, the list does not know.
        let supervisor = state.pointee.tlb_supervisor
        for n in 0..<filledSupervisor.count {
            let index = filledSupervisor[n]
            if TLBEntry(supervisor, index).gpa & TLBBit.global == 0 { TLBEntry(supervisor, index).clear(index) }
        }
        filledSupervisor.shrink(to: 0)
    }
    func noteFill(_ linear: UInt64, isGlobal: Bool) {
        let index = TLBEntry.index(linear)
        lockStep?.noteFill(index, state.pointee.tlb)
        let user = state.pointee.cpl == 3
        if append(index, user, isGlobal) { return }
        // The list is full: start anew. A TLB may forget at any time.
        dropBaseCaches()
        releaseTLB(user: user)
        _ = append(index, user, isGlobal)
    }
    private func append(_ index: Int, _ user: Bool, _ isGlobal: Bool) -> Bool {
        user ? filledUser.append(index) : (isGlobal ? filledGlobal.append(index) : filledSupervisor.append(index))
    }
    /// Of a page, whichever privilege has it.
    func dropTLBEntries(_ linear: UInt64) {
        let index = TLBEntry.index(linear)
        TLBEntry(state.pointee.tlb_supervisor, index).clear(index)
        TLBEntry(state.pointee.tlb_user, index).clear(index)
    }
    func invalidatePage(_ linear: UInt64) {
        lockStep?.tablesAreStale = true
        // One INVLPG drops a large page whole, which may be many entries here. Kernels flush everything when they change
        // large pages of their own half.
        if linear >> 47 == 0, largeRegions.mayContain(linear) { return invalidateLargePage(linear) }
        dropTLBEntries(linear)
        dropBaseCaches()
        if userPages.mayContain(linear) { forgetJumps(linear, user: true) }
        if supervisorPages.mayContain(linear) { forgetJumps(linear, user: false) }
    }
    private func invalidateLargePage(_ linear: UInt64) {
        let runsCode = userPages.mayContainRegion(linear) || supervisorPages.mayContainRegion(linear)
        if runsCode || largeRegions.areTooMany { return flushTLB(codeMayStay: true) }
        dropBaseCaches()
        let first = TLBEntry.index(linear & ~(LargeRegions.size - 1))
        let region = first..<first + Int(LargeRegions.size >> 12)
        Self.clear(state.pointee.tlb_supervisor, region)
        Self.clear(state.pointee.tlb_user, region)
    }
    private static func clear(_ table: UnsafeMutablePointer<UInt64>, _ region: Range<Int>) {
        for index in region where !TLBEntry(table, index).isEmpty(index) { TLBEntry(table, index).clear(index) }
    }
    func dropWriteTags(_ gpa: UInt64, _ page: Int) {
        guard writtenPages.contains(page) else { return }
        dropWriteTags { $0 == gpa }
        writtenPages.remove(page)
    }
    func dropAllWriteTags() {
        dropWriteTags { _ in true }
        writtenPages.removeAll()
    }
    private func dropWriteTags(where isMeant: (UInt64) -> Bool) {
        dropBaseCaches()
        savedTLBs.dropWriteTags()
        Self.dropWriteTags(state.pointee.tlb_supervisor, filledSupervisor, isMeant)
        Self.dropWriteTags(state.pointee.tlb_supervisor, filledGlobal, isMeant)
        Self.dropWriteTags(state.pointee.tlb_user, filledUser, isMeant)
    }
    private static func dropWriteTags(_ table: UnsafeMutablePointer<UInt64>, _ filled: FilledEntries, _ isMeant: (UInt64) -> Bool) {
        for n in 0..<filled.count {
            let index = filled[n]
            let entry = TLBEntry(table, index)
            if isMeant(entry.gpa & ~4095) { entry.dropWriteTag(index) }
        }
    }
}
