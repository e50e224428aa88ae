import LinuxSystem

/// A thread that serves one queue: sleeps on its event, then lets `serve` empty the queue.
final class QueueWorker: Sendable {
    private let worker: EventWorker

    /// - Parameter serve: returns false when the queue is broken; the worker then ends.
    init(
        name: String, queue: Virtqueue, event: EventFD, gate: DeviceGate, serve: @escaping @Sendable (Virtqueue) -> Bool
    ) throws(SystemError) {
        worker = try EventWorker(name: name, event: event, gate: gate) {
            repeat { if !serve(queue) { return false } } while queue.enableNotifications()
            return true
        }
    }
    func stop() { worker.stop() }
}
