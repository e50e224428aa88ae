import CLinux
import Glibc

/// Sockets of the host for what the guest does. They never block.
enum HostSocket {
    /// One family serves both kinds of addresses, but where the host has no IPv6.
    static let family: Int32 = {
        let probe = socket(AF_INET6, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        if probe >= 0 { close(probe) }
        return probe >= 0 ? AF_INET6 : AF_INET
    }()
    static func open(_ kind: __socket_type) -> Int32 {
        let fd = socket(family, Int32(kind.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        if fd >= 0, family == AF_INET6 { set(fd, Int32(IPPROTO_IPV6), IPV6_V6ONLY, 0) }
        return fd
    }
    static func set(_ fd: Int32, _ level: Int32, _ option: Int32, _ value: Int32) {
        var value = value
        setsockopt(fd, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }
    static func error(_ fd: Int32) -> Int32 {
        var value: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &size) == 0 ? value : errno
    }
    /// Closes with a reset instead of an orderly end.
    static func abort(_ fd: Int32) {
        var linger = Glibc.linger(l_onoff: 1, l_linger: 0)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Glibc.linger>.size))
        close(fd)
    }
    static func connect(_ fd: Int32, _ target: SocketAddress) -> Bool {
        guard family == AF_INET6 || target.address.isV4 else {
            errno = ENETUNREACH
            return false
        }
        return target.withSystem(family: family) { clinux_connect(fd, $0, $1) } == 0
    }
    /// A socket that listens (or for datagrams, receives) at an address of the host; -1 and errno when it cannot.
    static func listen(_ kind: __socket_type, _ address: SocketAddress) -> Int32 {
        let family = address.address.isV4 ? AF_INET : AF_INET6
        let fd = socket(family, Int32(kind.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard fd >= 0 else { return -1 }
        set(fd, SOL_SOCKET, SO_REUSEADDR, kind == SOCK_STREAM ? 1 : 0)
        let bound = address.withSystem(family: family) { clinux_bind(fd, $0, $1) } == 0
        if bound, kind != SOCK_STREAM || Glibc.listen(fd, 1024) == 0 { return fd }
        let code = errno
        close(fd)
        errno = code
        return -1
    }
    static func receive(_ fd: Int32, _ buffer: UnsafeMutableRawPointer, _ size: Int) -> (count: Int, from: SocketAddress)? {
        var address = sockaddr_in6()
        var length = UInt32(MemoryLayout<sockaddr_in6>.size)
        let count = clinux_recvfrom(fd, buffer, UInt(size), &address, &length)
        return count < 0 ? nil : (count, SocketAddress(system: address))
    }
    static func send(_ fd: Int32, _ pieces: UnsafeMutablePointer<iovec>, _ count: Int, to target: SocketAddress?, family: Int32 = family) -> Int {
        var message = msghdr()
        message.msg_iov = pieces
        message.msg_iovlen = count
        guard let target else { return sendmsg(fd, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) }
        guard family == AF_INET6 || target.address.isV4 else { return -1 }
        return target.withSystem(family: family) { address, length in
            message.msg_name = UnsafeMutableRawPointer(mutating: address)
            message.msg_namelen = length
            return sendmsg(fd, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
        }
    }
}
