import HostNetwork

/// virtio_net_hdr. VIRTIO 1.2 § 5.1.6.
enum NetworkHeader {
    private static let needsChecksum: UInt8 = 1
    private static let tcp4: UInt8 = 1
    private static let tcp6: UInt8 = 4
    private static let congestionNotification: UInt8 = 0x80

    /// What the driver says of a frame of `size` bytes; nil when that makes no sense.
    static func read(_ chain: DescriptorChain, frame size: Int) -> FrameOffload? {
        guard let flags = chain.load(at: 0, as: UInt8.self), let kind = chain.load(at: 1, as: UInt8.self),
            let segment = chain.load(at: 4, as: UInt16.self), let start = chain.load(at: 6, as: UInt16.self),
            let offset = chain.load(at: 8, as: UInt16.self)
        else { return nil }
        var offload = FrameOffload()
        if flags & needsChecksum != 0 {
            guard Int(start) + Int(offset) + 2 <= size else { return nil }
            offload.needsChecksum = true
            offload.checksumStart = Int(start)
            offload.checksumOffset = Int(offset)
        }
        switch kind & ~congestionNotification {
        case 0: return offload
        case tcp4: offload.segmentation = .tcp4
        case tcp6: offload.segmentation = .tcp6
        default: return nil
        }
        guard segment > 0, offload.needsChecksum else { return nil }
        offload.segmentSize = Int(segment)
        return offload
    }

    /// Fills in a header of 12 bytes.
    static func write(_ offload: FrameOffload, buffers: Int, to header: UnsafeMutableRawPointer) {
        header.initializeMemory(as: UInt8.self, repeating: 0, count: NetworkDevice.headerSize)
        func store(_ value: Int, _ at: Int) {
            (header + at).storeBytes(of: UInt16(truncatingIfNeeded: value).littleEndian, as: UInt16.self)
        }
        store(buffers, 10)
        guard offload.needsChecksum else { return }
        header.storeBytes(of: needsChecksum, as: UInt8.self)
        store(offload.checksumStart, 6)
        store(offload.checksumOffset, 8)
        guard offload.segmentation != .none else { return }
        (header + 1).storeBytes(of: offload.segmentation == .tcp4 ? tcp4 : tcp6, as: UInt8.self)
        store(offload.checksumStart + 20, 2)
        store(offload.segmentSize, 4)
    }
}
