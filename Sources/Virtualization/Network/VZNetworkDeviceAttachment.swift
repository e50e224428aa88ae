import Foundation

/// What a network device is connected to. Use a subclass.
open class VZNetworkDeviceAttachment: NSObject {
    override init() { super.init() }
}
