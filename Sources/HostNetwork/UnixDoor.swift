import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// A Unix socket that somebody may connect to, as long as this lives. Its file goes with it.
package final class UnixDoor: Sendable {
    /// What the thread needs; the door itself may be going away while it runs.
    private final class Watch: Sendable {
        let listener: Int32
        let wake: EventFD
        let stopping = Atomic<Bool>(false)
        let opened: @Sendable (Int32) -> Void
        init(listener: Int32, opened: @escaping @Sendable (Int32) -> Void) throws(SystemError) {
            wake = try EventFD()
            self.listener = listener
            self.opened = opened
        }

        func run() {
            while !stopping.load(ordering: .acquiring) {
                var entries = (pollfd(fd: wake.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: listener, events: Int16(POLLIN), revents: 0))
                withUnsafeMutableBytes(of: &entries) { _ = poll($0.bindMemory(to: pollfd.self).baseAddress, 2, -1) }
                guard entries.1.revents != 0 else { continue }
                var address = sockaddr_un()
                var length = UInt32(MemoryLayout<sockaddr_un>.size)
                let accepted = clinux_accept(listener, &address, &length)
                if accepted >= 0 { opened(accepted) } else if errno == EMFILE || errno == ENFILE { usleepMilliseconds(100) }
            }
        }
    }
    private let path: String
    private let watch: Watch
    private let thread: HostThread

    /// Throws when the path cannot be listened at. A socket that nobody listens at any more is replaced.
    /// - Parameter opened: takes each connection's descriptor, on a thread of the door's.
    package init(path: String, opened: @escaping @Sendable (Int32) -> Void) throws(SystemError) {
        self.path = path
        let listener = UnixSocket.listen(path)
        guard listener >= 0 else { throw SystemError("listen at \(path)") }
        do throws(SystemError) {
            let watch = try Watch(listener: listener, opened: opened)
            self.watch = watch
            thread = try HostThread(name: "vz-unix-door") { watch.run() }
        } catch {
            close(listener)
            unlink(path)
            throw error
        }
    }
    deinit {
        watch.stopping.store(true, ordering: .releasing)
        watch.wake.signal()
        thread.join()
        unlink(path)
        close(watch.listener)
    }
}
