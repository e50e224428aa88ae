import Foundation

/// A memory balloon. Use a subclass.
open class VZMemoryBalloonDeviceConfiguration: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
