import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// A tap device of our own on a bridge of the host. Needs CAP_NET_ADMIN. The device goes with the object.
package final class TapDevice: NetworkBackend {
    private enum Call {
        static let setInterface: UInt = 0x4004_54CA  // TUNSETIFF
        static let setOffload: UInt = 0x4004_54D0  // TUNSETOFFLOAD
        static let setHeaderSize: UInt = 0x4004_54D8  // TUNSETVNETHDRSZ
        static let addToBridge: UInt = 0x89A2  // SIOCBRADDIF
        static let getFlags: UInt = 0x8913
        static let setFlags: UInt = 0x8914
    }
    /// struct ifreq: a name, then what the call wants.
    private struct InterfaceRequest {
        var name: (UInt64, UInt64) = (0, 0)
        var value: (Int64, Int64, Int64) = (0, 0, 0)
        init(_ name: String) {
            withUnsafeMutableBytes(of: &self.name) { $0.copyBytes(from: name.utf8.prefix(15)) }
        }
    }
    package let descriptor: Int32
    package let maximumTransmissionUnit: Int
    package let handlesOffloads = true
    private let bridge: String
    /// What the kernel was told that the guest takes; one thread receives.
    private let accepted = Atomic<UInt8>(0xFF)
    /// Only used by the sending thread, and by the receiving thread.
    private nonisolated(unsafe) let sending = Parts()
    private nonisolated(unsafe) let receiving = Parts()

    private final class Parts {
        static let capacity = 1024
        let parts = UnsafeMutablePointer<iovec>.allocate(capacity: capacity)
        let header = UnsafeMutableRawPointer.allocate(byteCount: PacketHeader.size, alignment: 8)
        deinit {
            parts.deallocate()
            header.deallocate()
        }
        /// The header's piece, and behind it as many of these as fit.
        func fill(_ pieces: UnsafePointer<iovec>, _ count: Int) -> Int {
            parts[0] = iovec(iov_base: header, iov_len: PacketHeader.size)
            let count = min(count, Self.capacity - 1)
            (parts + 1).update(from: pieces, count: count)
            return count + 1
        }
    }

    /// Bridges of the host.
    package static var bridges: [String] {
        guard let directory = opendir("/sys/class/net") else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            if isBridge(name) { names.append(name) }
        }
        return names.sorted()
    }
    package static func isBridge(_ name: String) -> Bool { !name.hasPrefix(".") && access("/sys/class/net/\(name)/bridge", F_OK) == 0 }

    /// Throws a sentence that says what to grant, when that is what is missing.
    package init(bridge: String) throws {
        guard Self.isBridge(bridge) else { throw NetworkError("\(bridge) is no bridge of this host") }
        self.bridge = bridge
        let fd = clinux_open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK, 0)
        guard fd >= 0 else { throw Self.problem("cannot open /dev/net/tun", bridge) }
        var request = InterfaceRequest("vz%d")
        request.value.0 = 0x5002  // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
        var size = Int32(PacketHeader.size)
        guard clinux_ioctl_pointer(fd, Call.setInterface, &request) == 0, clinux_ioctl_pointer(fd, Call.setHeaderSize, &size) == 0 else {
            defer { close(fd) }
            throw Self.problem("cannot make a tap device", bridge)
        }
        do { try Self.join(withUnsafeBytes(of: request.name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }, bridge) } catch {
            close(fd)
            throw error
        }
        descriptor = fd
        maximumTransmissionUnit = Self.maximumTransmissionUnit(bridge)
    }
    deinit { close(descriptor) }

    private static func join(_ name: String, _ bridge: String) throws {
        let control = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard control >= 0 else { throw problem("cannot reach the network interfaces", bridge) }
        defer { close(control) }
        var flags = InterfaceRequest(name)
        var member = InterfaceRequest(bridge)
        member.value.0 = Int64(if_nametoindex(name))
        guard clinux_ioctl_pointer(control, Call.addToBridge, &member) == 0, clinux_ioctl_pointer(control, Call.getFlags, &flags) == 0 else {
            throw problem("cannot join the bridge \(bridge)", bridge)
        }
        flags.value.0 |= 1  // IFF_UP
        guard clinux_ioctl_pointer(control, Call.setFlags, &flags) == 0 else { throw problem("cannot switch \(name) on", bridge) }
    }
    private static func problem(_ what: String, _ bridge: String) -> NetworkError {
        let (code, reason) = (errno, String(cString: strerror(errno)).lowercased())
        guard code == EPERM || code == EACCES else { return NetworkError("\(what): \(reason)") }
        return NetworkError(
            "\(what): \(reason). A guest on the bridge \(bridge) needs the capability CAP_NET_ADMIN: run as root, or grant it with `sudo setcap cap_net_admin+ep PROGRAM`")
    }
    private static func maximumTransmissionUnit(_ bridge: String) -> Int {
        guard let file = fopen("/sys/class/net/\(bridge)/mtu", "re") else { return 1500 }
        defer { fclose(file) }
        var bytes = [CChar](repeating: 0, count: 32)
        guard fgets(&bytes, 32, file) != nil else { return 1500 }
        return min(max(atol(bytes), 68), 65535)
    }

    package func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult {
        PacketHeader.write(offload, buffers: 0, to: sending.header)
        return result(writev(descriptor, sending.parts, Int32(sending.fill(pieces, count))))
    }
    package func receive(
        _ pieces: UnsafeMutablePointer<iovec>, _ count: Int, _ accepted: AcceptedOffloads, _ offload: inout FrameOffload
    ) -> FrameResult {
        // TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 are our own bits.
        if self.accepted.exchange(accepted.rawValue, ordering: .relaxed) != accepted.rawValue {
            _ = clinux_ioctl(descriptor, Call.setOffload, UInt(accepted.rawValue))
        }
        let result = result(readv(descriptor, receiving.parts, Int32(receiving.fill(pieces, count))))
        guard case .done(let size) = result else { return result }
        guard let made = PacketHeader.read(receiving.header, frame: size) else { return .lost }
        offload = made
        return result
    }
    private func result(_ count: Int) -> FrameResult {
        if count >= 0 { return .done(max(0, count - PacketHeader.size)) }
        switch errno {
        case EAGAIN, EINTR: return .wouldBlock
        case ENOBUFS, ENOMEM, EINVAL, EIO, EMSGSIZE: return .lost
        case let code: return .failed("the bridge \(bridge): \(String(cString: strerror(code)).lowercased())")
        }
    }
}
