import CLinux
import GuestMemory
import Synchronization

/// A ring of what has become of commands. NVMe 1.4 § 4.6. Any thread.
final class CompletionQueue: @unchecked Sendable {  // the pointer is fixed; the rest is locked
    struct Image: Equatable, Sendable, Codable {
        var identifier: Int
        var address: UInt64
        var size: Int
        var vector: UInt16
        var signals: Bool
        var head: Int
        var tail: Int
        var phase: Bool
    }
    private let memory: GuestMemory
    private let base: UnsafeMutableRawPointer
    private let fixed: Image
    private let shadow: ShadowDoorbell?
    private struct State {
        var head: Int
        var tail: Int
        /// Of the entries that are written now.
        var phase: Bool
        /// A queue of commands stands still for want of room.
        var isAwaited = false
        /// The driver was not told of the newest.
        var isNews = false
    }
    private let state: Mutex<State>
    private let signal: @Sendable (UInt16) -> Void
    var identifier: Int { fixed.identifier }

    /// nil when the ring is not in memory.
    ///
    /// - Parameter shadow: where the driver says how far it is, instead of ringing.
    init?(_ image: Image, _ memory: GuestMemory, shadow: ShadowDoorbell? = nil, signal: @escaping @Sendable (UInt16) -> Void) {
        guard (2...NVMe.mostEntries).contains(image.size), image.address & UInt64(NVMe.pageSize - 1) == 0,
            let base = memory.pointer(image.address, image.size * NVMe.completionSize), (0..<image.size).contains(image.head), (0..<image.size).contains(image.tail)
        else { return nil }
        self.memory = memory
        self.base = base
        fixed = image
        self.shadow = shadow
        self.signal = signal
        state = Mutex(State(head: image.head, tail: image.tail, phase: image.phase))
    }
    var image: Image {
        var image = fixed
        state.withLock { state in
            look(&state)
            (image.head, image.tail, image.phase) = (state.head, state.tail, state.phase)
        }
        return image
    }
    private func look(_ state: inout State) {
        if let head = shadow?.read(), (0..<fixed.size).contains(head) { state.head = head }
    }
    private func isFull(_ state: State) -> Bool { (state.tail + 1) % fixed.size == state.head }
    /// Whether there is room for one more; if not, `ring` will tell that somebody waits.
    func hasRoom() -> Bool {
        state.withLock { state in
            if !isFull(state) { return true }
            shadow?.ask(beyond: state.head)
            look(&state)
            state.isAwaited = isFull(state)
            return !state.isAwaited
        }
    }

    /// The driver rings: it has seen entries before `head`, or where its memory says. Returns whether somebody waits for room. What is no
    /// place in the ring is ignored.
    func ring(_ head: Int) -> Bool {
        guard shadow != nil || (0..<fixed.size).contains(head) else { return false }
        return state.withLock { state in
            if shadow == nil { state.head = head } else { look(&state) }
            defer { state.isAwaited = false }
            return state.isAwaited
        }
    }
    /// Call `notify` when the batch is done. There is room: the caller has asked.
    func post(_ command: NVMeCommand, _ status: NVMe.Status, result: UInt32 = 0, queue: Int, head: Int) {
        state.withLock { state in
            let entry = base + state.tail * NVMe.completionSize
            entry.storeBytes(of: result, as: UInt32.self)
            entry.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
            entry.storeBytes(of: UInt32(truncatingIfNeeded: head & 0xFFFF | queue << 16), toByteOffset: 8, as: UInt32.self)
            entry.storeBytes(of: command.identifier, toByteOffset: 12, as: UInt16.self)
            // Do not retry what failed; the phase comes last, so that the driver sees the whole entry.
            let word = (status == .success ? 0 : status.rawValue << 1 | 1 << 15) | (state.phase ? 1 : 0)
            clinux_store_release16(entry + 14, word)
            memory.noteWrite(fixed.address + UInt64(state.tail * NVMe.completionSize), NVMe.completionSize)
            state.tail += 1
            if state.tail == fixed.size {
                state.tail = 0
                state.phase.toggle()
            }
            state.isNews = true
        }
    }
    func notify() {
        let isNews = state.withLock { state in
            defer { state.isNews = false }
            return state.isNews
        }
        if isNews, fixed.signals { signal(fixed.vector) }
    }
    /// Raises the vector if the driver has entries to look at.
    func remind() {
        let isBehind = state.withLock { state in
            look(&state)
            return state.head != state.tail
        }
        if fixed.signals, isBehind { signal(fixed.vector) }
    }
}
