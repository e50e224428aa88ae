import FileServer
import GuestMemory
import LinuxSystem
import Synchronization

/// A file system device: FUSE requests over virtqueues. VIRTIO 1.2 § 5.11. A thread a queue.
package final class FileSystemDevice: VirtioDevice {
    private static let queueSize: UInt16 = 256
    private static let tagSize = 36

    private let tag: String
    private let server: FileServer
    private let requestQueues: Int
    private let events: [EventFD]
    private let workers = Mutex<[QueueWorker]>([])
    package let sharedMemory: GuestMemory.Region?
    private let window: DirectWindow?

    /// - Parameters:
    ///   - tag: what the guest mounts, at most 36 bytes.
    ///   - requestQueues: 1 or more; Linux uses as many as it has processors, from 6.11 on.
    ///   - window: where the guest may map files, a power of two from 2 MiB; part of the window of `memory`.
    package init(
        tag: String, server: FileServer, requestQueues: Int, window: GuestMemory.Region? = nil, memory: GuestMemory
    ) throws(SystemError) {
        self.tag = tag
        self.server = server
        self.requestQueues = requestQueues
        var events: [EventFD] = []
        for _ in 0...requestQueues { events.append(try EventFD()) }
        self.events = events
        sharedMemory = window
        guard let window else {
            self.window = nil
            return
        }
        let shown = try DirectWindow(host: window.host, size: Int(window.size)) { offset, count in
            memory.noteWrite(window.base + UInt64(offset), count)
        }
        self.window = shown
        server.show(shown)
    }
    deinit {
        guard let window else { return }
        server.hide(window)
        window.close()
    }

    package var deviceType: UInt16 { 26 }
    package var pciClass: UInt32 { 0x018000 }
    package var features: UInt64 { 0 }
    /// The first one is for what must not wait.
    package var queueSizes: [UInt16] { [UInt16](repeating: Self.queueSize, count: requestQueues + 1) }
    package func queueEvent(_ index: Int) -> EventFD? { events.indices.contains(index) ? events[index] : nil }
    package func configRead(_ offset: Int, size: Int) -> UInt64 {
        let name = Array(tag.utf8.prefix(Self.tagSize))
        let padding = [UInt8](repeating: 0, count: Self.tagSize - name.count)
        return configField(name + padding + (0..<4).map { UInt8(truncatingIfNeeded: requestQueues >> (8 * $0)) }, offset, size)
    }

    package func activate(_ activation: VirtioActivation) {
        if let files = activation.image?.files { server.restore(files) }
        do throws(SystemError) {
            for (index, queue) in activation.queues.enumerated() {
                guard let queue, index < events.count else { continue }
                let worker = try makeWorker(queue, events[index], activation)
                workers.withLock { $0.append(worker) }
            }
        } catch { activation.needsReset() }
    }
    package func reset() {
        let old = workers.withLock { workers in
            defer { workers = [] }
            return workers
        }
        for worker in old { worker.stop() }
        server.reset()
    }

    package func makeImage() -> DeviceImage {
        var image = DeviceImage()
        image.files = server.makeImage()
        return image
    }

    private func makeWorker(_ queue: Virtqueue, _ event: EventFD, _ activation: VirtioActivation) throws(SystemError) -> QueueWorker {
        let server = server
        // Only the worker touches these; the first of them is made on its thread.
        nonisolated(unsafe) var answering: FileServer.Worker?
        nonisolated(unsafe) let chain = DescriptorChain(capacity: Int(Self.queueSize))
        nonisolated(unsafe) let question = GuestPieces(capacity: 1024)
        nonisolated(unsafe) let answer = GuestPieces(capacity: 1024)
        return try QueueWorker(name: "vz-fs", queue: queue, event: event, gate: activation.gate) { queue in
            let worker = answering ?? FileServer.Worker(server)
            answering = worker
            do throws(QueueError) {
                while try queue.pop(chain) {
                    question.clear()
                    question.append(chain.readable, skip: 0)
                    answer.clear()
                    answer.append(chain.writable, skip: 0)
                    let written = worker.handle(question.base, question.count, answer.base, answer.count)
                    queue.complete(chain, written: written)
                    queue.notify()
                }
                return true
            } catch {
                activation.needsReset()
                return false
            }
        }
    }
}
