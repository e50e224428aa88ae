import Foundation
import LinuxSystem
import VirtioDevices

/// The memory balloon of a machine: asks the guest to give memory back.
open class VZVirtioTraditionalMemoryBalloonDevice: VZMemoryBalloonDevice {
    private let memorySize: UInt64
    private var target: UInt64
    let queue: DispatchQueue
    /// Told of the pages of 4 KiB that the guest is to give.
    var changed: ((UInt32) -> Void)?
    /// Asks the running machine for the guest's own numbers.
    var readsStatistics: ((@escaping @Sendable (GuestMemoryStatistics?) -> Void) -> Void)?
    /// Automatic ballooning (Extensions/AutomaticBallooning.swift).
    var policy: BalloonPolicy?
    var pressure: MemoryPressure?

    init(memorySize: UInt64, queue: DispatchQueue) {
        self.memorySize = memorySize
        self.queue = queue
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
    /// The smaller of what was asked for and what the host's shortage leaves.
    var pages: UInt32 { UInt32(clamping: (memorySize - min(target, policy?.limit ?? memorySize)) / 4096) }
    func makePolicy(minimum: UInt64) -> BalloonPolicy {
        BalloonPolicy(memorySize: memorySize, minimum: max(minimum, VZVirtualMachineConfiguration.minimumAllowedMemorySize))
    }
}
