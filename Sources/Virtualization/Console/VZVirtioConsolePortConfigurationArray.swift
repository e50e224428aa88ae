import Foundation

/// Ports by number; unused numbers are nil.
open class VZVirtioConsolePortConfigurationArray: NSObject, NSCopying {
    private(set) var ports: [Int: VZVirtioConsolePortConfiguration] = [:]
    private var explicitMaximum: UInt32?

    override init() { super.init() }
    /// One more than the highest used number, unless set.
    open var maximumPortCount: UInt32 {
        get { explicitMaximum ?? UInt32(clamping: (ports.keys.max() ?? -1) + 1) }
        set { explicitMaximum = newValue }
    }
    open subscript(portIndex: Int) -> VZVirtioConsolePortConfiguration? {
        get { ports[portIndex] }
        set { ports[portIndex] = newValue }
    }
    public func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioConsolePortConfigurationArray()
        copy.ports = ports.mapValues { $0.copy() as? VZVirtioConsolePortConfiguration ?? $0 }
        copy.explicitMaximum = explicitMaximum
        return copy
    }
}
