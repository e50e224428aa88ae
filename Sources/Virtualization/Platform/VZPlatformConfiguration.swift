import Foundation

/// The kind of machine. Use a subclass.
open class VZPlatformConfiguration: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
