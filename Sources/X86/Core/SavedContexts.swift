import CX86

/// Where the user's code was in address spaces that the guest has left, for when it comes back to them, and by what salt the jump cache has
/// that. Processes take turns thousands of times a second, and looking for all their blocks anew costs more than the rest of a change of CR3.
///
/// It is no TLB: before something is used again, the page tables are asked whether all pages that it runs from are where they were, unless
/// the guest says so (`changeUserCode`).
struct SavedContexts {
    struct Page {
        var page: UInt
        var linear: UInt64
    }
    struct Context {
        /// All ones: none.
        var cr3 = UInt64.max
        var salt = 0
        var code = CodeKind.bits64
        /// What CR3 was; all ones if the pages may not be where they were even so.
        var identified = UInt64.max
        var pageCount = 0
        /// When it was saved.
        var age: UInt64 = 0
        /// How many neighbours there were for edges between pages (`TranslationCache.newest`).
        var neighbours = 0
        /// How often it has been used since it was begun.
        var turns = 0
        let pages: UnsafeMutablePointer<Page>
    }
    /// Programs that use more run for longer, too.
    static let mostPages = 8192
    /// After so many it is begun anew: what the program no longer runs would be kept for ever, and looked after each time.
    static let mostTurns = 512
    private static let capacity = 64
    private static let bytes = UInt(capacity * mostPages * MemoryLayout<Page>.stride)

    /// Taken as it is used.
    private let memory = cx_map_zeroed(bytes)
    private let contexts: UnsafeMutablePointer<Context> = .allocate(capacity: capacity)
    private var clock: UInt64 = 0
    /// Of the context that is in use.
    var turns = 0

    init() {
        let pages = memory.bindMemory(to: Page.self, capacity: Self.capacity * Self.mostPages)
        for n in 0..<Self.capacity { (contexts + n).initialize(to: Context(pages: pages + n * Self.mostPages)) }
    }
    func deallocate() {
        contexts.deallocate()
        cx_unmap(memory, Self.bytes)
    }
    /// Their memory goes back to the host.
    func removeAll() {
        for n in 0..<Self.capacity { contexts[n].cr3 = .max }
        cx_discard(memory, Self.bytes, 0)
    }

    /// The context of an address space, no longer kept.
    mutating func take(_ cr3: UInt64) -> Context? {
        for n in 0..<Self.capacity where contexts[n].cr3 == cr3 {
            contexts[n].cr3 = .max
            return contexts[n]
        }
        return nil
    }
    /// Room for one, instead of the one that was saved first.
    mutating func make(_ cr3: UInt64) -> UnsafeMutablePointer<Context> {
        var oldest = 0
        for n in 0..<Self.capacity {
            if contexts[n].cr3 == cr3 || contexts[n].cr3 == .max {
                oldest = n
                break
            }
            if contexts[n].age < contexts[oldest].age { oldest = n }
        }
        clock += 1
        contexts[oldest].cr3 = cr3
        contexts[oldest].age = clock
        return contexts + oldest
    }
}

// What stays of the jump caches when the TLB does not.
extension X86Core {
    /// CR3 was changed and the TLB emptied: the user's code is another, or the same.
    ///
    /// - Parameter isKnown: the guest says that the new address space is as it was when it left it.
    func changeUserCode(from old: UInt64, isKnown: Bool) {
        let new = state.pointee.cr3 & PTE.address
        guard old & PTE.address != new else { return isInPlace(user: true) ? () : leaveUserCode() }
        saveUserCode(old)
        savedContexts.turns = 0
        if let saved = savedContexts.take(new), saved.turns < SavedContexts.mostTurns, isKnown && saved.identified == state.pointee.cr3 || isInPlace(saved) {
            restoreUserCode(saved)
        } else {
            leaveUserCode()
        }
    }
    private func saveUserCode(_ cr3: UInt64) {
        let pages = userPlaces.count
        guard pages > 0, pages <= SavedContexts.mostPages, !userPlaces.hasSeveral, userJumps.isFlat else { return }
        let saved = savedContexts.make(cr3 & PTE.address)
        saved.pointee.identified = userPlacesAreSure ? cr3 : .max
        for n in 0..<pages { saved.pointee.pages[n] = SavedContexts.Page(page: userPlaces[n].page, linear: userPlaces[n].linear) }
        saved.pointee.neighbours = translations?.newest ?? 0
        (saved.pointee.salt, saved.pointee.code, saved.pointee.pageCount, saved.pointee.turns) = (userJumps.salt, userJumps.code, pages, savedContexts.turns)
    }
    private func restoreUserCode(_ saved: SavedContexts.Context) {
        takeUserCode(salt: saved.salt, saved.code)
        for n in 0..<saved.pageCount {
            _ = userPlaces.note(saved.pages[n].page, at: saved.pages[n].linear)
            userPages.insert(saved.pages[n].linear)
        }
        translations?.keep(since: saved.neighbours) { userPlaces.place(of: $0) }
        savedContexts.turns = saved.turns + 1
    }
    /// Of a page that the user's code runs from at an address, now that this is known: edges to where other pages are stay linked.
    func keepEdges(_ page: UInt, at linear: UInt64) { translations?.keep(page, at: linear) { userPlaces.place(of: $0) } }
    private func isInPlace(_ saved: SavedContexts.Context) -> Bool {
        for n in 0..<saved.pageCount where place(saved.pages[n].page, saved.pages[n].linear, user: true) == nil { return false }
        return true
    }

    /// Whether all pages that a privilege runs code from are where they were.
    func isInPlace(user: Bool) -> Bool {
        let places = user ? userPlaces : supervisorPlaces
        guard !places.hasSeveral else { return false }
        var areGlobal = true
        for n in 0..<places.count {
            guard let translation = place(places[n].page, places[n].linear, user: user) else { return false }
            areGlobal = areGlobal && translation.global
        }
        if !user { supervisorRunsPrivatePages = !areGlobal }
        return true
    }
    /// How an address leads to a page of code; nil where it does not.
    private func place(_ page: UInt, _ linear: UInt64, user: Bool) -> Translation? {
        guard case .ok(let translation) = translate(linear, .fetch, user: user), let number = memory.page(translation.gpa), memory.versionCell(number) == page
        else { return nil }
        // INVLPG has to drop all of it, though the TLB knows none of it any more.
        if linear >> 47 == 0 { noteLowerHalf(translation, linear) }
        return translation
    }
}
