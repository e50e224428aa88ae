import CX86

/// What the user's TLB held for process-context identifiers that the guest has left, for when it comes back to them without having what they
/// know dropped (bit 63 of CR3). SDM vol. 3 § 4.10.1, 4.10.4.1. Kernels give their running processes a handful of identifiers in turn.
struct SavedTLBs {
    private struct Entry {
        var index: Int
        var readTag, writeTag, delta, gpa: UInt64
    }
    private struct Context {
        /// Address of the tables and identifier, as in CR3; all ones: none.
        var cr3 = UInt64.max
        var count = 0
        var age: UInt64 = 0
        /// Of `writeTags`, when it was saved.
        var writeTags: UInt64 = 0
    }
    /// A process that uses more pages runs for longer, too.
    private static let mostEntries = 1024
    /// Linux has six in use.
    private static let capacity = 8
    private static let bytes = UInt(capacity * mostEntries * MemoryLayout<Entry>.stride)

    /// Taken as it is used.
    private let memory = cx_map_zeroed(bytes)
    private let entries: UnsafeMutablePointer<Entry>
    private var contexts: InlineArray<8, Context> = InlineArray(repeating: Context())
    private var clock: UInt64 = 0
    private var isEmpty = true
    /// Changes when write tags are dropped: those that are saved count no more.
    private var writeTags: UInt64 = 0

    init() { entries = memory.bindMemory(to: Entry.self, capacity: Self.capacity * Self.mostEntries) }
    func deallocate() { cx_unmap(memory, Self.bytes) }

    mutating func removeAll() {
        if isEmpty { return }
        for n in 0..<Self.capacity { contexts[n].cr3 = .max }
        isEmpty = true
    }
    /// What is known of an identifier is to be dropped.
    mutating func remove(_ identifier: UInt64) {
        for n in 0..<Self.capacity where contexts[n].cr3 & 0xFFF == identifier { contexts[n].cr3 = .max }
    }
    mutating func dropWriteTags() { writeTags &+= 1 }
    /// Their memory goes back to the host.
    mutating func release() {
        removeAll()
        cx_discard(memory, Self.bytes, 0)
    }

    /// Empties a table, which goes with a value of CR3.
    mutating func save(_ cr3: UInt64, _ table: UnsafeMutablePointer<UInt64>, _ filled: inout FilledEntries) {
        remove(cr3 & 0xFFF)
        let slot = room()
        clock += 1
        contexts[slot] = Context(cr3: cr3, age: clock, writeTags: writeTags)
        isEmpty = false
        let list = entries + slot * Self.mostEntries
        var count = 0
        for n in 0..<filled.count {
            let index = filled[n]
            let entry = TLBEntry(table, index)
            // Listed twice, or dropped since; and the next process's INVLPG drops global ones.
            guard !entry.isEmpty(index) else { continue }
            if count < Self.mostEntries, entry.gpa & TLBBit.global == 0 {
                list[count] = Entry(index: index, readTag: entry.readTag, writeTag: entry.writeTag, delta: entry.delta, gpa: entry.gpa)
                count += 1
            }
            entry.clear(index)
        }
        filled.shrink(to: 0)
        contexts[slot].count = count
    }
    /// Fills an empty table with what it held with this value of CR3; false when that is not known any more.
    mutating func restore(_ cr3: UInt64, _ table: UnsafeMutablePointer<UInt64>, _ filled: inout FilledEntries) -> Bool {
        guard let slot = (0..<Self.capacity).first(where: { contexts[$0].cr3 == cr3 }) else { return false }
        defer { contexts[slot].cr3 = .max }
        let list = entries + slot * Self.mostEntries
        let writes = contexts[slot].writeTags == writeTags
        for n in 0..<contexts[slot].count {
            guard filled.append(list[n].index) else { break }
            TLBEntry(table, list[n].index).set(list[n].readTag, writeTag: writes ? list[n].writeTag : list[n].readTag ^ 4096, delta: list[n].delta, gpa: list[n].gpa)
        }
        return true
    }
    private func room() -> Int {
        var oldest = 0
        for n in 0..<Self.capacity {
            if contexts[n].cr3 == .max { return n }
            if contexts[n].age < contexts[oldest].age { oldest = n }
        }
        return oldest
    }
}
