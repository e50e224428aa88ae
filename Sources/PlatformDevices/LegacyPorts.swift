import Glibc
import LinuxSystem
import Synchronization

/// What the guest can ask of the platform through ACPI registers and the old reset ports.
package enum PlatformRequest: Sendable {
    case powerOff
    case reset
}

/// ACPI's fixed registers for a hardware-reduced machine, in one block of ports. ACPI 6.4 § 4.8.3.
///
///     +0  sleep control   +1  sleep status   +2  reset   +4  event status (read clears) for the GED's _EVT
package final class ACPIPort: Sendable {
    package static let resetValue: UInt8 = 1
    /// The SLP_TYP of S5 in the DSDT.
    package static let softOffType: UInt8 = 5
    package static let powerButtonEvent: UInt32 = 1
    /// The generation ID has changed.
    package static let generationEvent: UInt32 = 2

    private let events = Mutex<UInt32>(0)
    private let request: @Sendable (PlatformRequest) -> Void
    private let setInterrupt: @Sendable (Bool) -> Void

    package init(setInterrupt: @escaping @Sendable (Bool) -> Void, request: @escaping @Sendable (PlatformRequest) -> Void) {
        self.request = request
        self.setInterrupt = setInterrupt
    }
    package func read(_ offset: UInt16) -> UInt32 {
        guard offset == 4 else { return 0 }
        let value = events.withLock { events in
            defer { events = 0 }
            return events
        }
        setInterrupt(false)
        return value
    }
    package func write(_ offset: UInt16, _ value: UInt32) {
        let byte = UInt8(truncatingIfNeeded: value)
        // Sleep control: SLP_TYP in bits 2–4, SLP_EN in bit 5.
        if offset == 0, byte & 0x20 != 0, byte >> 2 & 7 == Self.softOffType { request(.powerOff) }
        if offset == 2, byte == Self.resetValue { request(.reset) }
    }
    /// Events that the guest has not seen.
    package var pendingEvents: UInt32 {
        get { events.withLock { $0 } }
        set { events.withLock { $0 = newValue } }
    }
    package func pressPowerButton() { raise(Self.powerButtonEvent) }
    package func noteNewGeneration() { raise(Self.generationEvent) }
    private func raise(_ event: UInt32) {
        events.withLock { $0 |= event }
        setInterrupt(true)
    }
}

/// The real-time clock and CMOS memory, read-only time from the host's clock in UTC. Motorola MC146818A.
package final class RealTimeClock: Sendable {
    private let index = Mutex<UInt8>(0)
    package init() {}
    /// The register that is read next.
    package var selected: UInt8 {
        get { index.withLock { $0 } }
        set { index.withLock { $0 = newValue & 0x7F } }
    }

    package func read(_ offset: UInt16) -> UInt8 {
        let register = index.withLock { $0 }
        guard offset == 1 else { return register }
        var now = time(nil)
        var parts = tm()
        gmtime_r(&now, &parts)
        func bcd(_ value: Int32) -> UInt8 { UInt8(truncatingIfNeeded: value / 10 % 10 << 4 | value % 10) }
        switch register {
        case 0x00: return bcd(parts.tm_sec)
        case 0x02: return bcd(parts.tm_min)
        case 0x04: return bcd(parts.tm_hour)
        case 0x06: return bcd(parts.tm_wday + 1)
        case 0x07: return bcd(parts.tm_mday)
        case 0x08: return bcd(parts.tm_mon + 1)
        case 0x09: return bcd(parts.tm_year % 100)
        case 0x0A: return 0x26
        case 0x0B: return 0x02  // 24 hours, BCD
        case 0x0D: return 0x80
        case 0x32: return bcd((parts.tm_year + 1900) / 100)
        default: return 0
        }
    }
    package func write(_ offset: UInt16, _ value: UInt8) { if offset == 0 { index.withLock { $0 = value & 0x7F } } }
}
