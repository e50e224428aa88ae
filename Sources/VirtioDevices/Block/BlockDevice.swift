import DiskStorage
import Glibc
import LinuxSystem
import Synchronization

/// A disk. VIRTIO 1.2 § 5.2. One queue and one worker for each vCPU; data goes straight between file and guest memory.
package final class BlockDevice: VirtioDevice {
    package static let queueSize: UInt16 = 256
    private static let segmentLimit: UInt32 = 254
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
    private let storage: any BlockStorage
    private let identifier: [UInt8]
    private let events: [EventFD]
    private struct State {
        var workers: [QueueWorker] = []
        var channels: [ChannelWorker] = []
    }
    private let state = Mutex(State())
    private let rangesPerRequest: UInt32

    /// - Parameter identifier: at most 20 ASCII bytes, the disk's serial number in the guest.
    package init(storage: any BlockStorage, identifier: String, queueCount: Int) throws(SystemError) {
        self.storage = storage
        self.identifier = Array(identifier.utf8.prefix(20))
        var events: [EventFD] = []
        let channels = storage as? any ChannelBackend
        for _ in 0..<max(min(queueCount, channels?.channelLimit ?? queueCount), 1) { events.append(try EventFD()) }
        self.events = events
        rangesPerRequest = channels == nil ? Self.rangesPerRequest : 1
    }
    /// § 5.2.4.
    private var configuration: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 60)
        func put(_ offset: Int, _ value: UInt64, _ count: Int) {
            for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
        put(0, storage.byteCount / 512, 8)
        put(12, UInt64(Self.segmentLimit), 4)
        put(20, UInt64(storage.blockSize), 4)
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
            | (storage.isReadOnly ? Feature.readOnly : Feature.discard | Feature.writeZeroes)
    }
    package var queueSizes: [UInt16] { events.map { _ in Self.queueSize } }
    package func configRead(_ offset: Int, size: Int) -> UInt64 { configField(configuration, offset, size) }
    package func queueEvent(_ index: Int) -> EventFD? { events[index] }

    package func activate(_ activation: VirtioActivation) {
        do throws(SystemError) {
            for queue in activation.queues.compactMap({ $0 }) {
                if let backend = storage as? any BlockBackend { try serve(queue, backend, activation) }
                if let backend = storage as? any ChannelBackend {
                    let worker = try ChannelWorker(
                        name: "vz-block-\(queue.index)", queue: queue, event: events[queue.index], gate: activation.gate, backend: backend,
                        identifier: identifier, needsReset: activation.needsReset)
                    state.withLock { $0.channels.append(worker) }
                }
            }
        } catch { activation.needsReset() }
        (storage as? any ChannelBackend)?.onResize(activation.configurationChanged)
    }
    private func serve(_ queue: Virtqueue, _ backend: any BlockBackend, _ activation: VirtioActivation) throws(SystemError) {
        let requests = BlockRequests(backend: backend, identifier: identifier, rangesPerRequest: Int(rangesPerRequest))
        nonisolated(unsafe) let owned = requests  // only the worker touches it
        let worker = try QueueWorker(name: "vz-block-\(queue.index)", queue: queue, event: events[queue.index], gate: activation.gate) { queue in
            do throws(QueueError) {
                try owned.serve(queue)
                return true
            } catch {
                activation.needsReset()
                return false
            }
        }
        state.withLock { $0.workers.append(worker) }
    }
    package func reset() {
        (storage as? any ChannelBackend)?.onResize(nil)
        let old = state.withLock { state in
            defer { state = State() }
            return state
        }
        for worker in old.workers { worker.stop() }
        for worker in old.channels { worker.stop() }
    }
}
