import CLinux
import Glibc

/// Stream sockets within the host. The device's ends never block.
package enum UnixSocket {
    private static let flags = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)

    /// A pair: the device's end, and the application's, which blocks as sockets do.
    package static func pair() -> (device: Int32, application: Int32)? {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, flags, 0, &ends) == 0 else { return nil }
        _ = clinux_fcntl_setfl(ends[0], O_NONBLOCK)
        return (ends[0], ends[1])
    }
    private static func address(_ path: String) -> sockaddr_un? {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            errno = ENAMETOOLONG
            return nil
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return address
    }
    private static let addressSize = UInt32(MemoryLayout<sockaddr_un>.size)

    /// Connects to a listening socket at `path`; -1 when there is none.
    package static func connect(_ path: String) -> Int32 {
        guard var address = address(path) else { return -1 }
        let fd = socket(AF_UNIX, flags, 0)
        guard fd >= 0 else { return -1 }
        guard clinux_connect(fd, &address, addressSize) == 0 else { return fail(fd) }
        _ = clinux_fcntl_setfl(fd, O_NONBLOCK)
        return fd
    }
    /// A listening socket at `path`, for this user alone; -1 and errno when that cannot be.
    package static func listen(_ path: String) -> Int32 {
        guard var address = address(path) else { return -1 }
        let probe = connect(path)
        if probe >= 0 {
            close(probe)
            errno = EADDRINUSE
            return -1
        }
        if errno == ECONNREFUSED { unlink(path) }
        let fd = socket(AF_UNIX, flags | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard fd >= 0 else { return -1 }
        guard clinux_bind(fd, &address, addressSize) == 0, chmod(path, 0o600) == 0, Glibc.listen(fd, 128) == 0 else { return fail(fd) }
        return fd
    }
    private static func fail(_ fd: Int32) -> Int32 {
        let code = errno
        close(fd)
        errno = code
        return -1
    }
}
