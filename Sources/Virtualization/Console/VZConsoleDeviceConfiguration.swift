import Foundation

/// A console device. Use a subclass.
open class VZConsoleDeviceConfiguration: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
