import LinuxSystem
import Synchronization

/// A thread that serves one queue: sleeps on its event, then lets `serve` empty the queue.
final class QueueWorker: Sendable {
    private let stopping = Atomic<Bool>(false)
    private let event: EventFD
    private let thread = Mutex<HostThread?>(nil)

    /// - Parameter serve: returns false when the queue is broken; the worker then ends.
    init(
        name: String, queue: Virtqueue, event: EventFD, gate: DeviceGate, serve: @escaping @Sendable (Virtqueue) -> Bool
    ) throws(SystemError) {
        self.event = event
        let member = try gate.join(wake: event)
        do throws(SystemError) {
            let made = try HostThread(name: name) { [unowned self] in
                defer { member.leave() }
                while !stopping.load(ordering: .acquiring) {
                    member.checkpoint()
                    repeat { if !serve(queue) { return } } while queue.enableNotifications()
                    event.wait()
                }
            }
            thread.withLock { $0 = made }
        } catch {
            member.leave()
            throw error
        }
    }
    func stop() {
        stopping.store(true, ordering: .releasing)
        event.signal()
        thread.withLock { $0 }?.join()
    }
}
