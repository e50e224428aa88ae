/// virtio_net_hdr with num_buffers, as drivers and Linux's tap devices have it before a frame. VIRTIO 1.2 § 5.1.6.
package enum PacketHeader {
    package static let size = 12
    private static let needsChecksum: UInt8 = 1
    private static let tcp4: UInt8 = 1
    private static let tcp6: UInt8 = 4
    private static let congestionNotification: UInt8 = 0x80

    /// What `size` bytes of header say of a frame of `count` bytes; nil when that makes no sense.
    package static func read(_ bytes: UnsafeRawPointer, frame count: Int) -> FrameOffload? {
        func number(_ at: Int) -> Int { Int(UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: at, as: UInt16.self))) }
        var offload = FrameOffload()
        if bytes.load(as: UInt8.self) & needsChecksum != 0 {
            guard number(6) + number(8) + 2 <= count else { return nil }
            offload.needsChecksum = true
            offload.checksumStart = number(6)
            offload.checksumOffset = number(8)
        }
        switch bytes.load(fromByteOffset: 1, as: UInt8.self) & ~congestionNotification {
        case 0: return offload
        case tcp4: offload.segmentation = .tcp4
        case tcp6: offload.segmentation = .tcp6
        default: return nil
        }
        guard number(4) > 0, offload.needsChecksum else { return nil }
        offload.segmentSize = number(4)
        return offload
    }

    package static func write(_ offload: FrameOffload, buffers: Int, to header: UnsafeMutableRawPointer) {
        header.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        func store(_ value: Int, _ at: Int) { (header + at).storeBytes(of: UInt16(truncatingIfNeeded: value).littleEndian, as: UInt16.self) }
        store(buffers, 10)
        guard offload.needsChecksum else { return }
        header.storeBytes(of: needsChecksum, as: UInt8.self)
        store(offload.checksumStart, 6)
        store(offload.checksumOffset, 8)
        guard offload.segmentation != .none else { return }
        (header + 1).storeBytes(of: offload.segmentation == .tcp4 ? tcp4 : tcp6, as: UInt8.self)
        // How long the headers are: TCP's without options at least.
        store(offload.checksumStart + 20, 2)
        store(offload.segmentSize, 4)
    }
}
