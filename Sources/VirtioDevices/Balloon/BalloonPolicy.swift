/// How much memory a guest keeps when the host is short of it: halves what the guest could spare at each call of need, and gives
/// back by steps when the host has been calm for a while.
package struct BalloonPolicy: Sendable {
    /// Bytes: the machine's memory, and what the guest keeps in any case.
    package let memorySize: UInt64
    package let minimum: UInt64
    /// Bytes that the guest may use now.
    package private(set) var limit: UInt64
    /// What the guest must have available beyond what is taken, so that it is not pushed to the edge.
    private static let reserve: UInt64 = 64 << 20

    package init(memorySize: UInt64, minimum: UInt64) {
        self.memorySize = memorySize
        self.minimum = min(minimum, memorySize)
        limit = memorySize
    }
    package var isHolding: Bool { limit < memorySize }

    /// The host is short of memory.
    /// - Parameter available: what the guest says it could spare, in bytes; nil when it does not say.
    package mutating func hostIsShort(available: UInt64?) {
        let spare = min(available ?? limit / 8, limit)
        guard spare > Self.reserve else { return }
        let wanted = limit - (spare - Self.reserve) / 2
        limit = max(wanted & ~((1 << 20) - 1), minimum)
    }
    /// The host has been calm for a while.
    package mutating func hostIsCalm() { limit = min(memorySize, limit + max(memorySize / 8, 64 << 20)) }
}
