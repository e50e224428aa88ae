import Foundation

/// A source of random numbers. Use a subclass.
open class VZEntropyDeviceConfiguration: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
