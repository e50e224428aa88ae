import CX86

/// Where the jump caches keep an address: function entries have equal low bits, so those alone will not do.
enum JumpHash {
    static let factor: UInt32 = 0x9E37_79B1
    static let shift: UInt32 = 32 - UInt32(X86_JCACHE_BITS)
    @inline(__always) static func index(_ rip: UInt64) -> Int { Int((UInt32(truncatingIfNeeded: rip) &* factor) &>> shift) }
}

/// The jump cache of one privilege: which block begins at an address.
///
/// It holds what is known of many address spaces at once. Each has a number of its own, its *salt*, that changes where its addresses
/// belong: what another has at the same address is never found there, and forgetting all of an address space takes a new salt.
struct JumpTable {
    private static let size = Int(X86_JCACHE_SIZE)
    var places: UnsafeMutablePointer<x86_jump> = UnsafeMutablePointer(bitPattern: 64).unsafelyUnwrapped
    /// Even, so that a place and the one beside it are one address space's for an address; below half the size, see `empty`.
    private(set) var salt = 0
    private var newest = 0
    /// What the addresses mean: all entries of this salt are of one kind of code.
    private(set) var code = CodeKind.bits16
    private var base: UInt64 = 0

    func makeTable() { for index in 0..<Self.size / 2 { empty(index) } }
    /// The first operations of the blocks at a jump cache's places.
    @inline(__always) static func operations(_ places: UnsafeMutablePointer<x86_jump>) -> UnsafeMutablePointer<Op?> {
        (UnsafeMutableRawPointer(places) + Int(X86_JCACHE_OPERATIONS)).assumingMemoryBound(to: Op?.self)
    }
    /// Puts the block where its address belongs, and what was there into the place beside it.
    func insert(_ rip: UInt64, _ first: Op) {
        let index = JumpHash.index(rip) ^ salt
        if places[index].rip != rip, !isEmpty(index) {
            places[index ^ 1] = places[index]
            Self.operations(places)[index ^ 1] = Self.operations(places)[index]
        } else if places[index ^ 1].rip == rip {
            empty(index ^ 1)
        }
        put(first, rip, index)
    }
    /// Code of 16 bits, or in segments that begin elsewhere, is never translated: nothing reads its way in.
    private func put(_ first: Op, _ rip: UInt64, _ index: Int) {
        places[index] = x86_jump(rip: rip, code: first.pointee.imm)
        Self.operations(places)[index] = first
    }
    /// The block has other code now.
    func renew(_ rip: UInt64, _ first: Op) {
        let index = JumpHash.index(rip) ^ salt
        for place in [index, index ^ 1] where places[place].rip == rip && Self.operations(places)[place] == first { put(first, rip, place) }
    }
    /// Whether addresses are those of code that is translated.
    var isFlat: Bool { code.isTranslated && base == 0 }
    var hasNewSalt: Bool { newest + 2 < Self.size / 2 }
    /// An address space that was left.
    mutating func use(_ salt: Int, _ code: CodeKind) { (self.salt, self.code, base) = (salt, code, 0) }
    /// Nothing is known of this address space. Without a new salt, of none.
    mutating func clear() {
        if hasNewSalt {
            newest += 2
        } else {
            for index in 0..<Self.size { empty(index) }
            newest = 0
        }
        salt = newest
    }
    /// Whatever the salt, address 0 belongs to the first half of the table, address 1 to the second.
    private func empty(_ index: Int) { places[index].rip = Self.elsewhere(index) }
    private func isEmpty(_ index: Int) -> Bool { places[index].rip == Self.elsewhere(index) }
    private static func elsewhere(_ index: Int) -> UInt64 { index < size / 2 ? 1 : 0 }
    /// Empties the entries of the page of `linear`, and of instructions that may go on there.
    func forget(_ linear: UInt64) {
        for offset in 0..<UInt64(4096 + 14) {
            let rip = linear & ~4095 &- 14 &+ offset
            let index = JumpHash.index(rip) ^ salt
            if places[index].rip == rip { empty(index) }
            if places[index ^ 1].rip == rip { empty(index ^ 1) }
        }
    }
    /// True when addresses meant something else until now: then it must be cleared.
    mutating func setCode(_ code: CodeKind, base: UInt64) -> Bool {
        defer { (self.code, self.base) = (code, base) }
        // By number: a call of != would have each caller ask at run time whether it is alone here.
        return code.rawValue != self.code.rawValue || base != self.base
    }
}

// What the core knows of where code is, and how it forgets that.
extension X86Core {
    func noteBlock(_ rip: UInt64, _ first: Op) {
        if state.pointee.cpl == 3 { userJumps.insert(rip, first) } else { supervisorJumps.insert(rip, first) }
    }
    /// A block has other code than when it was noted.
    func renewBlock(_ rip: UInt64, _ first: Op) {
        if state.pointee.cpl == 3 { userJumps.renew(rip, first) } else { supervisorJumps.renew(rip, first) }
    }
    /// Forgets where a privilege's code goes on in a page.
    func forgetJumps(_ linear: UInt64, user: Bool) {
        if state.pointee.mode != 2 { return newContext() }
        switch (user, userJumps.isFlat) {
        case (false, _): supervisorJumps.forget(linear)
        case (true, true):
            userJumps.forget(linear)
            userPlacesAreSure = false
        case (true, false): clearUserJumps()
        }
        translations?.unlinkCrossing(user: user)
        returns.forget(state, user: user)
    }
    /// Forgets where all of a privilege's code is.
    func dropCode(user: Bool) {
        if user {
            clearUserJumps()
            return forgetUserPlaces { $0.unlinkCrossing(user: true) }
        }
        supervisorJumps.clear()
        supervisorPages.clear()
        supervisorPlaces.clear()
        translations?.unlinkCrossing(user: false)
        returns.forget(state, user: false)
        updateSalt()
    }
    /// The same of the user's, for another address space's: edges between pages stay linked where they may.
    func leaveUserCode() {
        clearUserJumps()
        forgetUserPlaces { $0.leaveAddressSpace() }
    }
    /// The user's code is that of an address space which was left.
    func takeUserCode(salt: Int, _ code: CodeKind) {
        userJumps.use(salt, code)
        forgetUserPlaces { $0.leaveAddressSpace() }
    }
    /// Without a new salt, what other address spaces hold goes, too.
    private func clearUserJumps() {
        if !userJumps.hasNewSalt { savedContexts.removeAll() }
        userJumps.clear()
        updateSalt()
    }
    private func updateSalt() { state.pointee.jump_salt = UInt32(2 * (state.pointee.cpl == 3 ? userJumps.salt : supervisorJumps.salt)) }
    /// A privilege's code is of another kind now. Apart from what each change of privilege does.
    @inline(never) private func leaveCode(user: Bool) {
        if user { clearUserJumps() } else { supervisorJumps.clear() }
        // No return leads to code of the other kind.
        state.pointee.return_stack = ReturnStack.base(state.pointee.return_stack)
    }
    private func forgetUserPlaces(_ unlink: (TranslationCache) -> Void) {
        userPages.clear()
        userPlaces.clear()
        userPlacesAreSure = true
        if let translations { unlink(translations) }
        returns.forget(state, user: true)
    }
    func newContext() {
        for user in [false, true] { dropCode(user: user) }
        supervisorRunsPrivatePages = false
        updateContext()
    }
    /// After a change of privilege or code segment: the tables that go with it.
    func updateContext() {
        let s = state
        let (code, base) = (CodeKind(s), s.pointee.mode == 2 ? 0 : segment(SegmentRegister.cs).pointee.base)
        returns.select(s, user: s.pointee.cpl == 3)
        if s.pointee.cpl == 3 {
            if userJumps.setCode(code, base: base) { leaveCode(user: true) }
            s.pointee.jcache = userJumps.places
            s.pointee.tlb = s.pointee.tlb_user
        } else {
            if supervisorJumps.setCode(code, base: base) { leaveCode(user: false) }
            s.pointee.jcache = supervisorJumps.places
            s.pointee.tlb = s.pointee.tlb_supervisor
        }
        updateSalt()
    }
}
