import Foundation

/// A sharing device of a machine.
open class VZDirectorySharingDevice: NSObject {
    override init() { super.init() }
}
