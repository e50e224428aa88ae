import Foundation

/// The ports of a machine's console, by number.
open class VZVirtioConsolePortArray: NSObject {
    public let maximumPortCount: UInt32
    let ports: [Int: VZVirtioConsolePort]
    init(ports: [Int: VZVirtioConsolePort], maximumPortCount: UInt32) {
        self.ports = ports
        self.maximumPortCount = maximumPortCount
        super.init()
    }
    open subscript(portIndex: Int) -> VZVirtioConsolePort? { ports[portIndex] }
}
