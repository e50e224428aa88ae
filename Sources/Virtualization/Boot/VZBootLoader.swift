import Foundation

/// How a machine finds its operating system. Use a subclass.
open class VZBootLoader: NSObject, NSCopying {
    override init() { super.init() }
    public func copy(with zone: NSZone? = nil) -> Any { self }
}
