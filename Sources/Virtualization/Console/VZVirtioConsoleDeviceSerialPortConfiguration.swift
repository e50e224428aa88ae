import Foundation

/// A virtio console with one port: hvc0, hvc1, … in configuration order.
open class VZVirtioConsoleDeviceSerialPortConfiguration: VZSerialPortConfiguration {
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioConsoleDeviceSerialPortConfiguration()
        copy.attachment = attachment
        return copy
    }
}
