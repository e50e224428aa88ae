import Foundation

/// A virtio console with many ports.
open class VZVirtioConsoleDeviceConfiguration: VZConsoleDeviceConfiguration {
    public private(set) var ports = VZVirtioConsolePortConfigurationArray()
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioConsoleDeviceConfiguration()
        copy.ports = ports.copy() as? VZVirtioConsolePortConfigurationArray ?? ports
        return copy
    }
}
