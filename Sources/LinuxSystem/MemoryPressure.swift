import Glibc
import Synchronization

/// Watches whether programs of this host wait for memory (pressure stall information, /proc/pressure/memory): a trigger of the
/// kernel's where it grants one, otherwise a look every two seconds.
package final class MemoryPressure: Sendable {
    /// Programs waited for at least 150 ms of 2 s. Unprivileged triggers need windows of whole two seconds.
    private static let trigger = "some 150000 2000000"
    private static let threshold: UInt64 = 150_000
    private static let window: Int32 = 2000
    /// How long after the last news the host counts as calm, and how often that is said while somebody wants to hear it.
    private static let calmInterval: Int32 = 10_000

    package enum Change: Sendable { case short, calm }
    /// What the thread needs; the watch itself may be going away while it runs.
    private final class Work: Sendable {
        let path: String
        let wake: EventFD
        let stopping = Atomic<Bool>(false)
        /// Returns whether a host that is calm again is of interest.
        let changed: @Sendable (Change) -> Bool
        init(path: String, changed: @escaping @Sendable (Change) -> Bool) throws(SystemError) {
            wake = try EventFD()
            self.path = path
            self.changed = changed
        }

        func run() {
            let fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC)
            defer { if fd >= 0 { close(fd) } }
            let trigger = MemoryPressure.trigger.utf8CString
            let isTriggered = fd >= 0 && trigger.withUnsafeBytes { write(fd, $0.baseAddress, $0.count) } == trigger.count
            if isTriggered { watch(fd) } else { look() }
        }
        private func watch(_ fd: Int32) {
            var wantsCalm = false
            while true {
                var entries = (pollfd(fd: wake.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: fd, events: Int16(POLLPRI), revents: 0))
                let ready = withUnsafeMutableBytes(of: &entries) {
                    poll($0.bindMemory(to: pollfd.self).baseAddress, 2, wantsCalm ? MemoryPressure.calmInterval : -1)
                }
                if stopping.load(ordering: .acquiring) { return }
                if ready < 0 { continue }
                if entries.1.revents & Int16(POLLERR) != 0 { return look() }  // the trigger is gone
                wantsCalm = changed(ready == 0 ? .calm : .short)
            }
        }
        /// Without a trigger: the time that programs have waited, every two seconds.
        private func look() {
            var last = waited
            var quiet: Int32 = 0
            while true {
                var entry = pollfd(fd: wake.fileDescriptor, events: Int16(POLLIN), revents: 0)
                _ = poll(&entry, 1, MemoryPressure.window)
                if stopping.load(ordering: .acquiring) { return }
                let now = waited
                quiet += MemoryPressure.window
                if now &- last >= MemoryPressure.threshold, now > last {
                    quiet = 0
                    _ = changed(.short)
                } else if quiet >= MemoryPressure.calmInterval {
                    quiet = 0
                    _ = changed(.calm)
                }
                last = now
            }
        }
        /// Microseconds: `total=` of the line that begins with `some`.
        private var waited: UInt64 {
            let fd = open(path, O_RDONLY | O_CLOEXEC)
            guard fd >= 0 else { return 0 }
            defer { close(fd) }
            var bytes = [UInt8](repeating: 0, count: 256)
            let count = read(fd, &bytes, bytes.count)
            let line = String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self).prefix { $0 != "\n" }
            return line.split(separator: "=").last.flatMap { UInt64($0) } ?? 0
        }
    }
    private let work: Work
    private let thread: HostThread

    /// - Parameter changed: called on a thread of the watch's; returns whether it wants to hear when the host is calm again.
    package init(path: String = "/proc/pressure/memory", changed: @escaping @Sendable (Change) -> Bool) throws(SystemError) {
        let work = try Work(path: path, changed: changed)
        self.work = work
        thread = try HostThread(name: "vz-pressure") { work.run() }
    }
    deinit {
        work.stopping.store(true, ordering: .releasing)
        work.wake.signal()
        thread.join()
    }
}
