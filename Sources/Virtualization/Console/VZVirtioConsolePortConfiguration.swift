import Foundation

/// A port of a virtio console device: an hvc console, or a channel at /dev/virtio-ports/NAME.
open class VZVirtioConsolePortConfiguration: VZConsolePortConfiguration {
    open var name: String?
    open var isConsole: Bool = false
    public override init() { super.init() }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZVirtioConsolePortConfiguration()
        copy.attachment = attachment
        copy.name = name
        copy.isConsole = isConsole
        return copy
    }
}
