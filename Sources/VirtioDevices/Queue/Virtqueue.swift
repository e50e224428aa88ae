import CLinux
import GuestMemory

/// The driver broke the rules of a virtqueue; the device asks to be reset.
package enum QueueError: Error, Equatable, Sendable {
    case address(GuestAddress)
    case availableIndex
    case descriptorIndex
    case chainTooLong
    case indirect
    case order
}

/// One piece of guest memory of a descriptor chain: checked, and valid as long as the machine's memory.
package struct GuestBuffer {
    package let address: UInt64
    package let pointer: UnsafeMutableRawPointer
    package let count: Int
}

/// A descriptor chain, in an object that is used again for the next one: popping allocates nothing in steady state.
package final class DescriptorChain {
    package fileprivate(set) var head: UInt16 = 0
    /// What the driver wrote for the device, then what the device may write.
    package fileprivate(set) var readable: [GuestBuffer] = []
    package fileprivate(set) var writable: [GuestBuffer] = []
    package fileprivate(set) var readableCount = 0
    package fileprivate(set) var writableCount = 0

    package init(capacity: Int) {
        readable.reserveCapacity(capacity)
        writable.reserveCapacity(capacity)
    }
    fileprivate func clear(_ head: UInt16) {
        self.head = head
        readable.removeAll(keepingCapacity: true)
        writable.removeAll(keepingCapacity: true)
        readableCount = 0
        writableCount = 0
    }

    /// Copies from the readable part; false when it is too short.
    package func read(at offset: Int, into target: UnsafeMutableRawPointer, count: Int) -> Bool {
        Self.walk(readable, offset, count) { source, done, step in (target + done).copyMemory(from: source, byteCount: step) }
    }
    package func load<T: FixedWidthInteger>(at offset: Int, as: T.Type = T.self) -> T? {
        var value: T = 0
        let done = withUnsafeMutableBytes(of: &value) { raw -> Bool in
            guard let base = raw.baseAddress else { return false }
            return read(at: offset, into: base, count: raw.count)
        }
        return done ? T(littleEndian: value) : nil
    }
    /// Copies into the writable part; false when it is too short.
    package func write(at offset: Int, from source: UnsafeRawPointer, count: Int) -> Bool {
        Self.walk(writable, offset, count) { target, done, step in target.copyMemory(from: source + done, byteCount: step) }
    }
    private static func walk(
        _ buffers: [GuestBuffer], _ offset: Int, _ count: Int, _ body: (UnsafeMutableRawPointer, Int, Int) -> Void
    ) -> Bool {
        var skip = offset
        var done = 0
        for buffer in buffers where done < count {
            if skip >= buffer.count {
                skip -= buffer.count
                continue
            }
            let step = min(buffer.count - skip, count - done)
            body(buffer.pointer + skip, done, step)
            done += step
            skip = 0
        }
        return done == count
    }
}

/// A split virtqueue, the device's side. VIRTIO 1.2 § 2.7. Belongs to one thread at a time.
///
/// Everything in guest memory is read once, into our own copy, and checked there.
package final class Virtqueue: @unchecked Sendable {  // see above; set-up happens before the owning thread starts
    /// What the transport was told for this queue.
    package struct Setup: Equatable, Sendable, Codable {
        package var size: UInt16
        package var descriptors: UInt64 = 0
        package var available: UInt64 = 0
        package var used: UInt64 = 0
        package var enabled = false
        package var vector: UInt16 = 0xFFFF
    }
    package let index: Int
    package let size: UInt16
    private let memory: GuestMemory
    private let descriptors: UnsafeMutableRawPointer
    private let available: UnsafeMutableRawPointer
    private let used: UnsafeMutableRawPointer
    private let usesIndirect: Bool
    private let usesEventIndex: Bool
    private let interrupt: @Sendable () -> Void
    private var nextAvailable: UInt16 = 0
    private var nextUsed: UInt16 = 0
    private var signalledUsed: UInt16 = 0

    private enum Flag {
        static let next: UInt16 = 1
        static let write: UInt16 = 2
        static let indirect: UInt16 = 4
    }

    /// - Parameter resuming: go on where the used ring in memory ends: chains that were taken and not given back come again.
    package init(
        index: Int, setup: Setup, memory: GuestMemory, indirect: Bool, eventIndex: Bool, resuming: Bool = false,
        interrupt: @escaping @Sendable () -> Void
    ) throws(QueueError) {
        self.index = index
        self.memory = memory
        size = setup.size
        usesIndirect = indirect
        usesEventIndex = eventIndex
        self.interrupt = interrupt
        let count = Int(setup.size)
        guard count > 0, setup.size & (setup.size - 1) == 0, setup.descriptors & 15 == 0, setup.available & 1 == 0, setup.used & 3 == 0,
            let descriptors = memory.pointer(setup.descriptors, 16 * count)
        else { throw .address(GuestAddress(setup.descriptors)) }
        guard let available = memory.pointer(setup.available, 6 + 2 * count) else { throw .address(GuestAddress(setup.available)) }
        guard let used = memory.pointer(setup.used, 6 + 8 * count) else { throw .address(GuestAddress(setup.used)) }
        self.descriptors = descriptors
        self.available = available
        self.used = used
        if resuming {
            nextUsed = clinux_load_acquire16(used + 2)
            nextAvailable = nextUsed
            signalledUsed = nextUsed
        }
    }

    /// Whether the driver has made more chains available than were popped.
    package var hasAvailable: Bool { clinux_load_acquire16(available + 2) != nextAvailable }

    /// Takes the next chain; false when there is none.
    package func pop(_ chain: DescriptorChain) throws(QueueError) -> Bool {
        let driverIndex = clinux_load_acquire16(available + 2)
        let waiting = driverIndex &- nextAvailable
        if waiting == 0 { return false }
        guard waiting <= size else { throw .availableIndex }
        let slot = Int(nextAvailable & (size - 1))
        let head = (available + 4 + slot * 2).load(as: UInt16.self)
        guard head < size else { throw .descriptorIndex }
        chain.clear(head)
        try follow(head, table: descriptors, count: size, chain, nested: false)
        nextAvailable &+= 1
        return true
    }

    private func follow(
        _ first: UInt16, table: UnsafeMutableRawPointer, count: UInt16, _ chain: DescriptorChain, nested: Bool
    ) throws(QueueError) {
        var index = first
        var seen = 0
        while true {
            guard index < count else { throw .descriptorIndex }
            seen += 1
            guard seen <= Int(count), chain.readable.count + chain.writable.count < Int(size) else { throw .chainTooLong }
            let at = table + Int(index) * 16
            let address = at.load(as: UInt64.self)
            let length = (at + 8).load(as: UInt32.self)
            let flags = (at + 12).load(as: UInt16.self)
            let next = (at + 14).load(as: UInt16.self)
            if flags & Flag.indirect != 0 {
                guard usesIndirect, !nested, flags & Flag.next == 0, length > 0, length & 15 == 0, length / 16 <= UInt32(UInt16.max),
                    let inner = memory.pointer(address, Int(length))
                else { throw .indirect }
                try follow(0, table: inner, count: UInt16(length / 16), chain, nested: true)
                return
            }
            if length > 0 {
                guard let pointer = memory.pointer(address, Int(length)) else { throw .address(GuestAddress(address)) }
                let buffer = GuestBuffer(address: address, pointer: pointer, count: Int(length))
                if flags & Flag.write != 0 {
                    chain.writable.append(buffer)
                    chain.writableCount += buffer.count
                } else {
                    // All of the device-readable part comes first. § 2.7.4.2.
                    guard chain.writable.isEmpty else { throw .order }
                    chain.readable.append(buffer)
                    chain.readableCount += buffer.count
                }
            }
            if flags & Flag.next == 0 { return }
            index = next
        }
    }

    /// Gives a chain back with the number of bytes written to it. Call `notify` when the batch is done.
    package func complete(_ chain: DescriptorChain, written: Int) {
        stage(chain, written: written)
        publish()
    }
    /// Shows the driver everything that was staged.
    package func publish() { clinux_store_release16(used + 2, nextUsed) }
    /// As `complete`, but the driver sees nothing of it before `publish`.
    package func stage(_ chain: DescriptorChain, written: Int) {
        var left = written
        for buffer in chain.writable where left > 0 {
            memory.noteWrite(buffer.address, min(left, buffer.count))
            left -= buffer.count
        }
        let slot = used + 4 + Int(nextUsed & (size - 1)) * 8
        slot.storeBytes(of: UInt32(chain.head), as: UInt32.self)
        (slot + 4).storeBytes(of: UInt32(truncatingIfNeeded: written), as: UInt32.self)
        nextUsed &+= 1
    }

    /// Chains that were completed without `notify` since.
    package var untold: Int { Int(nextUsed &- signalledUsed) }
    /// Interrupts the driver if it wants to hear of what was completed. § 2.7.7, 2.7.10.
    package func notify() {
        guard nextUsed != signalledUsed else { return }
        clinux_fence()
        let old = signalledUsed
        signalledUsed = nextUsed
        if usesEventIndex {
            let event = (available + 4 + 2 * Int(size)).load(as: UInt16.self)
            guard nextUsed &- event &- 1 < nextUsed &- old else { return }
        } else if available.load(as: UInt16.self) & 1 != 0 {
            return
        }
        interrupt()
    }

    /// Asks the driver to kick for new chains again; true when some came meanwhile, so that the caller must look once more.
    /// Without it the driver does not kick (§ 2.7.10): call it before waiting.
    package func enableNotifications() -> Bool {
        if usesEventIndex { storeEventIndex() } else { used.storeBytes(of: 0, as: UInt16.self) }
        clinux_fence()
        return hasAvailable
    }
    /// Asks the driver to kick when it adds to what it has made available by now, whether that was popped or not.
    package func notifyOfMore() {
        if usesEventIndex {
            (used + 4 + 8 * Int(size)).storeBytes(of: clinux_load_acquire16(available + 2), as: UInt16.self)
        } else {
            used.storeBytes(of: 0, as: UInt16.self)
        }
        clinux_fence()
    }
    private func storeEventIndex() { (used + 4 + 8 * Int(size)).storeBytes(of: nextAvailable, as: UInt16.self) }
}
