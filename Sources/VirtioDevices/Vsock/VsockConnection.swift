import CLinux
import Glibc
import LinuxSystem

struct VsockKey: Hashable {
    let host: UInt32
    let guest: UInt32
}

/// One stream: the device's end of a socket, and what both sides owe each other. All under the table's lock.
/// VIRTIO 1.2 § 5.10.6.3.
final class VsockConnection {
    enum Phase {
        /// The guest wants it; the application has not answered.
        case offered
        /// The host wants it; the guest has not answered.
        case requested
        case open
        /// The guest has gone; what it sent still goes out.
        case draining
    }
    static let bufferSize: UInt32 = 256 << 10
    static let smallBufferSize: UInt32 = 16 << 10

    let key: VsockKey
    let id: UInt64
    let fd: Int32
    /// What the guest may send ahead.
    let room: UInt32
    var phase: Phase
    /// Told of the guest's answer.
    var completion: ((Bool) -> Void)?
    var deadline: UInt64 = 0

    // To the guest: counters wrap around.
    var sent: UInt32 = 0
    var guestRoom: UInt32 = 0
    var guestForwarded: UInt32 = 0
    var hostEnded = false
    var guestReceivesNoMore = false
    private var hasAskedForCredit = false
    /// What was read from the socket while the guest had no room: the host's program goes on writing meanwhile. Its socket holds less
    /// than the guest takes at once.
    private var stock = ByteRing()
    private static let stockStep = 64 << 10
    /// Whether it is among those that wait for room, and how much was sent when they were looked at last.
    var isStarved = false
    var sentBefore: UInt32 = 0

    // From the guest.
    var received: UInt32 = 0
    var forwarded: UInt32 = 0
    var shownForwarded: UInt32 = 0
    var buffer = ByteRing()
    var guestSendsNoMore = false
    private var hasShutDown = false

    // epoll's edges.
    var isReadable = true
    var isWritable = true
    /// Whether epoll tells when it is writable.
    var watchesRoom = false
    var hasHungUp = false
    var isReady = false

    init(_ key: VsockKey, id: UInt64, fd: Int32, phase: Phase, room: UInt32) {
        self.key = key
        self.id = id
        self.fd = fd
        self.phase = phase
        self.room = room
        // All that the guest may send ahead fits; where the host allows less, the rest waits in the buffer.
        var size = Int32(Self.bufferSize)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, UInt32(MemoryLayout.size(ofValue: size)))
    }
    deinit { close(fd) }

    func packet(_ operation: UInt16) -> VsockPacket {
        var packet = VsockPacket(operation, from: key.host, to: key.guest)
        packet.room = room
        packet.forwarded = forwarded
        shownForwarded = forwarded
        return packet
    }
    /// How much the guest takes now.
    var credit: Int {
        let inFlight = sent &- guestForwarded
        return inFlight <= guestRoom ? Int(guestRoom - inFlight) : 0
    }
    /// Whether the host's side may have something for the guest.
    var mayHaveData: Bool { (isReadable || stock.count > 0) && !hostEnded && !guestReceivesNoMore }
    func note(_ packet: VsockPacket) {
        guestRoom = packet.room
        guestForwarded = packet.forwarded
        if credit > 0 { hasAskedForCredit = false }
    }
    /// Whether the guest should hear of room again. Linux never has more than 256 KiB on its way, however much room there is.
    var mustShowCredit: Bool { phase == .open && forwarded != shownForwarded && received &- shownForwarded >= min(room / 2, 64 << 10) }
    /// True once for each time that the guest's room has run out.
    func takeCreditQuestion() -> Bool {
        defer { hasAskedForCredit = true }
        return !hasAskedForCredit
    }

    /// The next data for the guest, as recvmsg(2) returns.
    func read(_ pieces: GuestPieces, _ parts: UnsafeMutablePointer<iovec>) -> Int {
        guard stock.count > 0 else { return receive(pieces.base, pieces.count) }
        let (target, count) = (MemoryPieces(pieces: pieces.base, count: pieces.count), min(stock.count, pieces.total))
        var done = 0
        for index in 0..<stock.pieces(from: 0, size: count, parts) {
            if let base = parts[index].iov_base { done += target.write(base, parts[index].iov_len, at: done) }
        }
        stock.drop(done)
        return done
    }
    /// Reads ahead for a guest without room. False when there is nothing to read, or no room here either.
    func fillStock(_ parts: UnsafeMutablePointer<iovec>) -> Bool {
        guard isReadable else { return false }
        stock.allocate(Int(room))
        guard stock.free > 0 else { return false }
        _ = stock.freePieces(parts)
        parts[0].iov_len = min(parts[0].iov_len, Self.stockStep)
        let count = receive(parts, 1)
        // The end, and errors, are met again behind what is there.
        if count < 0, errno == EAGAIN { isReadable = false }
        stock.appended(max(count, 0))
        return count > 0
    }
    /// There is nothing on its way: no memory either.
    func releaseStock() { if stock.count == 0 { stock.release() } }
    private func receive(_ pieces: UnsafeMutablePointer<iovec>, _ count: Int) -> Int {
        var message = msghdr()
        message.msg_iov = pieces
        message.msg_iovlen = count
        return recvmsg(fd, &message, Int32(MSG_DONTWAIT))
    }

    enum Delivery { case done, gone, tooMuch }
    /// Brings data of the guest's to the socket, the rest into the buffer.
    func take(_ pieces: GuestPieces, _ parts: UnsafeMutablePointer<iovec>) -> Delivery {
        let count = pieces.total
        guard UInt32(truncatingIfNeeded: count) <= room &- (received &- forwarded), !guestSendsNoMore else { return .tooMuch }
        received &+= UInt32(truncatingIfNeeded: count)
        var done = 0
        if buffer.count == 0, isWritable, phase == .open {
            var message = msghdr()
            message.msg_iov = pieces.base
            message.msg_iovlen = pieces.count
            let sent = sendmsg(fd, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
            if sent < 0, errno != EAGAIN, errno != EINTR { return .gone }
            if sent < 0, errno == EAGAIN { isWritable = false }
            done = max(sent, 0)
            forwarded &+= UInt32(truncatingIfNeeded: done)
        }
        guard done < count else { return .done }
        buffer.allocate(Int(room))
        append(MemoryPieces(pieces: pieces.base, count: pieces.count), from: done, parts)
        return flush(parts) ? .done : .gone
    }
    /// There is room: the credit was checked.
    private func append(_ data: MemoryPieces, from offset: Int, _ parts: UnsafeMutablePointer<iovec>) {
        var done = 0
        for index in 0..<buffer.freePieces(parts) {
            if let base = parts[index].iov_base { done += data.copy(from: offset + done, limit: parts[index].iov_len, to: base) }
        }
        buffer.appended(done)
    }
    /// Brings what waits to the socket, and the guest's end behind it. False when the host's side is gone.
    func flush(_ parts: UnsafeMutablePointer<iovec>) -> Bool {
        guard phase == .open || phase == .draining else { return true }
        while buffer.count > 0, isWritable {
            var message = msghdr()
            message.msg_iov = parts
            message.msg_iovlen = buffer.pieces(from: 0, size: buffer.count, parts)
            let count = sendmsg(fd, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
            if count < 0 {
                if errno == EINTR { continue }
                isWritable = false
                if errno == EAGAIN { break }
                return false
            }
            buffer.drop(count)
            forwarded &+= UInt32(truncatingIfNeeded: count)
        }
        guard buffer.count == 0 else { return true }
        buffer.release()
        if guestSendsNoMore, !hasShutDown {
            hasShutDown = true
            shutdown(fd, Int32(SHUT_WR))
        }
        return true
    }
}
