import GuestMemory
import LinuxSystem
import Synchronization

/// A ring of commands, and the place of the next one. NVMe 1.4 § 4.1. `take` belongs to one thread at a time.
final class SubmissionQueue: @unchecked Sendable {  // see above
    struct Image: Equatable, Sendable, Codable {
        var identifier: Int
        var address: UInt64
        var size: Int
        var head: Int
        var tail: Int
        var completions: Int
    }
    private let base: UnsafeMutableRawPointer
    private let fixed: Image
    private let tail: Atomic<Int>
    private(set) var head: Int
    let completions: CompletionQueue
    let event: EventFD
    private let shadow: ShadowDoorbell?
    var identifier: Int { fixed.identifier }

    /// nil when the ring is not in memory.
    ///
    /// - Parameter shadow: where the driver says how far it is, instead of ringing.
    init?(_ image: Image, _ completions: CompletionQueue, _ memory: GuestMemory, shadow: ShadowDoorbell? = nil) {
        guard (2...NVMe.mostEntries).contains(image.size), image.address & UInt64(NVMe.pageSize - 1) == 0,
            let base = memory.pointer(image.address, image.size * NVMe.commandSize), (0..<image.size).contains(image.head), (0..<image.size).contains(image.tail),
            let event = try? EventFD()
        else { return nil }
        self.base = base
        self.completions = completions
        self.event = event
        self.shadow = shadow
        fixed = image
        head = image.head
        tail = Atomic(image.tail)
    }
    var image: Image {
        var image = fixed
        (image.head, image.tail) = (head, tail.load(ordering: .acquiring))
        return image
    }
    /// The driver rings: it has written commands before `tail`, or where its memory says. False for what is no place in the ring.
    func ring(_ tail: Int) -> Bool { shadow != nil || setTail(tail) }
    private func setTail(_ tail: Int) -> Bool {
        guard (0..<fixed.size).contains(tail) else { return false }
        self.tail.store(tail, ordering: .releasing)
        return true
    }
    var isEmpty: Bool { head == tail.load(ordering: .acquiring) }
    /// Looks where the driver is; whether there is something to take.
    func look() -> Bool {
        if let shadow { _ = setTail(shadow.read()) }
        return !isEmpty
    }
    /// To be called before the worker sleeps: whether something has come meanwhile. If not, the driver rings for the next one.
    func goesOn() -> Bool {
        // What waits for room among the completions is announced by those.
        guard isEmpty, let shadow else { return false }
        if look() { return true }
        shadow.ask(beyond: head)
        return look()
    }
    /// The next command; nil when there is none, or no room for its completion.
    func take() -> NVMeCommand? {
        guard look(), completions.hasRoom() else { return nil }
        let command = NVMeCommand(base + head * NVMe.commandSize)
        head = (head + 1) % fixed.size
        return command
    }
}
