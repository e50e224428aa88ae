import CLinux
import Glibc
import Synchronization

/// A joinable host thread with a name.
package final class HostThread: @unchecked Sendable {  // handle is written once, before anyone else sees the object
    private var handle = pthread_t()
    private let joined = Mutex(false)
    private final class Box {
        let name: String
        let body: () -> Void
        init(_ name: String, _ body: @escaping () -> Void) {
            self.name = name
            self.body = body
        }
    }

    package init(name: String, body: @escaping @Sendable () -> Void) throws(SystemError) {
        let box = Unmanaged.passRetained(Box(name, body))
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setstacksize(&attributes, 1 << 20)
        let result = pthread_create(
            &handle, &attributes,
            { raw in
                guard let raw else { return nil }
                let box = Unmanaged<Box>.fromOpaque(raw).takeRetainedValue()
                clinux_set_name(box.name)
                // Threads that descend from a dispatch worker have every signal blocked: this one would end the process then.
                var signals = sigset_t()
                sigemptyset(&signals)
                sigaddset(&signals, SIGBUS)
                pthread_sigmask(SIG_UNBLOCK, &signals, nil)
                box.body()
                return nil
            }, box.toOpaque())
        pthread_attr_destroy(&attributes)
        if result != 0 {
            box.release()
            throw SystemError("start thread \(name)", errno: result)
        }
    }
    package var isCurrent: Bool { pthread_equal(pthread_self(), handle) != 0 }
    package func kill(_ signal: Int32) { pthread_kill(handle, signal) }

    /// Waits for the thread's end; safe to call twice, a no-op on the thread itself.
    package func join() {
        joined.withLock { done in
            if done { return }
            done = true
            if isCurrent { pthread_detach(handle) } else { pthread_join(handle, nil) }
        }
    }
}
