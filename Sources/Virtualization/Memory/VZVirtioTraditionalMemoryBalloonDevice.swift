import Foundation

/// The memory balloon of a machine: asks the guest to give memory back.
open class VZVirtioTraditionalMemoryBalloonDevice: VZMemoryBalloonDevice {
    private let memorySize: UInt64
    private var target: UInt64
    /// Told of the pages of 4 KiB that the guest is to give.
    var changed: ((UInt32) -> Void)?

    init(memorySize: UInt64) {
        self.memorySize = memorySize
        target = memorySize
        super.init()
    }

    /// Bytes that the guest is to get along with: the machine's memory size at first. What is set is rounded down to 1 MiB and
    /// kept between `VZVirtualMachineConfiguration.minimumAllowedMemorySize` and the machine's memory size. The guest gives what it
    /// can, when it can, and takes memory back rather than run out of it. On the machine's queue.
    open var targetVirtualMachineMemorySize: UInt64 {
        get { target }
        set {
            let lowest = min(VZVirtualMachineConfiguration.minimumAllowedMemorySize, memorySize)
            target = min(max(newValue & ~((1 << 20) - 1), lowest), memorySize)
            changed?(pages)
        }
    }
    var pages: UInt32 { UInt32(clamping: (memorySize - target) / 4096) }
}
