import CLinux
import Glibc
import HostNetwork
import LinuxSystem

/// What a segment from the guest says.
struct TCPSegment {
    let sequence: SequenceNumber
    let acknowledged: SequenceNumber
    let flags: UInt8
    let window: Int
    /// Where the payload lies in the frame.
    let offset: Int
    let count: Int
    private(set) var maximumSegment: Int?
    private(set) var windowShift: UInt8?

    init?(_ packet: ParsedPacket) {
        guard packet.headerCount >= 20 else { return nil }
        let header = packet.header
        let length = Int(header.byte(12) >> 4) * 4
        guard length >= 20, length <= packet.headerCount, length <= packet.count else { return nil }
        sequence = SequenceNumber(value: header.big32(4))
        acknowledged = SequenceNumber(value: header.big32(8))
        flags = header.byte(13)
        window = Int(header.big16(14))
        offset = packet.offset + length
        count = packet.count - length
        if flags & TCPConnection.Flag.syn != 0 { readOptions(header, length) }
    }
    func has(_ flag: UInt8) -> Bool { flags & flag != 0 }

    private mutating func readOptions(_ header: UnsafeRawPointer, _ length: Int) {
        var at = 20
        while at < length {
            let kind = header.byte(at)
            if kind == 0 { return }
            if kind == 1 {
                at += 1
                continue
            }
            guard at + 1 < length, header.byte(at + 1) >= 2, at + Int(header.byte(at + 1)) <= length else { return }
            let size = Int(header.byte(at + 1))
            if kind == 2, size == 4 { maximumSegment = max(Int(header.big16(at + 2)), 64) }
            if kind == 3, size == 3 { windowShift = min(header.byte(at + 2), 14) }
            at += size
        }
    }
}

extension Stack {
    private static let mostConnections = 8192

    func inputTCP(_ packet: ParsedPacket, _ frame: MemoryPieces) {
        guard let segment = TCPSegment(packet) else { return }
        let key = TCPKey(
            guest: SocketAddress(packet.source, packet.header.big16(0)), remote: SocketAddress(packet.target, packet.header.big16(2)))
        let isNew = segment.has(TCPConnection.Flag.syn) && !segment.has(TCPConnection.Flag.acknowledge)
        if let connection = connections[key] {
            // A SYN that is not this connection's own: the guest has started anew.
            guard isNew, connection.phase == .open || segment.sequence + 1 != connection.expected else { return connection.input(segment, frame, self) }
            connection.isAborted = true
            connection.finish(self)
        }
        if isNew { return connect(key, segment, packet) }
        if !segment.has(TCPConnection.Flag.reset) { emitReset(key, segment) }
    }
    private func connect(_ key: TCPKey, _ segment: TCPSegment, _ packet: ParsedPacket) {
        let isForNames = key.remote == SocketAddress(Addresses.router4, 53)
        if isForNames { resolver.refresh() }
        let host = isForNames ? SocketAddress(resolver.current, options.nameServerPort) : hostTarget(key.remote)
        guard let host else { return emitReset(key, segment) }
        let fd = connections.count < Self.mostConnections ? HostSocket.open(SOCK_STREAM) : -1
        guard fd >= 0 else { return emitReset(key, segment) }
        let connection = TCPConnection(key, phase: .connecting, id: takeID(), fd: fd)
        connection.greet(segment)
        if !HostSocket.connect(fd, host), errno != EINPROGRESS {
            let error = errno
            close(fd)
            if error == ENETUNREACH || error == EHOSTUNREACH { sendUnreachable(packet, port: false) } else { emitReset(key, segment) }
            return
        }
        connections[key] = connection
        insert(connection)
    }

    /// A reset for a segment that belongs to no connection. RFC 9293 § 3.10.7.1.
    private func emitReset(_ key: TCPKey, _ segment: TCPSegment) {
        let length = segment.count + (segment.has(TCPConnection.Flag.syn) ? 1 : 0) + (segment.has(TCPConnection.Flag.fin) ? 1 : 0)
        let isAnswer = segment.has(TCPConnection.Flag.acknowledge)
        emitReset(
            key, sequence: isAnswer ? segment.acknowledged : SequenceNumber(value: 0), acknowledged: segment.sequence + length,
            flags: isAnswer ? TCPConnection.Flag.reset : TCPConnection.Flag.reset | TCPConnection.Flag.acknowledge)
    }
    /// In answer to a segment with another number than the guest expects, it tells us that number, and hears of a reset once more.
    func emitReset(_ connection: LostConnection) {
        emitReset(
            connection.key, sequence: connection.next, acknowledged: connection.expected, flags: TCPConnection.Flag.reset | TCPConnection.Flag.acknowledge)
    }
    func emitReset(_ connection: TCPConnection) {
        emitReset(
            connection.key, sequence: connection.next, acknowledged: connection.expected,
            flags: TCPConnection.Flag.reset | TCPConnection.Flag.acknowledge)
    }
    private func emitReset(_ key: TCPKey, sequence: SequenceNumber, acknowledged: SequenceNumber, flags: UInt8) {
        memset(datagram, 0, 20)
        writeHeader(datagram, key, sequence, acknowledged, flags, length: 20, window: 0)
        var sum = PacketWriter.pseudoSum(key.remote.address, key.guest.address, ParsedPacket.Transport.tcp, 20)
        sum.add(datagram, 20)
        datagram.storeBig16(sum.value, 16)
        sendDatagram(key.remote.address, key.guest.address, ParsedPacket.Transport.tcp, 20)
    }
    /// The host has no route: quotes the guest's SYN, as far as it is known.
    func sendUnreachable(_ connection: TCPConnection) {
        let (source, target) = (connection.key.guest, connection.key.remote)
        let length = source.address.isV4 ? 34 : 54
        _ = writer.begin(to: hardware, source.address, target.address, transport: ParsedPacket.Transport.tcp, count: 20, identification: 0)
        memcpy(headers, writer.bytes, length)
        writeHeader(
            headers + length, TCPKey(guest: target, remote: source), connection.expected + -1, SequenceNumber(value: 0), TCPConnection.Flag.syn, length: 20, window: 0)
        let quoted = UnsafeRawPointer(headers) + 14
        let packet =
            source.address.isV4
            ? ParsedPacket(v4: quoted, available: 40, frameCount: 54) : ParsedPacket(v6: quoted, available: 60, frameCount: 74)
        if let packet { sendUnreachable(packet, port: false) }
    }

    private func writeHeader(
        _ tcp: UnsafeMutableRawPointer, _ key: TCPKey, _ sequence: SequenceNumber, _ acknowledged: SequenceNumber, _ flags: UInt8, length: Int, window: Int
    ) {
        tcp.storeBig16(key.remote.port, 0)
        tcp.storeBig16(key.guest.port, 2)
        tcp.storeBig32(sequence.value, 4)
        tcp.storeBig32(flags & TCPConnection.Flag.acknowledge != 0 ? acknowledged.value : 0, 8)
        tcp.storeByte(UInt8(length / 4) << 4, 12)
        tcp.storeByte(flags, 13)
        tcp.storeBig16(UInt16(clamping: window), 14)
        tcp.storeBig32(0, 16)
    }
    /// Ethernet, IP and TCP headers in `writer`; the checksum is left to the guest where it takes that. Returns their size.
    func writeTCP(
        _ connection: TCPConnection, _ flags: UInt8, window: Int, _ payload: UnsafePointer<iovec>, _ parts: Int, _ count: Int
    ) -> Int {
        let isSynchronize = flags & TCPConnection.Flag.syn != 0
        let length = isSynchronize ? 28 : 20
        let (source, target) = (connection.key.remote.address, connection.key.guest.address)
        let start = writer.begin(
            to: hardware, source, target, transport: ParsedPacket.Transport.tcp, count: length + count, identification: 0)
        let tcp = writer.bytes + start
        writeHeader(
            tcp, connection.key, connection.next, connection.expected, flags, length: length,
            window: isSynchronize ? window : window >> Int(TCPConnection.windowShift))
        if isSynchronize {
            tcp.storeBig32(0x0204_0000 | UInt32(source.isV4 ? 1460 : 1440), 20)
            tcp.storeBig32(0x0103_0300 | UInt32(TCPConnection.windowShift), 24)
        }
        var sum = PacketWriter.pseudoSum(source, target, ParsedPacket.Transport.tcp, length + count)
        if accepted.contains(.checksum) {
            tcp.storeBig16(sum.partial, 16)
            offload.needsChecksum = true
            offload.checksumStart = start
            offload.checksumOffset = 16
            if count > connection.segmentSize {
                offload.segmentation = source.isV4 ? .tcp4 : .tcp6
                offload.segmentSize = connection.segmentSize
            }
        } else {
            sum.add(tcp, length)
            for part in UnsafeBufferPointer(start: payload, count: parts) { if let base = part.iov_base { sum.add(base, part.iov_len) } }
            tcp.storeBig16(sum.value, 16)
        }
        return start + length
    }
}
