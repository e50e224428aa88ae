import Foundation

/// Decides about the guest's connections to the ports that it is set for.
open class VZVirtioSocketListener: NSObject {
    open weak var delegate: (any VZVirtioSocketListenerDelegate)?
    public override init() { super.init() }
}
