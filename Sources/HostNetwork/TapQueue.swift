import CLinux
import Glibc
import Synchronization

/// One queue of a tap device: frames with a virtio_net_hdr each. Closed with the object.
final class TapQueue: NetworkBackend {
    private enum Call {
        static let setOffload: UInt = 0x4004_54D0  // TUNSETOFFLOAD
        static let setQueue: UInt = 0x4004_54D9  // TUNSETQUEUE
    }
    let descriptor: Int32
    let maximumTransmissionUnit = 65535
    let handlesOffloads = true
    private let bridge: String
    private let isAttached = Mutex(true)
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

    /// Takes over `descriptor`.
    init(_ descriptor: Int32, bridge: String) {
        self.descriptor = descriptor
        self.bridge = bridge
    }
    deinit { close(descriptor) }

    /// Whether the kernel hands frames to this queue.
    func setAttached(_ attached: Bool) {
        isAttached.withLock { current in
            guard current != attached else { return }
            // struct ifreq: the flags lie behind the name. IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE.
            var request: (UInt64, UInt64, Int64, Int64, Int64) = (0, 0, attached ? 0x200 : 0x400, 0, 0)
            if clinux_ioctl_pointer(descriptor, Call.setQueue, &request) == 0 { current = attached }
        }
    }
    func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult {
        PacketHeader.write(offload, buffers: 0, to: sending.header)
        return result(writev(descriptor, sending.parts, Int32(sending.fill(pieces, count))))
    }
    func receive(
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
