import CLinux
import Glibc
import HostNetwork
import UserNetwork

/// A guest that makes its frames by hand.
final class FakeGuest {
    static let hardware: [UInt8] = [2, 0, 0, 0, 0, 1]
    static let router: [UInt8] = [0x5A, 0x56, 0x5A, 0, 0, 1]
    let port: UserNetworkPort
    var accepted: AcceptedOffloads = []

    init(_ options: UserNetwork.Options = UserNetwork.Options()) throws {
        port = try UserNetwork(options).makePort()
        port.attached(Self.hardware, queuePairs: 1)
    }
    func send(_ frame: [UInt8]) {
        var frame = frame
        frame.withUnsafeMutableBytes { raw in
            var piece = iovec(iov_base: raw.baseAddress, iov_len: raw.count)
            _ = port.send(&piece, 1, FrameOffload())
        }
    }
    /// The next frame, waiting up to `milliseconds` for it.
    func receive(_ milliseconds: Int32 = 2000) -> [UInt8]? {
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: 70000, alignment: 8)
        defer { buffer.deallocate() }
        while true {
            var piece = iovec(iov_base: buffer, iov_len: 70000)
            var offload = FrameOffload()
            switch port.receive(&piece, 1, accepted, &offload) {
            case .done(let count): return Array(UnsafeRawBufferPointer(start: buffer, count: count))
            default: break
            }
            var entry = pollfd(fd: port.descriptor, events: Int16(POLLIN), revents: 0)
            if poll(&entry, 1, milliseconds) != 1 { return nil }
        }
    }

    static func bytes16(_ value: Int) -> [UInt8] { [UInt8(value >> 8 & 255), UInt8(value & 255)] }
    static func bytes32(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * $0)) } }
    static func ip(_ transport: UInt8, from source: [UInt8] = [192, 168, 64, 2], to target: [UInt8] = [192, 168, 64, 1], _ payload: [UInt8]) -> [UInt8] {
        router + hardware + [8, 0, 0x45, 0] + bytes16(20 + payload.count) + [0, 0, 0x40, 0, 64, transport, 0, 0] + source + target + payload
    }
    static func udp(_ source: Int, _ target: Int, _ payload: [UInt8]) -> [UInt8] {
        bytes16(source) + bytes16(target) + bytes16(8 + payload.count) + [0, 0] + payload
    }
    static func tcp(
        _ source: Int, _ target: Int, sequence: UInt32, acknowledged: UInt32 = 0, flags: UInt8, window: Int = 65535, options: [UInt8] = [], _ payload: [UInt8] = []
    ) -> [UInt8] {
        let header = bytes16(source) + bytes16(target) + bytes32(sequence) + bytes32(acknowledged)
        return header + [UInt8((20 + options.count) / 4) << 4, flags] + bytes16(window) + [0, 0, 0, 0] + options + payload
    }
}

/// A listening TCP socket of the host at 127.0.0.1.
final class HostListener {
    let fd: Int32
    let port: Int
    init(datagrams: Bool = false) {
        fd = socket(AF_INET, Int32((datagrams ? SOCK_DGRAM : SOCK_STREAM).rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        _ = clinux_bind(fd, &address, UInt32(MemoryLayout<sockaddr_in>.size))
        if !datagrams { listen(fd, 16) }
        var length = UInt32(MemoryLayout<sockaddr_in>.size)
        _ = clinux_getsockname(fd, &address, &length)
        port = Int(UInt16(bigEndian: address.sin_port))
    }
    deinit { close(fd) }
    func accept() -> Int32 {
        var entry = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, 2000) == 1 else { return -1 }
        var address = sockaddr_in()
        var length = UInt32(MemoryLayout<sockaddr_in>.size)
        return clinux_accept(fd, &address, &length)
    }
}
