import Glibc
import HostNetwork
import LinuxSystem

/// Something of the host's that the stack waits for: a socket with what the guest does through it. All under the stack's lock.
class Endpoint {
    let id: UInt64
    let fd: Int32
    /// Whether it is in the stack's list of endpoints that may have a frame.
    final var isReady = false
    /// When something is to be done if nothing happens before, in nanoseconds of the monotonic clock; 0: never.
    final var deadline: UInt64 = 0

    init(id: UInt64, fd: Int32) {
        self.id = id
        self.fd = fd
    }
    /// epoll says so.
    func happened(_ events: UInt32, _ stack: Stack) { stack.makeReady(self) }
    /// The next frame for the guest: its size, or nil when there is none now.
    func produce(_ room: MemoryPieces, _ stack: Stack) -> Int? { nil }
    /// The deadline has passed. Sets another one, or ends.
    func expired(_ now: UInt64, _ stack: Stack) {}
    /// Whether it goes with the guest's driver.
    var endsWithGuest: Bool { true }
    /// Closes what it has of the host's; the stack forgets it.
    func end() { close(fd) }
}
