/// A builder of ACPI machine language: just the terms our DSDT uses. ACPI 6.4 chapter 20.
struct AML {
    private(set) var bytes: [UInt8] = []

    init() {}
    init(_ build: (inout AML) -> Void) { build(&self) }

    /// A package length that counts itself. § 20.2.4.
    private static func packageLength(_ contentCount: Int) -> [UInt8] {
        if contentCount + 1 < 0x40 { return [UInt8(contentCount + 1)] }
        if contentCount + 2 < 0x1000 {
            let total = contentCount + 2
            return [0x40 | UInt8(total & 15), UInt8(total >> 4)]
        }
        let total = contentCount + 3
        return [0x80 | UInt8(total & 15), UInt8(total >> 4 & 0xFF), UInt8(total >> 12 & 0xFF)]
    }
    private mutating func wrap(_ opcode: [UInt8], _ content: [UInt8]) {
        bytes += opcode + Self.packageLength(content.count) + content
    }
    /// A path of four-letter segments: `\_SB_.PWRB` as ["_SB_", "PWRB"] from the root.
    private static func path(_ name: String, root: Bool = false) -> [UInt8] { (root ? [0x5C] : []) + Array(name.utf8) }

    mutating func scope(_ name: String, _ build: (inout AML) -> Void) { wrap([0x10], Self.path(name, root: true) + AML(build).bytes) }
    mutating func device(_ name: String, _ build: (inout AML) -> Void) { wrap([0x5B, 0x82], Self.path(name) + AML(build).bytes) }
    mutating func method(_ name: String, arguments: UInt8, _ build: (inout AML) -> Void) {
        wrap([0x14], Self.path(name) + [arguments | 8] + AML(build).bytes)  // serialized
    }
    mutating func name(_ name: String, integer value: UInt64) { bytes += [0x08] + Self.path(name) + Self.integer(value) }
    mutating func name(_ name: String, string value: String) { bytes += [0x08] + Self.path(name) + [0x0D] + Array(value.utf8) + [0] }
    mutating func name(_ name: String, eisaID: String) { bytes += [0x08] + Self.path(name) + [0x0C] + Self.eisaID(eisaID) }
    mutating func name(_ name: String, package values: [UInt64]) {
        bytes += [0x08] + Self.path(name)
        wrap([0x12], [UInt8(values.count)] + values.flatMap { Self.integer($0) })
    }
    mutating func name(_ name: String, strings values: [String]) {
        bytes += [0x08] + Self.path(name)
        wrap([0x12], [UInt8(values.count)] + values.flatMap { [0x0D] + Array($0.utf8) + [0] })
    }
    mutating func name(_ name: String, resources: [UInt8]) {
        let template = resources + [0x79, 0]
        bytes += [0x08] + Self.path(name)
        wrap([0x11], Self.integer(UInt64(template.count)) + template)
    }
    mutating func ioRegion(_ name: String, port: UInt16, length: UInt8) {
        bytes += [0x5B, 0x80] + Self.path(name) + [1] + Self.integer(UInt64(port)) + Self.integer(UInt64(length))
    }
    /// A field of byte accesses: names and their widths in bits; nil skips.
    mutating func field(_ region: String, _ fields: [(name: String?, bits: Int)]) {
        var content = Self.path(region) + [1]
        for field in fields {
            content += field.name.map { Array($0.utf8) } ?? [0]
            content += field.bits < 0x40 ? [UInt8(field.bits)] : [0x40 | UInt8(field.bits & 15), UInt8(field.bits >> 4)]
        }
        wrap([0x5B, 0x81], content)
    }
    /// `Local0 = field`
    mutating func storeToLocal0(_ source: String) { bytes += [0x70] + Self.path(source) + [0x60] }
    /// `if (Local0 & mask) Notify(target, value)`
    mutating func ifLocal0(_ mask: UInt64, notify target: String, _ value: UInt8) {
        let predicate: [UInt8] = [0x7B, 0x60] + Self.integer(mask) + [0x00]
        wrap([0xA0], predicate + [0x86] + Self.path(target) + Self.integer(UInt64(value)))
    }

    static func integer(_ value: UInt64) -> [UInt8] {
        func tail(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
        switch value {
        case 0: return [0]
        case 1: return [1]
        case ..<0x100: return [0x0A] + tail(1)
        case ..<0x1_0000: return [0x0B] + tail(2)
        case ..<0x1_0000_0000: return [0x0C] + tail(4)
        default: return [0x0E] + tail(8)
        }
    }
    /// A compressed EISA identifier such as PNP0501. § 19.3.4.
    static func eisaID(_ text: String) -> [UInt8] {
        let letters = Array(text.utf8)
        let vendor = letters.prefix(3).reduce(UInt16(0)) { $0 << 5 | UInt16($1 & 0x1F) }
        let product = UInt16(text.suffix(4), radix: 16) ?? 0
        return [UInt8(vendor >> 8), UInt8(vendor & 0xFF), UInt8(product >> 8), UInt8(product & 0xFF)]
    }
}

/// Resource descriptors. ACPI 6.4 § 6.4.
enum ACPIResource {
    private static func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
    static func io(_ port: UInt16, _ count: UInt8) -> [UInt8] { [0x47, 1] + little(UInt64(port), 2) + little(UInt64(port), 2) + [1, count] }
    /// Edge-triggered, active-high ISA interrupt.
    static func irq(_ number: UInt32) -> [UInt8] { [0x23] + little(1 << UInt64(number), 2) + [0x01] }
    /// An extended interrupt: consumer, edge, active high, exclusive.
    static func interrupt(_ gsi: UInt32) -> [UInt8] { [0x89, 6, 0, 0x03, 1] + little(UInt64(gsi), 4) }
    static func memory32Fixed(_ start: UInt64, _ size: UInt64) -> [UInt8] { [0x86, 9, 0, 1] + little(start, 4) + little(size, 4) }
    static func busNumbers(_ first: UInt64, _ last: UInt64) -> [UInt8] {
        [0x88, 13, 0, 2, 0x0C, 0] + little(0, 2) + little(first, 2) + little(last, 2) + little(0, 2) + little(last - first + 1, 2)
    }
    /// A memory window the bridge hands on: producer, fixed, cacheable not, read-write.
    static func memoryWindow(_ start: UInt64, _ size: UInt64) -> [UInt8] {
        [0x87, 23, 0, 0, 0x0C, 1] + little(0, 4) + little(start, 4) + little(start + size - 1, 4) + little(0, 4) + little(size, 4)
    }
}
