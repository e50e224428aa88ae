import Foundation

/// A port of a console device. Use a subclass.
open class VZConsolePortConfiguration: NSObject, NSCopying {
    open var attachment: VZSerialPortAttachment?
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
