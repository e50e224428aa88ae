import Foundation

/// A serial port. Use a subclass.
open class VZSerialPortConfiguration: NSObject, NSCopying {
    open var attachment: VZSerialPortAttachment?
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
