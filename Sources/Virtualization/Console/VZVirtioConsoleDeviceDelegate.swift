import Foundation

/// Hears of ports that guest programs open and close. Optional methods, on the machine's queue.
public protocol VZVirtioConsoleDeviceDelegate: NSObjectProtocol {
    func consoleDevice(_ consoleDevice: VZVirtioConsoleDevice, didOpen consolePort: VZVirtioConsolePort)
    func consoleDevice(_ consoleDevice: VZVirtioConsoleDevice, didClose consolePort: VZVirtioConsolePort)
}
extension VZVirtioConsoleDeviceDelegate {
    public func consoleDevice(_ consoleDevice: VZVirtioConsoleDevice, didOpen consolePort: VZVirtioConsolePort) {}
    public func consoleDevice(_ consoleDevice: VZVirtioConsoleDevice, didClose consolePort: VZVirtioConsolePort) {}
}
