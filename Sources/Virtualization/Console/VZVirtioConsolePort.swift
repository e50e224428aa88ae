import Foundation

/// A port of a machine's console.
open class VZVirtioConsolePort: NSObject {
    public let name: String?
    /// Can be replaced while the machine runs.
    open var attachment: VZSerialPortAttachment? { didSet { changed?(attachment) } }
    var changed: ((VZSerialPortAttachment?) -> Void)?
    init(name: String?, attachment: VZSerialPortAttachment?) {
        self.name = name
        self.attachment = attachment
        super.init()
    }
}
