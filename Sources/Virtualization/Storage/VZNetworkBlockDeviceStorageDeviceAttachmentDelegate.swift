/// Hears of the connection to a network block device, on the machine's queue.
public protocol VZNetworkBlockDeviceStorageDeviceAttachmentDelegate: AnyObject {
    /// A connection has been made, for the first time or again.
    func attachmentWasConnected(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment)
    /// The disk cannot be used any more: the guest's requests fail. The machine goes on running.
    func attachment(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment, didEncounterError error: any Error)
}
extension VZNetworkBlockDeviceStorageDeviceAttachmentDelegate {
    public func attachmentWasConnected(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) {}
    public func attachment(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment, didEncounterError error: any Error) {}
}
