import Foundation

/// A socket device of a machine.
open class VZSocketDevice: NSObject {
    override init() { super.init() }
}
