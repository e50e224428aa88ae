import Foundation

/// Where a storage device's bytes are. Use a subclass.
open class VZStorageDeviceAttachment: NSObject {
    override init() { super.init() }
}
