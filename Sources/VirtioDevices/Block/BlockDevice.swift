import DiskStorage
import Glibc
import LinuxSystem
import Synchronization

/// A disk. VIRTIO 1.2 § 5.2. One queue and one worker for each vCPU; data goes straight between file and guest memory.
package final class BlockDevice: VirtioDevice {
    package static let queueSize: UInt16 = 512
    private static let segmentLimit: UInt32 = 510
    /// Largest discard or write-zeroes range, in sectors, and ranges a request.
    private static let rangeLimit: UInt32 = 1 << 22
    private static let rangesPerRequest: UInt32 = 16

    /// § 5.2.3.
    private enum Feature {
        static let segMax: UInt64 = 1 << 2
        static let readOnly: UInt64 = 1 << 5
        static let blockSize: UInt64 = 1 << 6
        static let flush: UInt64 = 1 << 9
        static let multiQueue: UInt64 = 1 << 12
        static let discard: UInt64 = 1 << 13
        static let writeZeroes: UInt64 = 1 << 14
    }
    private let backend: any ChannelBackend
    private let identifier: [UInt8]
    private let events: [EventFD]
    private let workers = Mutex<[ChannelWorker]>([])
    private let rangesPerRequest: UInt32

    /// - Parameter identifier: at most 20 ASCII bytes, the disk's serial number in the guest.
    package init(storage: any BlockStorage, identifier: String, queueCount: Int) throws(SystemError) {
        if let disk = storage as? any BlockBackend {
            backend = PooledDisk(disk)
            rangesPerRequest = Self.rangesPerRequest
        } else {
            guard let channels = storage as? any ChannelBackend else { throw SystemError("use a disk of an unknown kind", errno: EINVAL) }
            backend = channels
            rangesPerRequest = 1
        }
        self.identifier = Array(identifier.utf8.prefix(20))
        var events: [EventFD] = []
        for _ in 0..<max(min(queueCount, backend.channelLimit), 1) { events.append(try EventFD()) }
        self.events = events
    }
    /// § 5.2.4.
    private var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 60)
        func put(_ offset: Int, _ value: UInt64, _ count: Int) {
            for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
        put(0, backend.byteCount / 512, 8)
        put(12, UInt64(Self.segmentLimit), 4)
        put(20, UInt64(backend.blockSize), 4)
        put(34, UInt64(events.count), 2)
        put(36, UInt64(Self.rangeLimit), 4)
        put(40, UInt64(rangesPerRequest), 4)
        put(44, 8, 4)
        put(48, UInt64(Self.rangeLimit), 4)
        put(52, UInt64(rangesPerRequest), 4)
        put(56, 1, 1)
        return bytes
    }

    package var deviceType: UInt16 { 2 }
    package var pciClass: UInt32 { 0x010000 }
    package var features: UInt64 {
        Feature.segMax | Feature.blockSize | Feature.flush | Feature.multiQueue
            | (backend.isReadOnly ? Feature.readOnly : Feature.discard | Feature.writeZeroes)
    }
    package var queueSizes: [UInt16] { events.map { _ in Self.queueSize } }
    package func configRead(_ offset: Int, size: Int) -> UInt64 { configField(configuration, offset, size) }
    package func queueEvent(_ index: Int) -> EventFD? { events[index] }

    package func activate(_ activation: VirtioActivation) {
        do throws(SystemError) {
            for queue in activation.queues.compactMap({ $0 }) {
                let worker = try ChannelWorker(
                    name: "vz-block-\(queue.index)", queue: queue, event: events[queue.index], gate: activation.gate, backend: backend, identifier: identifier,
                    rangesPerRequest: Int(rangesPerRequest), needsReset: activation.needsReset)
                workers.withLock { $0.append(worker) }
            }
        } catch { activation.needsReset() }
        backend.onResize(activation.configurationChanged)
    }
    package func reset() {
        backend.onResize(nil)
        let old = workers.withLock { workers in
            defer { workers = [] }
            return workers
        }
        for worker in old { worker.stop() }
    }
}
