import Foundation

/// The Unix socket through which other programs talk to a running machine: a line with a request, then lines with the answer, the
/// last of which begins with `done` or `error`.
public final class ControlSocket: @unchecked Sendable {  // `isOpen` is locked; the thread closes the descriptor
    private let path: String
    private let descriptor: Int32
    private let lock = NSLock()
    private var isOpen = true

    /// - Parameter asked: takes a request and a way to answer, on a thread of the socket's.
    public init(at url: URL, asked: @escaping @Sendable (String, @escaping @Sendable (String) -> Void) -> Void) throws {
        path = url.path
        unlink(path)
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard fd >= 0, Self.with(path, { bind(fd, Self.argument($0), $1) }) == 0, chmod(path, 0o600) == 0, listen(fd, 8) == 0 else {
            let reason = String(cString: strerror(errno)).lowercased()
            if fd >= 0 { Foundation.close(fd) }
            throw LibraryError("cannot listen at \(path): \(reason)")
        }
        descriptor = fd
        Thread {
            while true {
                let client = Self.accept(fd)
                if client < 0 {
                    if errno == EINTR || errno == ECONNABORTED { continue }
                    break
                }
                Thread { Self.serve(client, asked) }.start()
            }
            Foundation.close(fd)
        }.start()
    }
    /// Ends listening; the file goes with it. Once is enough.
    public func close() {
        let first = lock.withLock {
            defer { isOpen = false }
            return isOpen
        }
        guard first else { return }
        unlink(path)
        shutdown(descriptor, Int32(SHUT_RDWR))
    }
    private static func serve(_ client: Int32, _ asked: (String, @escaping @Sendable (String) -> Void) -> Void) {
        let handle = FileHandle(fileDescriptor: client, closeOnDealloc: true)
        guard let line = readLine(client) else { return }
        let finished = DispatchSemaphore(value: 0)
        asked(line) { answer in
            let bytes = Array((answer + "\n").utf8)
            _ = send(client, bytes, bytes.count, Int32(MSG_NOSIGNAL))
            if answer.hasPrefix("done") || answer.hasPrefix("error") { finished.signal() }
        }
        finished.wait()
        withExtendedLifetime(handle) {}
    }

    // MARK: the other side

    public static func isListening(_ path: String) -> Bool {
        let fd = connect(path)
        if fd >= 0 { Foundation.close(fd) }
        return fd >= 0
    }
    /// Asks, and passes on what comes before the end; throws what the machine says is wrong.
    public static func ask(_ path: String, _ request: String, progress: (String) -> Void) throws {
        let fd = connect(path)
        guard fd >= 0 else { throw LibraryError("nobody answers at \(path)") }
        defer { Foundation.close(fd) }
        let bytes = Array((request + "\n").utf8)
        _ = send(fd, bytes, bytes.count, Int32(MSG_NOSIGNAL))
        while let line = readLine(fd) {
            if line == "done" { return }
            if line.hasPrefix("error ") { throw LibraryError(String(line.dropFirst(6))) }
            progress(line)
        }
        throw LibraryError("the machine ended without an answer")
    }
    private static func connect(_ path: String) -> Int32 {
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard fd >= 0 else { return -1 }
        if with(path, { Foundation.connect(fd, argument($0), $1) }) == 0 { return fd }
        Foundation.close(fd)
        return -1
    }
    private static func readLine(_ fd: Int32) -> String? {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while bytes.count < 4096 {
            let count = read(fd, &byte, 1)
            if count < 0, errno == EINTR { continue }
            guard count == 1 else { return nil }
            if byte == 0x0A { return String(decoding: bytes, as: UTF8.self) }
            bytes.append(byte)
        }
        return nil
    }
    // Glibc's own type for addresses, and the way around it.
    #if os(Linux)
        private static func argument(_ address: UnsafePointer<sockaddr>) -> __CONST_SOCKADDR_ARG { __CONST_SOCKADDR_ARG(__sockaddr__: address) }
        private static func accept(_ fd: Int32) -> Int32 { accept4(fd, __SOCKADDR_ARG(), nil, Int32(SOCK_CLOEXEC.rawValue)) }
    #else
        private static func argument(_ address: UnsafePointer<sockaddr>) -> UnsafePointer<sockaddr> { address }
        private static func accept(_ fd: Int32) -> Int32 { Foundation.accept(fd, nil, nil) }
    #endif
    private static func with(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            errno = ENAMETOOLONG
            return -1
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return withUnsafePointer(to: &address) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) } }
    }
}
