import Foundation

/// A virtio console of a machine.
open class VZVirtioConsoleDevice: VZConsoleDevice {
    open weak var delegate: (any VZVirtioConsoleDeviceDelegate)?
    public let ports: VZVirtioConsolePortArray
    init(ports: VZVirtioConsolePortArray) {
        self.ports = ports
        super.init()
    }
}
