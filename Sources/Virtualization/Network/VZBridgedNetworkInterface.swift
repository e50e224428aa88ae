import Foundation

/// A host interface that guests could be bridged to.
open class VZBridgedNetworkInterface: NSObject {
    /// The kernel's name, such as eth0.
    public let identifier: String
    public let localizedDisplayName: String?
    init(identifier: String) {
        self.identifier = identifier
        localizedDisplayName = nil
        super.init()
    }
    /// None until bridging is supported.
    open class var networkInterfaces: [VZBridgedNetworkInterface] { [] }
}
