import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// Encrypts a connection: what goes through `descriptor` goes through a socket to the server, by a thread in between.
final class TLSTunnel: Sendable {
    /// The plain side, for whoever made the tunnel, who closes it; that ends the tunnel.
    let descriptor: Int32
    /// Why there is no connection, once the plain side has ended.
    var failure: String? { reason.withLock { $0 } }
    private let reason = Mutex<String?>(nil)

    /// Takes over `socket`, which must not block; the handshake begins.
    init(over socket: Int32, _ options: TLSOptions) throws(NBDError) {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0, &ends) == 0 else {
            close(socket)
            throw NBDError("cannot make a socket: \(String(cString: strerror(errno)))", isPassing: true)
        }
        descriptor = ends[0]
        let inner = ends[1]
        do {
            _ = try HostThread(name: "vz-tls") { [self] in
                // OpenSSL writes without MSG_NOSIGNAL; a pending signal ends with the thread.
                var signals = sigset_t()
                sigemptyset(&signals)
                sigaddset(&signals, SIGPIPE)
                pthread_sigmask(SIG_BLOCK, &signals, nil)
                do throws(NBDError) {
                    let session = try TLSSession(options, descriptor: socket)
                    Self.run(session, socket, inner) { text in reason.withLock { $0 = text } }
                } catch { reason.withLock { $0 = error.description } }
                close(socket)
                close(inner)
            }
        } catch {
            for end in ends + [socket] { close(end) }
            throw NBDError("cannot start a thread", isPassing: true)
        }
    }

    /// Bytes on their way in one direction.
    private struct Stock {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 256 << 10, alignment: 16)
        var first = 0
        var end = 0
        var isEmpty: Bool { first == end }
        var contents: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: bytes[first..<end]) }
        mutating func took(_ count: Int) {
            first += count
            if isEmpty { (first, end) = (0, 0) }
        }
        mutating func got(_ count: Int) { (first, end) = (0, count) }
    }

    private static func run(_ session: borrowing TLSSession, _ socket: Int32, _ inner: Int32, _ failed: (String) -> Void) {
        while true {
            let step = session.connect()
            if step == .moved(0) { break }
            if case .failed(let reason) = step { return failed(reason) }
            // Whoever waits for the handshake may give up: then the plain side ends.
            var entries = [pollfd(fd: socket, events: Int16(step == .needsInput ? POLLIN : POLLOUT), revents: 0), pollfd(fd: inner, events: 0, revents: 0)]
            _ = poll(&entries, 2, -1)
            if entries[1].revents & Int16(POLLHUP) != 0 { return }
        }
        var (toServer, toClient) = (Stock(), Stock())
        defer { for stock in [toServer, toClient] { stock.bytes.deallocate() } }
        var hasEnded = false
        while true {
            var (socketEvents, innerEvents) = (0 as Int32, 0 as Int32)
            var hasMoved = false
            if toClient.isEmpty {
                switch session.read(toClient.bytes) {
                case .moved(let count): toClient.got(count)
                case .needsInput: socketEvents |= POLLIN
                case .needsOutput: socketEvents |= POLLOUT
                case .ended, .failed: hasEnded = true
                }
            }
            while !toClient.isEmpty {
                let count = send(inner, toClient.contents.baseAddress, toClient.contents.count, Int32(MSG_NOSIGNAL))
                if count > 0 {
                    toClient.took(count)
                    hasMoved = true
                    continue
                }
                if errno == EINTR { continue }
                guard errno == EAGAIN else { return session.shutdown() }
                innerEvents |= POLLOUT
                break
            }
            if hasEnded, toClient.isEmpty { return }
            if toServer.isEmpty {
                let count = recv(inner, toServer.bytes.baseAddress, toServer.bytes.count, 0)
                if count == 0 { return session.shutdown() }
                if count > 0 { toServer.got(count) } else if errno == EAGAIN || errno == EINTR { innerEvents |= POLLIN } else { return session.shutdown() }
            }
            writing: while !toServer.isEmpty {
                switch session.write(toServer.contents) {
                case .moved(let count):
                    toServer.took(count)
                    hasMoved = true
                case .needsInput:
                    socketEvents |= POLLIN
                    break writing
                case .needsOutput:
                    socketEvents |= POLLOUT
                    break writing
                case .ended, .failed: return
                }
            }
            if hasMoved { continue }
            // A socket that nothing is wanted of would only say that the server has hung up, over and over.
            var entries = [pollfd(fd: socketEvents == 0 ? -1 : socket, events: Int16(socketEvents), revents: 0), pollfd(fd: inner, events: Int16(innerEvents), revents: 0)]
            _ = poll(&entries, 2, -1)
            // Nobody waits for answers any more.
            if Int32(entries[1].revents) & POLLHUP != 0, innerEvents & POLLIN == 0 { return }
        }
    }
}
