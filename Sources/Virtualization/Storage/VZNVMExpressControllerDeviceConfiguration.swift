import Foundation

/// An NVM Express controller with one disk: /dev/nvme0n1, /dev/nvme1n1, … in configuration order. Takes disk images, overlays and
/// block devices; not network block devices yet.
open class VZNVMExpressControllerDeviceConfiguration: VZStorageDeviceConfiguration {
    public init(attachment: VZStorageDeviceAttachment) { super.init(storage: attachment) }
    public override func copy(with zone: NSZone? = nil) -> Any { VZNVMExpressControllerDeviceConfiguration(attachment: attachment) }
}
