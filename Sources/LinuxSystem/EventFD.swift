import CLinux
import Glibc

/// An eventfd: a counter that one side adds to and the other waits for. Any thread.
package final class EventFD: Sendable {
    package let fileDescriptor: Int32

    package init() throws(SystemError) {
        fileDescriptor = Int32(try SystemError.check("eventfd") { Int(eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))) })
    }
    deinit { close(fileDescriptor) }

    package func signal() {
        var one: UInt64 = 1
        while write(fileDescriptor, &one, 8) < 0, Glibc.errno == EINTR {}
    }
    /// Resets the counter; true when it was not zero.
    @discardableResult package func drain() -> Bool {
        var value: UInt64 = 0
        return read(fileDescriptor, &value, 8) == 8
    }
    /// Blocks until signalled, then resets.
    /// - Parameter milliseconds: returns after so many in any case; -1 for never.
    package func wait(milliseconds: Int32 = -1) {
        var entry = pollfd(fd: fileDescriptor, events: Int16(POLLIN), revents: 0)
        while true {
            if drain() { return }
            if poll(&entry, 1, milliseconds) == 0 { return }
        }
    }
}
