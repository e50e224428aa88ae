import LinuxSystem

/// A thread that serves one queue: waits for chains, then lets `serve` empty the queue. While it looks for them the driver need not
/// kick, and hears of what was completed only before the thread sleeps, unless `serve` tells it sooner.
final class QueueWorker: Sendable {
    private let worker: EventWorker

    /// - Parameter serve: returns false when the queue is broken; the worker then ends.
    init(
        name: String, queue: Virtqueue, event: EventFD, gate: DeviceGate, serve: @escaping @Sendable (Virtqueue) -> Bool
    ) throws(SystemError) {
        worker = try EventWorker(
            name: name, event: event, gate: gate, isReady: { queue.hasAvailable },
            maySleep: {
                queue.notify()
                return !queue.enableNotifications()
            }, work: { serve(queue) })
    }
    func stop() { worker.stop() }
}
