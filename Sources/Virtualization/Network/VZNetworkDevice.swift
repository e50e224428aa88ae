import Foundation

/// A network device of a machine.
open class VZNetworkDevice: NSObject {
    open var attachment: VZNetworkDeviceAttachment?
    init(attachment: VZNetworkDeviceAttachment?) {
        self.attachment = attachment
        super.init()
    }
}
