import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// A Unix socket that somebody may connect to, as long as this lives. Its file goes with it.
package final class UnixDoor: Sendable {
    private let path: String
    private let stopping = Atomic<Bool>(false)
    private let wake: EventFD
    private let thread = Mutex<HostThread?>(nil)

    /// Throws when the path cannot be listened at. A socket that nobody listens at any more is replaced.
    /// - Parameter opened: takes each connection's descriptor, on a thread of the door's.
    package init(path: String, opened: @escaping @Sendable (Int32) -> Void) throws(SystemError) {
        self.path = path
        wake = try EventFD()
        let fd = UnixSocket.listen(path)
        guard fd >= 0 else { throw SystemError("listen at \(path)") }
        let wake = wake
        let made = try HostThread(name: "vz-unix-door") { [unowned self] in
            while !stopping.load(ordering: .acquiring) {
                var entries = (pollfd(fd: wake.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: fd, events: Int16(POLLIN), revents: 0))
                withUnsafeMutableBytes(of: &entries) { _ = poll($0.bindMemory(to: pollfd.self).baseAddress, 2, -1) }
                guard entries.1.revents != 0 else { continue }
                var address = sockaddr_un()
                var length = UInt32(MemoryLayout<sockaddr_un>.size)
                let accepted = clinux_accept(fd, &address, &length)
                if accepted >= 0 { opened(accepted) } else if errno == EMFILE || errno == ENFILE { usleepMilliseconds(100) }
            }
            close(fd)
        }
        thread.withLock { $0 = made }
    }
    deinit {
        stopping.store(true, ordering: .releasing)
        wake.signal()
        thread.withLock { $0 }?.join()
        unlink(path)
    }
}
