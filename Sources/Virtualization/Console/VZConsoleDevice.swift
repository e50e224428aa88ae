import Foundation

/// A console device of a machine.
open class VZConsoleDevice: NSObject {
    override init() { super.init() }
}
