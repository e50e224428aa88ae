import CLinux
import GuestMemory

/// Doorbells in the guest's memory: the driver writes there how far it is, and rings the controller's own only where the controller
/// has said that it waits. NVMe 1.3 § 5.7, 7.13. Any thread.
struct ShadowDoorbells: @unchecked Sendable {  // the pointers are fixed, and lead into the guest's memory
    struct Image: Equatable, Sendable, Codable {
        var doorbells: UInt64
        var events: UInt64
    }
    private let memory: GuestMemory
    private let doorbells: UnsafeMutableRawPointer
    private let events: UnsafeMutableRawPointer
    let image: Image

    /// nil when the pages are not in memory, or not whole pages.
    init?(_ image: Image, _ memory: GuestMemory) {
        guard (image.doorbells | image.events) & UInt64(NVMe.pageSize - 1) == 0, let doorbells = memory.pointer(image.doorbells, NVMe.pageSize),
            let events = memory.pointer(image.events, NVMe.pageSize)
        else { return nil }
        (self.image, self.memory, self.doorbells, self.events) = (image, memory, doorbells, events)
    }
    /// nil for queues beyond the page.
    func tail(_ queue: Int) -> ShadowDoorbell? { doorbell(2 * queue) }
    func head(_ queue: Int) -> ShadowDoorbell? { doorbell(2 * queue + 1) }
    private func doorbell(_ index: Int) -> ShadowDoorbell? {
        guard (0..<NVMe.pageSize / 4).contains(index) else { return nil }
        let offset = index * 4
        return ShadowDoorbell(
            memory: memory, value: doorbells + offset, event: events + offset, valueAddress: image.doorbells + UInt64(offset),
            eventAddress: image.events + UInt64(offset))
    }
}

/// One of them.
struct ShadowDoorbell: @unchecked Sendable {  // as above
    fileprivate let memory: GuestMemory
    fileprivate let value: UnsafeMutableRawPointer
    fileprivate let event: UnsafeMutableRawPointer
    fileprivate let valueAddress: UInt64
    fileprivate let eventAddress: UInt64

    /// What the driver wrote last: any number.
    func read() -> Int { Int(clinux_load_acquire32(value)) }
    func set(_ place: Int) { store(place, at: value, valueAddress) }
    /// From now on, the driver rings when it goes beyond `place`. What it wrote before that is read afterwards.
    func ask(beyond place: Int) {
        store(place, at: event, eventAddress)
        clinux_fence()
    }
    private func store(_ place: Int, at pointer: UnsafeMutableRawPointer, _ address: UInt64) {
        pointer.storeBytes(of: UInt32(truncatingIfNeeded: place), as: UInt32.self)
        memory.noteWrite(address, 4)
    }
}
