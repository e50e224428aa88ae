import Foundation

/// Hears of connections that the guest opens. Optional method, on the machine's queue.
public protocol VZVirtioSocketListenerDelegate: NSObjectProtocol {
    /// True accepts the connection: keep it, or a duplicate of its descriptor, or it closes. False resets it.
    func listener(
        _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection, from socketDevice: VZVirtioSocketDevice
    ) -> Bool
}
extension VZVirtioSocketListenerDelegate {
    public func listener(
        _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection, from socketDevice: VZVirtioSocketDevice
    ) -> Bool { false }
}
