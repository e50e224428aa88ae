import Foundation

/// A storage device. Use a subclass.
open class VZStorageDeviceConfiguration: NSObject, NSCopying {
    public let attachment: VZStorageDeviceAttachment
    init(storage attachment: VZStorageDeviceAttachment) {
        self.attachment = attachment
        super.init()
    }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
