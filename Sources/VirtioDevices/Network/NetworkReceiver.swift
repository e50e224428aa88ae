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
    ///   - lost: the backend failed.
    init(
        queue: Virtqueue, event: EventFD, mergeable: Bool, backend: @escaping @Sendable () -> (any NetworkBackend)?,
        lost: @escaping @Sendable (any NetworkBackend, String) -> Void, needsReset: @escaping @Sendable () -> Void
    ) throws(SystemError) {
        let waking = try EventFD()
        self.waking = waking
        let made = try HostThread(name: "vz-net-receive") { [unowned self] in
            let work = Work(queue: queue, mergeable: mergeable)
            do throws(QueueError) {
                while !stopping.load(ordering: .acquiring) {
                    guard let backend = backend() else {
                        waking.wait()
                        continue
                    }
                    switch try work.pump(backend) {
                    case .needsBuffers: Self.wait(waking, event.fileDescriptor, drain: event)
                    case .needsFrames: Self.wait(waking, backend.descriptor, drain: nil)
                    case .failed(let reason): lost(backend, reason)
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
    private static func wait(_ waking: EventFD, _ descriptor: Int32, drain: EventFD?) {
        var entries = (pollfd(fd: waking.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
        withUnsafeMutableBytes(of: &entries) { _ = poll($0.bindMemory(to: pollfd.self).baseAddress, 2, -1) }
        if entries.0.revents != 0 { waking.drain() }
        drain?.drain()
    }

    /// What belongs to the thread.
    private final class Work {
        enum Outcome { case needsBuffers, needsFrames, failed(String) }
        private let queue: Virtqueue
        private let mergeable: Bool
        private let pieces = FramePieces(capacity: NetworkDevice.queueSize)
        /// Chains that were taken and not given back: the first `held` of them.
        private var chains: [DescriptorChain] = []
        private var held = 0
        private var room = 0
        /// A frame that waits for more buffers, and its bytes.
        private let scratch = UnsafeMutableRawPointer.allocate(byteCount: NetworkDevice.largestFrame, alignment: 16)
        private var waiting = 0
        private let header = UnsafeMutableRawPointer.allocate(byteCount: NetworkDevice.headerSize, alignment: 8)

        init(queue: Virtqueue, mergeable: Bool) {
            self.queue = queue
            self.mergeable = mergeable
            memset(header, 0, NetworkDevice.headerSize)
        }
        deinit {
            scratch.deallocate()
            header.deallocate()
        }

        func pump(_ backend: any NetworkBackend) throws(QueueError) -> Outcome {
            defer { queue.notify() }
            while true {
                if held == 0, try !take() {
                    if queue.enableNotifications() { continue }
                    return .needsBuffers
                }
                if waiting == 0 {
                    switch receive(backend) {
                    case .done(let count): if count > 0, try place(count) { continue }
                    case .lost: continue
                    case .wouldBlock: return .needsFrames
                    case .failed(let reason): return .failed(reason)
                    }
                    if waiting == 0 { continue }
                }
                // The frame is in `scratch`; more buffers are needed.
                while room < waiting + NetworkDevice.headerSize {
                    if try take() { continue }
                    if queue.enableNotifications() { continue }
                    return .needsBuffers
                }
                copyWaiting()
            }
        }
        private func take() throws(QueueError) -> Bool {
            // More than any frame needs: buffers of next to nothing.
            guard held < NetworkDevice.queueSize else { throw .chainTooLong }
            if held == chains.count { chains.append(DescriptorChain(capacity: 8)) }
            guard try queue.pop(chains[held]) else { return false }
            room += chains[held].writableCount
            held += 1
            return true
        }
        /// Straight into the first chain when any frame fits it; else into `scratch`.
        private func receive(_ backend: any NetworkBackend) -> FrameResult {
            if isLarge(backend) {
                _ = pieces.fill(chains[0].writable, skip: NetworkDevice.headerSize)
                return backend.receive(pieces.base, pieces.count)
            }
            pieces.base[0] = iovec(iov_base: scratch, iov_len: NetworkDevice.largestFrame)
            return backend.receive(pieces.base, 1)
        }
        private func isLarge(_ backend: any NetworkBackend) -> Bool {
            held == 1 && chains[0].writableCount >= NetworkDevice.headerSize + backend.maximumTransmissionUnit + 14
        }
        /// True when the frame is with the guest, or dropped; false when it waits in `scratch`.
        private func place(_ count: Int) throws(QueueError) -> Bool {
            // Longer than the link allows: dropped, as a switch would.
            if held == 1, pieces.base[0].iov_base != scratch {
                if count + NetworkDevice.headerSize > chains[0].writableCount { return true }
                finish(count)
                return true
            }
            guard count <= NetworkDevice.largestFrame else { return true }
            if !mergeable, count + NetworkDevice.headerSize > room { return true }
            waiting = count
            return false
        }
        private func copyWaiting() {
            var (done, skip) = (0, NetworkDevice.headerSize)
            for chain in chains[..<held] where done < waiting {
                let step = min(max(chain.writableCount - skip, 0), waiting - done)
                _ = chain.write(at: skip, from: scratch + done, count: step)
                done += step
                skip = max(skip - chain.writableCount, 0)
            }
            let count = waiting
            waiting = 0
            finish(count)
        }
        /// Gives back the chains of a frame of `count` bytes, all at once: the driver takes them together.
        private func finish(_ count: Int) {
            var left = count + NetworkDevice.headerSize
            var used = 0
            while used < held, left > 0 {
                left -= min(left, chains[used].writableCount)
                used += 1
            }
            (header + 10).storeBytes(of: UInt16(used).littleEndian, as: UInt16.self)
            writeHeader(used)
            left = count + NetworkDevice.headerSize
            for chain in chains[..<used] {
                let step = min(left, chain.writableCount)
                queue.stage(chain, written: step)
                room -= chain.writableCount
                left -= step
            }
            queue.publish()
            // What was taken and not needed comes first next time.
            for index in used..<held { chains.swapAt(index, index - used) }
            held -= used
        }
        /// The header may be spread over several small chains.
        private func writeHeader(_ used: Int) {
            var done = 0
            for chain in chains[..<used] where done < NetworkDevice.headerSize {
                let step = min(chain.writableCount, NetworkDevice.headerSize - done)
                _ = chain.write(at: 0, from: header + done, count: step)
                done += step
            }
        }
    }
}
