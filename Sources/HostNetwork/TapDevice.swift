import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// A tap device of our own on a bridge of the host, with a queue for each of the guest's queue pairs. Needs CAP_NET_ADMIN. The
/// device goes with the object.
package final class TapDevice: NetworkBackend {
    private enum Call {
        static let setInterface: UInt = 0x4004_54CA  // TUNSETIFF
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
    package var descriptor: Int32 { first.descriptor }
    package let maximumTransmissionUnit: Int
    package let handlesOffloads = true
    private let bridge: String
    private let name: String
    private let first: TapQueue
    /// Grows in `attached`, which comes before any thread uses the backend.
    private nonisolated(unsafe) var queues: [TapQueue]

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
        let (queue, name) = try Self.makeQueue("vz%d", bridge)
        self.name = name
        try Self.join(name, bridge)
        queues = [queue]
        first = queue
        maximumTransmissionUnit = Self.maximumTransmissionUnit(bridge)
    }
    /// A queue of the tap device `name`, or of a new one, and the device's name.
    private static func makeQueue(_ name: String, _ bridge: String) throws -> (TapQueue, String) {
        let fd = clinux_open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK, 0)
        guard fd >= 0 else { throw Self.problem("cannot open /dev/net/tun", bridge) }
        let queue = TapQueue(fd, bridge: bridge)
        var request = InterfaceRequest(name)
        request.value.0 = 0x5102  // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE
        var size = Int32(PacketHeader.size)
        guard clinux_ioctl_pointer(fd, Call.setInterface, &request) == 0, clinux_ioctl_pointer(fd, Call.setHeaderSize, &size) == 0 else {
            throw Self.problem("cannot make a tap device", bridge)
        }
        return (queue, withUnsafeBytes(of: request.name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
    }

    package func attached(_ address: [UInt8], queuePairs: Int) {
        // A host that grants no more queues has fewer lanes.
        while queues.count < queuePairs, let (queue, _) = try? Self.makeQueue(name, bridge) {
            queue.setAttached(false)
            queues.append(queue)
        }
    }
    package var laneCount: Int { queues.count }
    package func lane(_ index: Int) -> any NetworkBackend { queues.indices.contains(index) ? queues[index] : first }
    package func use(lanes: Int) {
        for (index, queue) in queues.enumerated() where index > 0 { queue.setAttached(index < lanes) }
    }
    package func driverLeft() { use(lanes: 1) }

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

    package func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult { first.send(pieces, count, offload) }
    package func receive(
        _ pieces: UnsafeMutablePointer<iovec>, _ count: Int, _ accepted: AcceptedOffloads, _ offload: inout FrameOffload
    ) -> FrameResult { first.receive(pieces, count, accepted, &offload) }
}
