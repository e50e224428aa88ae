import Foundation

/// Darwin's name for six address bytes; Glibc has no such type for Swift.
public struct ether_addr_t: Sendable {
    public var octet: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)
    public init() { octet = (0, 0, 0, 0, 0, 0) }
    public init(octet: (UInt8, UInt8, UInt8, UInt8, UInt8, UInt8)) { self.octet = octet }
}

/// A 48-bit Ethernet address; equal when its bytes are.
open class VZMACAddress: NSObject, NSCopying {
    public let ethernetAddress: ether_addr_t

    public init(ethernetAddress: ether_addr_t) {
        self.ethernetAddress = ethernetAddress
        super.init()
    }
    /// Six pairs of hexadecimal digits with colons between them; nil for anything else.
    public convenience init?(string: String) {
        let parts = string.split(separator: ":", omittingEmptySubsequences: false)
        let bytes = parts.compactMap { part in
            part.utf8.count == 2 && part.allSatisfy(\.isHexDigit) ? UInt8(part, radix: 16) : nil
        }
        guard parts.count == 6, bytes.count == 6 else { return nil }
        self.init(ethernetAddress: ether_addr_t(octet: (bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5])))
    }
    /// A random unicast address of the locally administered range.
    open class func randomLocallyAdministered() -> Self {
        func byte() -> UInt8 { UInt8.random(in: 0...255) }
        let address = ether_addr_t(octet: (byte() & 0xFC | 0x02, byte(), byte(), byte(), byte(), byte()))
        return make(address)
    }
    private class func make(_ address: ether_addr_t) -> Self {
        // A subclass inherits this initialiser or cannot be made here; Apple's class has no subclasses.
        unsafeDowncast(VZMACAddress(ethernetAddress: address), to: Self.self)
    }

    private var bytes: [UInt8] { withUnsafeBytes(of: ethernetAddress.octet) { Array($0) } }
    /// Lower case, two digits a byte, colons between.
    open var string: String { bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":") }
    open var isBroadcastAddress: Bool { bytes.allSatisfy { $0 == 0xFF } }
    open var isMulticastAddress: Bool { bytes[0] & 1 != 0 }
    open var isUnicastAddress: Bool { !isMulticastAddress }
    open var isLocallyAdministeredAddress: Bool { bytes[0] & 2 != 0 }
    open var isUniversallyAdministeredAddress: Bool { !isLocallyAdministeredAddress }

    public func copy(with zone: NSZone? = nil) -> Any { self }
    open override func isEqual(_ object: Any?) -> Bool { (object as? VZMACAddress)?.bytes == bytes }
    open override var hash: Int { bytes.hashValue }
    open override var description: String { string }
}
