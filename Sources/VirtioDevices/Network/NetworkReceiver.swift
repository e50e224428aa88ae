import Glibc
import HostNetwork
import LinuxSystem
import Synchronization

/// The thread that brings frames to the guest: waits for frames while it has buffers, and for buffers while it has a frame.
final class NetworkReceiver: Sendable {
    private let stopping = Atomic<Bool>(false)
    private let waking: EventFD
    private let thread = Mutex<HostThread?>(nil)

    /// - Parameters:
    ///   - event: signalled by the driver's kicks.
    ///   - backend: where frames come from now.
    ///   - lost: the backend failed, for this reason.
    init(
        queue: Virtqueue, event: EventFD, gate: DeviceGate, mergeable: Bool, accepted: AcceptedOffloads, backend: @escaping @Sendable () -> (any NetworkBackend)?,
        lost: @escaping @Sendable (String) -> Void, needsReset: @escaping @Sendable () -> Void
    ) throws(SystemError) {
        let waking = try EventFD()
        self.waking = waking
        let made = try gate.thread(name: "vz-net-receive", wake: waking) { [unowned self] member in
            var waiting = AdaptiveWait()
            let work = Work(queue: queue, mergeable: mergeable, accepted: accepted)
            do throws(QueueError) {
                while !stopping.load(ordering: .acquiring) {
                    member.checkpoint()
                    guard let backend = backend() else {
                        waking.wait()
                        continue
                    }
                    switch try work.pump(backend) {
                    case .needsBuffers: Self.wait(&waiting, waking, event.fileDescriptor, drain: event)
                    case .needsFrames: Self.wait(&waiting, waking, backend.descriptor, drain: nil)
                    case .failed(let reason): lost(reason)
                    }
                }
            } catch { needsReset() }
        }
        thread.withLock { $0 = made }
    }
    func wake() { waking.signal() }
    func stop() {
        stopping.store(true, ordering: .releasing)
        waking.signal()
        thread.withLock { $0 }?.join()
    }
    private static func wait(_ waiting: inout AdaptiveWait, _ waking: EventFD, _ descriptor: Int32, drain: EventFD?) {
        var entries = (pollfd(fd: waking.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
        withUnsafeMutableBytes(of: &entries) { $0.bindMemory(to: pollfd.self).baseAddress.map { waiting.poll($0, 2, milliseconds: -1) } }
        if entries.0.revents != 0 { waking.drain() }
        drain?.drain()
    }

    /// What belongs to the thread.
    private final class Work {
        enum Outcome { case needsBuffers, needsFrames, failed(String) }
        private let chains: ReceiveChains
        private let mergeable: Bool
        private let accepted: AcceptedOffloads
        private let pieces = GuestPieces(capacity: 1024)  // IOV_MAX
        private let header = UnsafeMutableRawPointer.allocate(byteCount: NetworkDevice.headerSize, alignment: 8)

        init(queue: Virtqueue, mergeable: Bool, accepted: AcceptedOffloads) {
            chains = ReceiveChains(queue, limit: NetworkDevice.queueSize)
            self.mergeable = mergeable
            self.accepted = accepted
        }
        deinit { header.deallocate() }

        func pump(_ backend: any NetworkBackend) throws(QueueError) -> Outcome {
            defer { chains.queue.notify() }
            // Ethernet header with a VLAN tag.
            let needed = NetworkDevice.headerSize + 18 + backend.maximumTransmissionUnit
            let wanted = backend.handlesOffloads && accepted != [] ? NetworkDevice.headerSize + NetworkDevice.largestFrame : needed
            while true {
                guard try gather(needed: needed, wanted: wanted) else {
                    if chains.queue.enableNotifications() { continue }
                    return .needsBuffers
                }
                fillPieces()
                var offload = FrameOffload()
                switch backend.receive(pieces.base, pieces.count, accepted, &offload) {
                // Longer than the link allows: dropped, as a switch would.
                case .done(let count): if count > 0, count <= pieces.total { finish(count, offload) }
                case .lost: continue
                case .wouldBlock: return .needsFrames
                case .failed(let reason): return .failed(reason)
                }
            }
        }
        /// Takes buffers until a large frame fits, as far as there are any; false when a plain frame does not fit.
        private func gather(needed: Int, wanted: Int) throws(QueueError) -> Bool {
            // A driver without mergeable buffers gives one chain for each frame.
            if !mergeable {
                if chains.count > 0 { return true }
                return try chains.take()
            }
            while chains.room < wanted {
                if try chains.take() { continue }
                return chains.room >= needed
            }
            return true
        }
        private func fillPieces() {
            pieces.clear()
            var skip = NetworkDevice.headerSize
            for index in 0..<chains.count { skip = pieces.append(chains[index].writable, skip: skip) }
        }
        /// Gives back the chains of a frame of `count` bytes, all at once: the driver takes them together.
        private func finish(_ count: Int, _ offload: FrameOffload) {
            var left = count + NetworkDevice.headerSize
            var used = 0
            while used < chains.count, left > 0 {
                left -= min(left, chains[used].writableCount)
                used += 1
            }
            PacketHeader.write(offload, buffers: used, to: header)
            writeHeader(used)
            left = count + NetworkDevice.headerSize
            for index in 0..<used {
                let step = min(left, chains[index].writableCount)
                chains.stage(index, written: step)
                left -= step
            }
            chains.publish(used)
        }
        /// The header may be spread over several small chains.
        private func writeHeader(_ used: Int) {
            var done = 0
            for index in 0..<used where done < NetworkDevice.headerSize {
                let step = min(chains[index].writableCount, NetworkDevice.headerSize - done)
                _ = chains[index].write(at: 0, from: header + done, count: step)
                done += step
            }
        }
    }
}
