import Foundation

/// Options for starting a machine; for Linux guests there are none.
open class VZVirtualMachineStartOptions: NSObject {
    public override init() { super.init() }
}
