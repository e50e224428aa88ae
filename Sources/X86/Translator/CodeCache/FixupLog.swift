/// Places in the code of the block that is being translated that name something outside: what has to change when another processor takes
/// that code over.
struct FixupLog {
    enum Target {
        /// By its distance, 32 bits.
        case address(Int)
        /// One of the block's operations, by where it lies among all: 32 bits.
        case operation
        /// The same, and behind it a jump to what all blocks share.
        case exit
        /// An edge, by its number, above where in its page it leads: 32 bits.
        case edge
    }
    struct Entry {
        var place: UnsafeMutablePointer<UInt8>
        var target: Target
    }
    private let entries: UnsafeMutablePointer<Entry>
    private(set) var count = 0
    /// More than nearly all blocks have. The others stay their processor's own.
    private static let most = 2048

    init() { entries = .allocate(capacity: Self.most) }
    func deallocate() { entries.deallocate() }

    /// nil when there were too many.
    var all: UnsafeBufferPointer<Entry>? { count <= Self.most ? UnsafeBufferPointer(start: entries, count: count) : nil }
    mutating func removeAll() { count = 0 }
    mutating func note(_ place: UnsafeMutablePointer<UInt8>, _ target: Target) {
        if count < Self.most { (entries + count).initialize(to: Entry(place: place, target: target)) }
        count += 1
    }
}
