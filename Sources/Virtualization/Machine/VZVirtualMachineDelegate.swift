import Foundation

/// Hears of what a machine does on its own. Every method is optional and called on the machine's queue.
public protocol VZVirtualMachineDelegate: NSObjectProtocol {
    /// The guest powered itself off, also after `requestStop`. Not called for `stop`.
    func guestDidStop(_ virtualMachine: VZVirtualMachine)
    /// The machine died from an error.
    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error)
    /// The host side of a network device failed; its attachment is nil now.
    func virtualMachine(
        _ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice, attachmentWasDisconnectedWithError error: any Error)
}

extension VZVirtualMachineDelegate {
    public func guestDidStop(_ virtualMachine: VZVirtualMachine) {}
    public func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error) {}
    public func virtualMachine(
        _ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice, attachmentWasDisconnectedWithError error: any Error
    ) {}
}
