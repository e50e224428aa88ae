import Foundation
import HostNetwork

/// A network device of a machine.
open class VZNetworkDevice: NSObject {
    /// Can be replaced while the machine runs: nil pulls the cable out. An attachment that cannot be used is refused: the
    /// delegate is told, and the attachment is nil. Turns nil by itself when the host's side fails. On the machine's queue.
    open var attachment: VZNetworkDeviceAttachment? { didSet { changed?(attachment) } }
    var changed: ((VZNetworkDeviceAttachment?) -> Void)?
    /// What the running machine has of the attachment.
    var backend: (any NetworkBackend)?
    init(attachment: VZNetworkDeviceAttachment?) {
        self.attachment = attachment
        super.init()
    }
    /// Sets it without telling the machine.
    func forget() {
        let tell = changed
        changed = nil
        attachment = nil
        backend = nil
        changed = tell
    }
}
