import Foundation
import LinuxSystem
import Synchronization
import VirtioDevices

/// Beyond Apple's API: what a guest says of its memory, in bytes. A guest's own words: do not rely on them.
public struct GuestMemoryUse: Hashable, Sendable {
    /// Memory that the guest's system manages.
    public var total: UInt64?
    /// Memory that nothing uses.
    public var free: UInt64?
    /// Memory that programs could get without swapping: free, and caches that can be dropped.
    public var available: UInt64?
    /// Caches of files.
    public var caches: UInt64?
    public var majorFaults: UInt64?
    public var minorFaults: UInt64?
}

extension VZVirtioTraditionalMemoryBalloonDevice {
    /// Beyond Apple's API: asks the guest about its memory. On the machine's queue, and so comes the answer: nil when no guest that
    /// tells is running. A guest that hangs gives no answer before it is stopped.
    public func readMemoryUse(completionHandler: @escaping (GuestMemoryUse?) -> Void) {
        guard let readsStatistics else { return completionHandler(nil) }
        let handler = Unchecked(completionHandler)
        readsStatistics { [queue] statistics in
            queue.async {
                handler.value(
                    statistics.map {
                        let values = $0.values
                        return GuestMemoryUse(
                            total: values[GuestMemoryStatistics.Tag.total], free: values[GuestMemoryStatistics.Tag.free],
                            available: values[GuestMemoryStatistics.Tag.available], caches: values[GuestMemoryStatistics.Tag.caches],
                            majorFaults: values[GuestMemoryStatistics.Tag.majorFaults], minorFaults: values[GuestMemoryStatistics.Tag.minorFaults])
                    })
            }
        }
    }

    /// Beyond Apple's API: whether the guest gives memory back when programs of the host wait for memory (Linux's pressure stall
    /// information): bytes that it keeps in any case, or nil for never, which is the default. When the host has been calm for ten
    /// seconds, the guest gets its memory back in steps. `targetVirtualMachineMemorySize` stays the upper limit. On the machine's
    /// queue.
    public var automaticMinimumMemorySize: UInt64? {
        get { policy?.minimum }
        set {
            policy = newValue.map { makePolicy(minimum: $0) }
            changed?(pages)
            guard policy != nil, pressure == nil else {
                if policy == nil { pressure = nil }
                return
            }
            let this = WeakBalloon(self)
            pressure = try? MemoryPressure { change in
                // What the guest gives it gives later, when it has said what it can spare: it counts as given at once.
                if change == .short { this.mayHold.store(true, ordering: .relaxed) }
                this.queue.async {
                    this.value?.hostChanged(change)
                    if change == .calm { this.mayHold.store(this.value?.policy?.isHolding == true, ordering: .relaxed) }
                }
                return this.mayHold.load(ordering: .relaxed)
            }
        }
    }
    package func hostChanged(_ change: MemoryPressure.Change) {
        guard policy != nil else { return }
        switch change {
        case .calm:
            guard policy?.isHolding == true else { return }
            policy?.hostIsCalm()
            changed?(pages)
        case .short:
            readMemoryUse { [weak self] use in
                guard let self, self.policy != nil, let use else { return }
                self.policy?.hostIsShort(available: use.available ?? use.free)
                self.changed?(self.pages)
            }
        }
    }
}

/// A balloon that is only looked at on its machine's queue.
private final class WeakBalloon: @unchecked Sendable {
    private(set) weak var value: VZVirtioTraditionalMemoryBalloonDevice?
    let queue: DispatchQueue
    /// Whether the guest may have less than all, so that it matters when the host is calm again.
    let mayHold = Atomic<Bool>(false)
    init(_ balloon: VZVirtioTraditionalMemoryBalloonDevice) {
        value = balloon
        queue = balloon.queue
    }
}
