import CLinux
import Glibc
import LinuxSystem

/// A connection to a server that has agreed on an export. Its socket does not block. Belongs to one thread at a time.
final class NBDConnection {
    /// What the server says of the export.
    struct Export: Equatable, Sendable {
        var size: UInt64 = 0
        var flags: NBD.Flags = []
        var minimumBlock: UInt32 = 1
        var maximumBlock = UInt32(NBD.defaultPayload)
        var hasStructuredReplies = false
    }
    private(set) var descriptor: Int32
    /// Where the connection is encrypted.
    private var tunnel: TLSTunnel?
    private(set) var export = Export()
    private let address: NBDAddress
    private let stop: Int32
    private let deadline: UInt64

    /// Connects and agrees on the export; waits at most until `milliseconds` have passed or `stop` (-1 for none) is readable.
    init(_ address: NBDAddress, milliseconds: Int, stop: Int32) throws(NBDError) {
        self.address = address
        self.stop = stop
        deadline = Self.now() + UInt64(max(milliseconds, 1))
        descriptor = try Self.connect(address, until: deadline, stop: stop)
        // A failure from here on runs deinit.
        try negotiate()
    }
    deinit { Glibc.close(descriptor) }

    /// Milliseconds.
    static func now() -> UInt64 { monotonicNanoseconds() / 1_000_000 }

    // MARK: connecting

    private static func connect(_ address: NBDAddress, until deadline: UInt64, stop: Int32) throws(NBDError) -> Int32 {
        switch address.server {
        case .unixSocket(let path):
            var name = sockaddr_un()
            name.sun_family = sa_family_t(AF_UNIX)
            let bytes = Array(path.utf8)
            guard bytes.count < MemoryLayout.size(ofValue: name.sun_path) else { throw NBDError("the socket path \(path) is too long") }
            withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
            return try withUnsafeBytes(of: &name) { (raw) throws(NBDError) in
                try connect(address, AF_UNIX, raw, until: deadline, stop: stop)
            }
        case .host(let host, let port):
            var hints = addrinfo()
            hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
            var list: UnsafeMutablePointer<addrinfo>?
            let result = getaddrinfo(host, String(port), &hints, &list)
            guard result == 0 else {
                throw NBDError("the host \(host) is not known: \(String(cString: gai_strerror(result)))", isPassing: result == EAI_AGAIN)
            }
            defer { freeaddrinfo(list) }
            var failure = NBDError("the host \(host) has no address")
            var next = list
            while let entry = next {
                do throws(NBDError) {
                    return try connect(
                        address, entry.pointee.ai_family, UnsafeRawBufferPointer(start: entry.pointee.ai_addr, count: Int(entry.pointee.ai_addrlen)),
                        until: deadline, stop: stop)
                } catch { failure = error }
                next = entry.pointee.ai_next
            }
            throw failure
        }
    }
    private static func connect(
        _ address: NBDAddress, _ family: Int32, _ name: UnsafeRawBufferPointer, until deadline: UInt64, stop: Int32
    ) throws(NBDError) -> Int32 {
        let fd = socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard fd >= 0, let base = name.baseAddress else { throw NBDError("cannot make a socket: \(String(cString: strerror(errno)))", isPassing: true) }
        func failed(_ code: Int32) -> NBDError {
            Glibc.close(fd)
            return NBDError("cannot reach \(address): \(String(cString: strerror(code)).lowercased())", isPassing: true)
        }
        if clinux_connect(fd, base, UInt32(name.count)) != 0 {
            // A Unix socket whose queue is full says EAGAIN: try again later.
            guard errno == EINPROGRESS else { throw failed(errno) }
            guard wait(fd, POLLOUT, until: deadline, stop: stop) else { throw failed(ETIMEDOUT) }
            var code: Int32 = 0
            var size = socklen_t(4)
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size)
            guard code == 0 else { throw failed(code) }
        }
        if family == AF_UNIX {
            // A large request goes out at once, as far as the host allows; TCP finds the right size itself.
            var room: Int32 = 2 << 20
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, 4)
        } else {
            var one: Int32 = 1
            setsockopt(fd, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
            setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, 4)
        }
        return fd
    }
    /// False when the time is over or `stop` is readable.
    private static func wait(_ fd: Int32, _ events: Int32, until deadline: UInt64, stop: Int32) -> Bool {
        while true {
            let now = now()
            guard now < deadline else { return false }
            var entries = (pollfd(fd: fd, events: Int16(events), revents: 0), pollfd(fd: stop, events: Int16(POLLIN), revents: 0))
            _ = withUnsafeMutableBytes(of: &entries) { poll($0.bindMemory(to: pollfd.self).baseAddress, 2, Int32(min(deadline - now, 60_000))) }
            if entries.1.revents != 0 { return false }
            if entries.0.revents != 0 { return true }
        }
    }

    // MARK: handshake

    private func read(_ count: Int) throws(NBDError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let step = bytes.withUnsafeMutableBytes { raw in raw.baseAddress.map { recv(descriptor, $0 + done, count - done, 0) } ?? -1 }
            if step > 0 { done += step; continue }
            if step == 0 { throw ended }
            try waitForSocket(POLLIN)
        }
        return bytes
    }
    private func write(_ bytes: [UInt8]) throws(NBDError) {
        var done = 0
        while done < bytes.count {
            let step = bytes.withUnsafeBytes { raw in raw.baseAddress.map { send(descriptor, $0 + done, bytes.count - done, Int32(MSG_NOSIGNAL)) } ?? -1 }
            if step > 0 { done += step; continue }
            try waitForSocket(POLLOUT)
        }
    }
    private var ended: NBDError {
        if let failure = tunnel?.failure { return NBDError("no encrypted connection to \(address): \(failure)") }
        return NBDError("\(address) closed the connection during the handshake", isPassing: true)
    }
    /// After a call that moved nothing.
    private func waitForSocket(_ events: Int32) throws(NBDError) {
        let code = errno
        if code == EINTR { return }
        if code != EAGAIN, tunnel?.failure != nil { throw ended }
        guard code == EAGAIN else { throw NBDError("\(address) is gone: \(String(cString: strerror(code)).lowercased())", isPassing: true) }
        guard Self.wait(descriptor, events, until: deadline, stop: stop) else { throw NBDError("\(address) does not answer", isPassing: true) }
    }
    private static func big<T: FixedWidthInteger>(_ bytes: some Collection<UInt8>, as: T.Type = T.self) -> T { bytes.reduce(0 as T) { $0 << 8 | T($1) } }
    private static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian, Array.init) }

    private func negotiate() throws(NBDError) {
        let greeting = try read(18)
        guard Self.big(greeting[0..<8]) == NBD.greeting else { throw NBDError("what answers at \(address) is no NBD server") }
        guard Self.big(greeting[8..<16]) == NBD.optionMagic else { throw NBDError("\(address) speaks the old NBD handshake, which names no exports") }
        let server: UInt16 = Self.big(greeting[16..<18])
        guard server & NBD.fixedNewStyle != 0 else { throw NBDError("\(address) speaks an old NBD handshake") }
        try write(Self.bytes(UInt32(server & (NBD.fixedNewStyle | NBD.noZeroes))))
        if let encryption = address.encryption { try encrypt(encryption) }
        export.hasStructuredReplies = try option(NBD.Option.structuredReply, []) { _, _ in } == NBD.OptionReply.acknowledge
        let name = Array(address.exportName.utf8)
        let ask = Self.bytes(UInt32(name.count)) + name + Self.bytes(1 as UInt16) + Self.bytes(NBD.Information.blockSize)
        var hasExport = false
        let answer = try option(NBD.Option.go, ask) { [self] kind, data throws(NBDError) in
            guard kind == NBD.OptionReply.information, data.count >= 2 else { return }
            switch Self.big(data[0..<2]) as UInt16 {
            case NBD.Information.export where data.count >= 12:
                export.size = Self.big(data[2..<10])
                export.flags = NBD.Flags(rawValue: Self.big(data[10..<12]))
                hasExport = true
            case NBD.Information.blockSize where data.count >= 14:
                export.minimumBlock = Self.big(data[2..<6])
                export.maximumBlock = Self.big(data[10..<14])
            default: break
            }
        }
        switch answer {
        case NBD.OptionReply.acknowledge: guard hasExport else { throw NBDError("\(address) says nothing of the export") }
        case NBD.OptionReply.unsupported: try useExportName(name, zeroes: server & NBD.noZeroes == 0)
        case NBD.OptionReply.unknown: throw NBDError("\(address) does not exist")
        case NBD.OptionReply.tlsRequired: throw NBDError("\(address) takes encrypted connections only; name it with nbds:// or nbds+unix://")
        case NBD.OptionReply.policy: throw NBDError("\(address) is not for this client")
        default: throw NBDError("\(address) refuses the export (\(answer & ~NBD.OptionReply.error))")
        }
        try checkExport()
    }
    /// NBD_OPT_STARTTLS; everything after it goes through the tunnel.
    private func encrypt(_ options: TLSOptions) throws(NBDError) {
        guard try option(NBD.Option.startTLS, [], { _, _ in }) == NBD.OptionReply.acknowledge else { throw NBDError("\(address) does not encrypt connections") }
        // A duplicate, since the tunnel closes it whatever happens.
        let socket = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
        guard socket >= 0 else { throw NBDError("cannot duplicate a socket: \(String(cString: strerror(errno)))", isPassing: true) }
        let tunnel = try TLSTunnel(over: socket, options)
        Glibc.close(descriptor)
        descriptor = tunnel.descriptor
        self.tunnel = tunnel
    }
    private func checkExport() throws(NBDError) {
        guard export.flags.contains(.hasFlags) else { throw NBDError("\(address) sends no flags") }
        guard export.size >= 512, export.size <= UInt64(Int64.max) else { throw NBDError("the size of \(address), \(export.size) bytes, is no disk's") }
        let minimum = export.minimumBlock
        guard minimum > 0, minimum & (minimum - 1) == 0, minimum <= 4096 else {
            throw NBDError("\(address) takes blocks of \(minimum) bytes; up to 4096 are possible here")
        }
        guard export.maximumBlock >= max(minimum, 4096) else { throw NBDError("\(address) takes requests of up to \(export.maximumBlock) bytes, which is too little") }
        // Whole blocks only: what is beyond them is out of reach.
        export.size -= export.size % UInt64(max(minimum, 512))
    }
    /// Sends an option and hears its replies; returns the last one's type.
    private func option(
        _ option: UInt32, _ data: [UInt8], _ information: (UInt32, [UInt8]) throws(NBDError) -> Void
    ) throws(NBDError) -> UInt32 {
        try write(Self.bytes(NBD.optionMagic) + Self.bytes(option) + Self.bytes(UInt32(data.count)) + data)
        // A server that goes on and on is none.
        for _ in 0..<64 {
            let header = try read(20)
            guard Self.big(header[0..<8]) == NBD.optionReplyMagic, Self.big(header[8..<12]) == option else {
                throw NBDError("\(address) answers against the protocol")
            }
            let kind: UInt32 = Self.big(header[12..<16])
            let length: UInt32 = Self.big(header[16..<20])
            guard length <= 65536 else { throw NBDError("\(address) answers against the protocol") }
            let data = try read(Int(length))
            if kind == NBD.OptionReply.acknowledge || kind & NBD.OptionReply.error != 0 { return kind }
            try information(kind, data)
        }
        throw NBDError("\(address) answers against the protocol")
    }
    /// Servers from before NBD_OPT_GO.
    private func useExportName(_ name: [UInt8], zeroes: Bool) throws(NBDError) {
        try write(Self.bytes(NBD.optionMagic) + Self.bytes(NBD.Option.exportName) + Self.bytes(UInt32(name.count)) + name)
        let answer = try read(10 + (zeroes ? 124 : 0))
        export.size = Self.big(answer[0..<8])
        export.flags = NBD.Flags(rawValue: Self.big(answer[8..<10]))
    }
}
