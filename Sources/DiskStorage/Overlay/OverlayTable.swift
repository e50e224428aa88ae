import Synchronization

/// Where each cluster of an overlay's disk is: in the base, nowhere (zeroes), or in a cluster of the overlay's file, from 1 on.
/// Reading is free of locks; who changes an entry holds the overlay's lock.
final class OverlayTable: @unchecked Sendable {  // entries are atomic
    static let inBase: UInt32 = 0
    static let zeroes: UInt32 = .max
    private let entries: UnsafeMutablePointer<Atomic<UInt32>>
    let count: Int

    init(_ values: [UInt32]) {
        count = values.count
        entries = .allocate(capacity: max(count, 1))
        for (index, value) in values.enumerated() { (entries + index).initialize(to: Atomic(value)) }
    }
    deinit {
        entries.deinitialize(count: count)
        entries.deallocate()
    }
    subscript(_ index: Int) -> UInt32 {
        get { entries[index].load(ordering: .acquiring) }
        set { entries[index].store(newValue, ordering: .releasing) }
    }
}
