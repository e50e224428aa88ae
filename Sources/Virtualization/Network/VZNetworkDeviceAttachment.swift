import Foundation
import HostNetwork

/// What a network device is connected to. Use a subclass.
open class VZNetworkDeviceAttachment: NSObject {
    override init() { super.init() }

    /// Throws what keeps it from being used.
    func validate() throws { throw VZError.configuration("A network device attachment of type \(type(of: self)) is not supported yet.") }
    func makeBackend() throws -> any NetworkBackend { throw NetworkError("\(type(of: self)) is not supported yet") }
}
