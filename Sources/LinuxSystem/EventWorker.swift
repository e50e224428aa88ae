import Synchronization

/// A thread that waits for an event and works when it is signalled, between checkpoints of a gate.
package final class EventWorker: Sendable {
    private let stopping = Atomic<Bool>(false)
    private let event: EventFD
    private let thread = Mutex<HostThread?>(nil)

    /// - Parameters:
    ///   - isReady: whether there is work; asked for a while before the thread sleeps (`AdaptiveWait`). Nil: whether the event was signalled.
    ///   - maySleep: the last word before that: from true on, new work signals the event.
    ///   - work: returns false when there is nothing to work for any more; the thread then ends.
    package init(
        name: String, event: EventFD, gate: DeviceGate, isReady: (@Sendable () -> Bool)? = nil, maySleep: @escaping @Sendable () -> Bool = { true },
        work: @escaping @Sendable () -> Bool
    ) throws(SystemError) {
        self.event = event
        let made = try gate.thread(name: name, wake: event) { [unowned self] member in
            var waiting = AdaptiveWait()
            while !stopping.load(ordering: .acquiring) {
                member.checkpoint()
                guard work() else { return }
                waiting.wait({ isReady?() ?? event.drain() }, orSleep: { if maySleep() { event.wait() } })
            }
        }
        thread.withLock { $0 = made }
    }
    /// Returns when the thread has ended. To be called before the worker goes.
    package func stop() {
        stopping.store(true, ordering: .releasing)
        event.signal()
        thread.withLock { $0 }?.join()
    }
}
