import Foundation

/// A virtio block device: /dev/vda, /dev/vdb, … in configuration order.
open class VZVirtioBlockDeviceConfiguration: VZStorageDeviceConfiguration {
    /// The disk's serial number in the guest: ASCII, at most 20 bytes; the default is empty.
    open var blockDeviceIdentifier: String = ""

    public init(attachment: VZStorageDeviceAttachment) { super.init(storage: attachment) }

    /// Throws `VZError.invalidVirtualMachineConfiguration` for an identifier that a device cannot have.
    open class func validateBlockDeviceIdentifier(_ blockDeviceIdentifier: String) throws {
        guard blockDeviceIdentifier.utf8.allSatisfy({ $0 < 0x80 }) else {
            throw VZError.configuration("The block device identifier contains characters outside ASCII.")
        }
        guard blockDeviceIdentifier.utf8.count <= 20 else {
            throw VZError.configuration("The block device identifier is longer than 20 bytes.")
        }
    }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioBlockDeviceConfiguration(attachment: attachment)
        copy.blockDeviceIdentifier = blockDeviceIdentifier
        return copy
    }
}
