import Foundation

/// A memory balloon of a machine.
open class VZMemoryBalloonDevice: NSObject {
    override init() { super.init() }
}
