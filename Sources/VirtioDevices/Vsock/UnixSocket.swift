import CLinux
import Glibc

/// Stream sockets within the host. The device's ends never block.
enum UnixSocket {
    private static let flags = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)

    /// A pair: the device's end, and the application's, which blocks as sockets do.
    static func pair() -> (device: Int32, application: Int32)? {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, flags, 0, &ends) == 0 else { return nil }
        _ = clinux_fcntl_setfl(ends[0], O_NONBLOCK)
        return (ends[0], ends[1])
    }
    /// Connects to a listening socket at `path`; -1 when there is none.
    static func connect(_ path: String) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return -1 }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let fd = socket(AF_UNIX, flags, 0)
        guard fd >= 0 else { return -1 }
        guard clinux_connect(fd, &address, UInt32(MemoryLayout<sockaddr_un>.size)) == 0 else {
            close(fd)
            return -1
        }
        _ = clinux_fcntl_setfl(fd, O_NONBLOCK)
        return fd
    }
}
