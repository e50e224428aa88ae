import Glibc
import LinuxSystem
import CLinux
import Synchronization

/// A source of random bytes. VIRTIO 1.2 § 5.4.
package final class EntropyDevice: VirtioDevice {
    /// A driver gets no more than this for one request, however large its buffer: the work for a kick stays bounded.
    private static let maximumRequest = 64 * 1024

    private let worker = Mutex<QueueWorker?>(nil)
    private let event: EventFD

    package init() throws(SystemError) { event = try EventFD() }

    package var deviceType: UInt16 { 4 }
    package var pciClass: UInt32 { 0x00FF00 }
    package var features: UInt64 { 0 }
    package var queueSizes: [UInt16] { [64] }
    package func configRead(_ offset: Int, size: Int) -> UInt64 { 0 }
    package func queueEvent(_ index: Int) -> EventFD? { event }

    package func activate(_ activation: VirtioActivation) {
        guard let queue = activation.queues[0] else { return }
        let chain = DescriptorChain(capacity: 64)
        nonisolated(unsafe) let owned = chain  // only the worker touches it
        let made = try? QueueWorker(name: "vz-entropy", queue: queue, event: event, gate: activation.gate) { queue in
            do throws(QueueError) {
                while try queue.pop(owned) {
                    var written = 0
                    for buffer in owned.writable where written < Self.maximumRequest {
                        let count = getrandom(buffer.pointer, min(buffer.count, Self.maximumRequest - written), 0)
                        if count <= 0 { break }
                        written += count
                    }
                    queue.complete(owned, written: written)
                    queue.notify()
                }
                return true
            } catch {
                activation.needsReset()
                return false
            }
        }
        worker.withLock { $0 = made }
        if made == nil { activation.needsReset() }
    }
    package func reset() {
        let old = worker.withLock { worker in
            defer { worker = nil }
            return worker
        }
        old?.stop()
    }
}
