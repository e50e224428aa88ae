/// What a guest says of its memory, by tag. VIRTIO 1.2 § 5.5.6.4. Numbers of a guest's: nothing may rely on them.
package struct GuestMemoryStatistics: Equatable, Sendable {
    package var values: [UInt16: UInt64] = [:]
    package init() {}

    package enum Tag {
        package static let swappedIn: UInt16 = 0
        package static let swappedOut: UInt16 = 1
        package static let majorFaults: UInt16 = 2
        package static let minorFaults: UInt16 = 3
        package static let free: UInt16 = 4
        package static let total: UInt16 = 5
        package static let available: UInt16 = 6
        package static let caches: UInt16 = 7
    }
}
