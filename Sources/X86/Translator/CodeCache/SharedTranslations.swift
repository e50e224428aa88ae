import CX86
import Synchronization

/// What the processors of a machine have translated, so that each need not do it anew: by the physical address of the guest's code, its
/// privilege and kind. A processor that wants a block looks here first, and takes the code over into a buffer of its own: a copy costs a tenth of
/// a translation. The code stays each processor's own, as edges between blocks are jumps in it, and which of them may be there depends on the
/// address space.
final class SharedTranslations: Sendable {
    /// A processor's code cache, as others read it.
    // SAFETY: read under the lock only, which the owner takes before it gives the memory up (`leave`). What others read of it does not change while
    // it is here, but for edges in the code, which they set anew.
    struct Member: @unchecked Sendable {
        let executable: UnsafeMutableRawPointer
        let writable: UnsafeMutableRawPointer
        let edges: UnsafeMutablePointer<TranslationCache.Edge>
    }
    private struct Slot {
        var key: UInt64
        /// Of the block's page when it was decoded. A block of the same version is the same, or a write is on its way to change the version, and
        /// with that takes it out of use.
        var version: UInt32
        /// Of the image, in words; 0 for none.
        var place: UInt32
    }
    // SAFETY: the memory is used under the lock only.
    private struct State: @unchecked Sendable {
        /// With the words that images of each take.
        var members: [(number: Int32, member: Member, words: Int)] = []
        var newest: Int32 = 0
        /// Four of them share a cache line and a hash. Both are there from the second processor on.
        var slots: UnsafeMutablePointer<Slot>?
        var images: UnsafeMutablePointer<UInt32>?
        var used = 2
        var victim = 0
    }
    private static let hashBits: UInt64 = 18
    private static let slotBytes = UInt((1 << Int(hashBits)) * MemoryLayout<Slot>.stride)
    /// Images of about what a code cache holds. All are forgotten when there are more.
    private static let imageBytes: UInt = 32 << 20
    private let state = Mutex(State())
    private let count = Atomic<Int>(0)

    deinit {
        state.withLock { state in
            if let slots = state.slots { cx_unmap(slots, Self.slotBytes) }
            if let images = state.images { cx_unmap(images, Self.imageBytes) }
        }
    }

    /// Whether there is somebody to share with.
    var isShared: Bool { count.load(ordering: .relaxed) > 1 }

    /// Returns a number that nobody else has had.
    func join(_ member: Member) -> Int32 {
        state.withLock { state in
            state.newest &+= 1
            state.members.append((state.newest, member, 0))
            if state.members.count > 1, state.slots == nil {
                state.slots = cx_map_zeroed(Self.slotBytes).bindMemory(to: Slot.self, capacity: 1 << Int(Self.hashBits))
                state.images = cx_map_zeroed(Self.imageBytes).bindMemory(to: UInt32.self, capacity: Int(Self.imageBytes) / 4)
            }
            count.store(state.members.count, ordering: .relaxed)
            return state.newest
        }
    }
    /// The member's code is going, and other code is to come. Returns its new number.
    func renew(_ number: Int32) -> Int32 {
        state.withLock { state in
            state.newest &+= 1
            if let place = state.members.firstIndex(where: { $0.number == number }) { (state.members[place].number, state.members[place].words) = (state.newest, 0) }
            // The memory goes back when most of it is of no use any more.
            if state.members.reduce(0, { $0 + $1.words }) < state.used / 2 { Self.removeAll(&state) }
            return state.newest
        }
    }
    /// The member's code is going.
    func leave(_ number: Int32) {
        state.withLock { state in
            state.members.removeAll { $0.number == number }
            count.store(state.members.count, ordering: .relaxed)
        }
    }
    /// Nobody waits here: a processor that translates a block by itself loses some microseconds, one that waits for another that has the lock and
    /// whose thread does not run, milliseconds.
    ///
    /// - Parameter words: what follows the image.
    func add(_ key: UInt64, _ version: UInt32, _ image: TranslationImage, _ words: UnsafeBufferPointer<UInt32>) {
        state.withLockIfAvailable { state in
            guard let slots = state.slots, let images = state.images, let owner = state.members.firstIndex(where: { $0.number == image.owner }) else { return }
            let size = MemoryLayout<TranslationImage>.stride / 4 + (words.count + 1) & ~1
            if (state.used + size) * 4 > Int(Self.imageBytes) { Self.removeAll(&state) }
            let place = images + state.used
            UnsafeMutableRawPointer(place).storeBytes(of: image, as: TranslationImage.self)
            if let base = words.baseAddress { (place + MemoryLayout<TranslationImage>.stride / 4).update(from: base, count: words.count) }
            let bucket = slots + Self.bucket(key)
            let free = (0..<4).first { bucket[$0].key == key || bucket[$0].place == 0 }
            if free == nil { state.victim = (state.victim + 1) & 3 }
            bucket[free ?? state.victim] = Slot(key: key, version: version, place: UInt32(truncatingIfNeeded: state.used))
            state.used += size
            state.members[owner].words += size
        }
    }
    private static func removeAll(_ state: inout State) {
        guard let slots = state.slots, let images = state.images, state.used > 2 else { return }
        cx_discard(slots, slotBytes, 0)
        cx_discard(images, imageBytes, 0)
        state.used = 2
        for place in state.members.indices { state.members[place].words = 0 }
    }
    /// Runs `body` if somebody has such an image, with what follows that. The owner's code stays as long as it takes. Nobody waits here, as in `add`.
    func take(_ key: UInt64, _ version: UInt32, _ body: (TranslationImage, UnsafePointer<UInt32>, Member) -> Void) {
        state.withLockIfAvailable { state in
            guard let slots = state.slots, let images = state.images else { return }
            let bucket = slots + Self.bucket(key)
            guard let found = (0..<4).first(where: { bucket[$0].key == key && bucket[$0].place != 0 }), bucket[found].version == version else { return }
            let place = images + Int(bucket[found].place)
            let image = UnsafeRawPointer(place).load(as: TranslationImage.self)
            guard let owner = state.members.first(where: { $0.number == image.owner }) else { return }
            body(image, place + MemoryLayout<TranslationImage>.stride / 4, owner.member)
        }
    }
    private static func bucket(_ key: UInt64) -> Int { Int((key &* 0x9E37_79B9_7F4A_7C15) >> (66 - hashBits)) * 4 }
}
