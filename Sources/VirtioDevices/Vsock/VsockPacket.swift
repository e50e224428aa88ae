/// virtio_vsock_hdr. VIRTIO 1.2 § 5.10.6.
struct VsockPacket {
    static let size = 44
    static let hostContext: UInt64 = 2
    static let guestContext: UInt64 = 3
    private static let stream: UInt16 = 1

    enum Operation {
        static let request: UInt16 = 1
        static let response: UInt16 = 2
        static let reset: UInt16 = 3
        static let shutdown: UInt16 = 4
        static let data: UInt16 = 5
        static let creditUpdate: UInt16 = 6
        static let creditRequest: UInt16 = 7
    }
    enum Shutdown {
        /// The sender will receive no more, or send no more.
        static let receive: UInt32 = 1
        static let send: UInt32 = 2
    }

    var sourceContext = hostContext
    var targetContext = guestContext
    var sourcePort: UInt32 = 0
    var targetPort: UInt32 = 0
    var count: UInt32 = 0
    var type = stream
    var operation: UInt16 = 0
    var flags: UInt32 = 0
    /// Room for data at the sender, and how much of what came it has passed on.
    var room: UInt32 = 0
    var forwarded: UInt32 = 0

    init(_ operation: UInt16, from sourcePort: UInt32, to targetPort: UInt32) {
        self.operation = operation
        self.sourcePort = sourcePort
        self.targetPort = targetPort
    }
    /// Nil when the chain is shorter than a header.
    init?(_ chain: DescriptorChain) {
        guard chain.readableCount >= Self.size, let source = chain.load(at: 0, as: UInt64.self), let target = chain.load(at: 8, as: UInt64.self),
            let sourcePort = chain.load(at: 16, as: UInt32.self), let targetPort = chain.load(at: 20, as: UInt32.self),
            let count = chain.load(at: 24, as: UInt32.self), let type = chain.load(at: 28, as: UInt16.self),
            let operation = chain.load(at: 30, as: UInt16.self), let flags = chain.load(at: 32, as: UInt32.self),
            let room = chain.load(at: 36, as: UInt32.self), let forwarded = chain.load(at: 40, as: UInt32.self)
        else { return nil }
        (sourceContext, targetContext) = (source, target)
        (self.sourcePort, self.targetPort) = (sourcePort, targetPort)
        (self.count, self.type, self.operation) = (count, type, operation)
        (self.flags, self.room, self.forwarded) = (flags, room, forwarded)
    }
    /// Whether it is of a stream between the guest and the host.
    var isOurs: Bool { sourceContext == Self.guestContext && targetContext == Self.hostContext && type == Self.stream }

    func write(to chain: DescriptorChain, _ scratch: UnsafeMutableRawPointer) {
        scratch.storeBytes(of: sourceContext.littleEndian, as: UInt64.self)
        scratch.storeBytes(of: targetContext.littleEndian, toByteOffset: 8, as: UInt64.self)
        scratch.storeBytes(of: sourcePort.littleEndian, toByteOffset: 16, as: UInt32.self)
        scratch.storeBytes(of: targetPort.littleEndian, toByteOffset: 20, as: UInt32.self)
        scratch.storeBytes(of: count.littleEndian, toByteOffset: 24, as: UInt32.self)
        scratch.storeBytes(of: type.littleEndian, toByteOffset: 28, as: UInt16.self)
        scratch.storeBytes(of: operation.littleEndian, toByteOffset: 30, as: UInt16.self)
        scratch.storeBytes(of: flags.littleEndian, toByteOffset: 32, as: UInt32.self)
        scratch.storeBytes(of: room.littleEndian, toByteOffset: 36, as: UInt32.self)
        scratch.storeBytes(of: forwarded.littleEndian, toByteOffset: 40, as: UInt32.self)
        _ = chain.write(at: 0, from: scratch, count: Self.size)
    }
}
