import CLinux
import Glibc
import LinuxSystem

/// A connected datagram socket: one frame a datagram, no header, no length.
package final class DatagramSocket: NetworkBackend {
    package let maximumTransmissionUnit: Int
    package let descriptor: Int32
    /// A UDP socket hears of a peer that is away for a while; a Unix socket of one that is gone.
    private let isInternet: Bool

    /// Keeps a duplicate of `descriptor`. Throws a sentence when that is no connected datagram socket.
    package init(_ descriptor: Int32, maximumTransmissionUnit: Int = 1500) throws {
        if let problem = Self.problem(descriptor) { throw NetworkError(problem) }
        self.maximumTransmissionUnit = maximumTransmissionUnit
        var domain: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size)
        isInternet = domain != AF_UNIX
        self.descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
        guard self.descriptor >= 0 else { throw SystemError("cannot duplicate the network socket") }
    }
    deinit { close(descriptor) }

    /// What keeps a descriptor from being used; nil for a connected datagram socket.
    package static func problem(_ descriptor: Int32) -> String? {
        var kind: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 else { return "the file handle is not an open socket" }
        guard kind == Int32(SOCK_DGRAM.rawValue) else { return "the socket is not a datagram socket" }
        return clinux_is_connected(descriptor) != 0 ? nil : "the socket is not connected"
    }

    package func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult {
        var message = msghdr()
        message.msg_iov = UnsafeMutablePointer(mutating: pieces)
        message.msg_iovlen = count
        return result(sendmsg(descriptor, &message, Int32(MSG_DONTWAIT | MSG_NOSIGNAL)))
    }
    package func receive(
        _ pieces: UnsafeMutablePointer<iovec>, _ count: Int, _ accepted: AcceptedOffloads, _ offload: inout FrameOffload
    ) -> FrameResult {
        var message = msghdr()
        message.msg_iov = pieces
        message.msg_iovlen = count
        return result(recvmsg(descriptor, &message, Int32(MSG_DONTWAIT) | Int32(MSG_TRUNC)))
    }
    private func result(_ count: Int) -> FrameResult {
        if count >= 0 { return .done(count) }
        switch errno {
        case EAGAIN, EINTR: return .wouldBlock
        // A datagram's receiver may be away for a while, or too slow, or find the datagram too long.
        case ENOBUFS, ENOMEM, EMSGSIZE, EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN: return .lost
        case ECONNREFUSED where isInternet: return .lost
        case let code: return .failed(String(cString: strerror(code)))
        }
    }
}
