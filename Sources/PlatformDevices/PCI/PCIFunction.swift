import Hypervisor
import Synchronization

/// A memory BAR's content. Called on vCPU threads; offsets are relative to the BAR.
package protocol PCIBarHandler: AnyObject, Sendable {
    func barRead(_ offset: UInt64, size: Int) -> UInt64
    func barWrite(_ offset: UInt64, _ value: UInt64, size: Int)
}

/// Offsets in the type 0 configuration header. PCI Local Bus 3.0 § 6.1.
package enum PCIConfigOffset {
    static let vendorID = 0x00
    static let command = 0x04
    static let status = 0x06
    static let revision = 0x08
    static let headerType = 0x0E
    static let bar0 = 0x10
    static let bar2 = 0x18
    static let subsystemVendorID = 0x2C
    static let capabilityPointer = 0x34
}

/// One PCI function: configuration space, at most one 64-bit memory BAR (BAR 0) and MSI-X in it. Any thread.
///
/// Writable bits are those of a mask; everything else a guest writes is dropped.
package final class PCIFunction: @unchecked Sendable {  // bytes under the lock; the rest is set before the guest runs
    private struct Space {
        var bytes = [UInt8](repeating: 0, count: 256)
        var mask = [UInt8](repeating: 0, count: 256)
        var capabilityEnd = 0x40
        var lastCapability = 0
    }
    private let space: Mutex<Space>
    package let barSize: UInt64
    package let msix: MSIX?
    package weak var bar: (any PCIBarHandler)?
    private let msixCapability: Int

    /// - Parameters:
    ///   - classCode: class, subclass and programming interface as one 24-bit number.
    ///   - barSize: bytes of BAR 0, a power of two from 4 KiB; 0 for none.
    ///   - msixVectors: size of the MSI-X table, which stands at `msixTableOffset` in BAR 0, the pending bits 2 KiB behind.
    package init(
        vendor: UInt16, device: UInt16, classCode: UInt32, revision: UInt8, subsystemVendor: UInt16 = 0, subsystem: UInt16 = 0,
        barSize: UInt64 = 0, msixVectors: Int = 0, msixTableOffset: UInt32 = 0, sink: MSIXSink = MSIXSink()
    ) {
        var space = Space()
        func put(_ offset: Int, _ value: UInt64, _ count: Int) {
            for index in 0..<count { space.bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
        put(0x00, UInt64(vendor), 2)
        put(0x02, UInt64(device), 2)
        put(0x08, UInt64(revision), 1)
        put(0x09, UInt64(classCode), 3)
        put(0x2C, UInt64(subsystemVendor), 2)
        put(0x2E, UInt64(subsystem), 2)
        // Command: memory space, bus master, INTx disable.
        space.mask[4] = 0x06
        space.mask[5] = 0x04
        space.mask[0x3C] = 0xFF
        self.barSize = barSize
        if barSize > 0 {
            put(0x10, 0xC, 1)  // 64-bit, prefetchable
            let mask = ~(barSize - 1)
            for index in 0..<8 { space.mask[0x10 + index] = UInt8(truncatingIfNeeded: mask >> UInt64(8 * index)) }
            space.mask[0x10] &= 0xF0
        }
        var capability = 0
        if msixVectors > 0 {
            var body: [UInt8] = [UInt8(truncatingIfNeeded: msixVectors - 1), UInt8(truncatingIfNeeded: (msixVectors - 1) >> 8)]
            for value in [msixTableOffset, msixTableOffset + 0x800] {
                for shift in [0, 8, 16, 24] as [UInt32] { body.append(UInt8(truncatingIfNeeded: value >> shift)) }
            }
            capability = Self.append(&space, id: 0x11, body)
            space.mask[capability + 3] = 0xC0
        }
        msixCapability = capability
        msix = msixVectors > 0 ? MSIX(count: msixVectors, sink: sink) : nil
        self.space = Mutex(space)
    }

    /// BAR 2, prefetchable memory that is there at this address whatever the guest writes to the BAR: for memory that engines show
    /// the guest themselves. Before the guest runs.
    /// - Parameter size: a power of two, and the address a multiple of it.
    package func addMemoryBar(at address: UInt64, size: UInt64) {
        space.withLock { space in
            let mask = ~(size - 1)
            for index in 0..<8 {
                space.bytes[PCIConfigOffset.bar2 + index] = UInt8(truncatingIfNeeded: address >> UInt64(8 * index))
                space.mask[PCIConfigOffset.bar2 + index] = UInt8(truncatingIfNeeded: mask >> UInt64(8 * index))
            }
            space.bytes[PCIConfigOffset.bar2] |= 0xC  // 64-bit, prefetchable
            space.mask[PCIConfigOffset.bar2] &= 0xF0
        }
    }
    /// Adds a capability of `body` behind id and next pointer; returns its offset.
    @discardableResult package func addCapability(id: UInt8, _ body: [UInt8], writable: Range<Int> = 0..<0) -> Int {
        space.withLock { space in
            let offset = Self.append(&space, id: id, body)
            for index in writable { space.mask[offset + 2 + index] = 0xFF }
            return offset
        }
    }
    private static func append(_ space: inout Space, id: UInt8, _ body: [UInt8]) -> Int {
        let offset = (space.capabilityEnd + 3) & ~3
        space.bytes[offset] = id
        for (index, byte) in body.enumerated() { space.bytes[offset + 2 + index] = byte }
        space.bytes[space.lastCapability == 0 ? PCIConfigOffset.capabilityPointer : space.lastCapability + 1] = UInt8(offset)
        space.bytes[PCIConfigOffset.status] |= 0x10
        space.lastCapability = offset
        space.capabilityEnd = offset + 2 + body.count
        return offset
    }

    package var barAddress: UInt64 {
        get {
            space.withLock { space in
                (0..<8).reduce(0) { $0 | UInt64(space.bytes[0x10 + $1]) << UInt64(8 * $1) } & ~0xF
            }
        }
        set {
            space.withLock { space in
                for index in 0..<8 {
                    let byte = UInt8(truncatingIfNeeded: newValue >> UInt64(8 * index))
                    space.bytes[0x10 + index] = index == 0 ? byte & 0xF0 | 0xC : byte
                }
            }
        }
    }
    package var isMemoryEnabled: Bool { space.withLock { $0.bytes[4] & 2 != 0 } }

    package func configRead(_ offset: Int, size: Int) -> UInt32 {
        guard offset + size <= 256 else { return 0 }
        return space.withLock { space in
            (0..<size).reduce(0) { $0 | UInt32(space.bytes[offset + $1]) << UInt32(8 * $1) }
        }
    }
    /// True when the BAR may have moved or been switched.
    package func configWrite(_ offset: Int, _ value: UInt32, size: Int) -> Bool {
        guard offset + size <= 256 else { return false }
        let control: UInt8? = space.withLock { space in
            for index in 0..<size {
                let at = offset + index
                let mask = space.mask[at]
                space.bytes[at] = space.bytes[at] & ~mask | UInt8(truncatingIfNeeded: value >> UInt32(8 * index)) & mask
            }
            return msixCapability > 0 ? space.bytes[msixCapability + 3] : nil
        }
        if let control { msix?.setControl(enabled: control & 0x80 != 0, masked: control & 0x40 != 0) }
        return offset < 0x18
    }

    // MARK: images

    package struct Image: Equatable, Sendable, Codable {
        /// Configuration space: 256 bytes.
        package var configuration: [UInt8]
        package var msix: MSIX.Image?
    }
    package var image: Image { Image(configuration: space.withLock { $0.bytes }, msix: msix?.image) }
    /// Whether an image is one of a function like this.
    package func matches(_ image: Image) -> Bool {
        image.configuration.count == 256
            && space.withLock { space in (0..<256).allSatisfy { (space.bytes[$0] ^ image.configuration[$0]) & ~space.mask[$0] == 0 } }
    }
}
