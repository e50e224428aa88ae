import Foundation

/// A socket device. Use a subclass.
open class VZSocketDeviceConfiguration: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
