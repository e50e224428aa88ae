import Foundation

/// The host side of a serial or console port. Use a subclass.
open class VZSerialPortAttachment: NSObject {
    override init() { super.init() }

    /// Descriptors for a running machine, the caller's to close; -1 for none. Throws for a handle that is not open.
    func makeEndpoint() throws -> (input: Int32, output: Int32) { (-1, -1) }
}
