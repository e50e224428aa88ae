import Foundation

/// A device that shares host directories. Use a subclass.
open class VZDirectorySharingDeviceConfiguration: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
