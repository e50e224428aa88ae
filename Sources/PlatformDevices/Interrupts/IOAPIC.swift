import Hypervisor

/// The I/O APIC's registers: 24 redirection entries behind an index and a data window. Intel 82093AA.
struct IOAPICState: Equatable, Sendable {
    static let pinCount = 24
    init() {}
    /// Entries that an image lacks are masked.
    init(_ image: IOAPICImage) {
        index = image.index & 0xFF
        for (pin, entry) in image.entries.prefix(Self.pinCount).enumerated() { entries[pin] = entry }
        asserted = image.asserted
        pending = image.pending
    }
    var image: IOAPICImage { IOAPICImage(index: index, entries: entries, asserted: asserted, pending: pending) }

    private var index: UInt32 = 0
    /// Redirection entries, masked at reset.
    private(set) var entries = [UInt64](repeating: 1 << 16, count: pinCount)
    private var asserted: UInt32 = 0
    /// Edges not delivered yet.
    private var pending: UInt32 = 0

    private enum Bit {
        static let remoteIRR: UInt64 = 1 << 14
        static let level: UInt64 = 1 << 15
        static let masked: UInt64 = 1 << 16
        static let readOnly: UInt64 = 1 << 12 | remoteIRR
    }

    func read(_ offset: UInt32) -> UInt32 {
        switch offset {
        case 0x00: return index
        case 0x10:
            switch index {
            case 1: return UInt32(Self.pinCount - 1) << 16 | 0x20
            case 0x10..<0x10 + UInt32(Self.pinCount) * 2:
                return UInt32(truncatingIfNeeded: entries[Int(index - 0x10) / 2] >> (UInt64(index & 1) * 32))
            default: return 0
            }
        default: return 0
        }
    }
    /// True when delivery may have become possible.
    mutating func write(_ offset: UInt32, _ value: UInt32) -> Bool {
        switch offset {
        case 0x00: index = value & 0xFF
        case 0x10:
            guard index >= 0x10, index < 0x10 + UInt32(Self.pinCount) * 2 else { return false }
            let pin = Int(index - 0x10) / 2
            let shift = UInt64(index & 1) * 32
            let mask = UInt64(UInt32.max) << shift
            let kept = shift == 0 ? Bit.readOnly : 0
            let written = UInt64(value) << shift & mask & ~kept
            entries[pin] = entries[pin] & (~mask | kept) | written
            if entries[pin] & Bit.level == 0 { entries[pin] &= ~Bit.remoteIRR }
            return true
        case 0x40:
            endOfInterrupt(UInt8(truncatingIfNeeded: value))
            return true
        default: break
        }
        return false
    }
    mutating func setLine(_ pin: Int, _ level: Bool) {
        guard pin < Self.pinCount else { return }
        let bit = UInt32(1) << UInt32(pin)
        if level {
            if asserted & bit == 0 { pending |= bit }
            asserted |= bit
        } else {
            asserted &= ~bit
        }
    }
    mutating func endOfInterrupt(_ vector: UInt8) {
        for pin in entries.indices where UInt8(truncatingIfNeeded: entries[pin]) == vector { entries[pin] &= ~Bit.remoteIRR }
    }
    /// The next entry to deliver, marked delivered.
    mutating func takeDeliverable() -> UInt64? {
        for pin in entries.indices where entries[pin] & Bit.masked == 0 {
            let bit = UInt32(1) << UInt32(pin)
            if entries[pin] & Bit.level != 0 {
                guard asserted & bit != 0, entries[pin] & Bit.remoteIRR == 0 else { continue }
                entries[pin] |= Bit.remoteIRR
            } else {
                guard pending & bit != 0 else { continue }
            }
            pending &= ~bit
            return entries[pin]
        }
        return nil
    }
}
