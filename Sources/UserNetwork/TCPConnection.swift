import CLinux
import Glibc
import HostNetwork
import LinuxSystem

struct TCPKey: Hashable {
    let guest: SocketAddress
    let remote: SocketAddress
}

/// Sequence numbers wrap around: what lies between them counts. RFC 9293 § 3.4.
struct SequenceNumber: Equatable {
    var value: UInt32
    static func + (left: SequenceNumber, right: Int) -> SequenceNumber { SequenceNumber(value: left.value &+ UInt32(truncatingIfNeeded: right)) }
    static func - (left: SequenceNumber, right: SequenceNumber) -> Int { Int(Int32(bitPattern: left.value &- right.value)) }
}

/// One TCP connection: the guest's side is ours to speak (RFC 9293), the host's side is a socket.
///
/// The way to the guest loses next to nothing, so there is no congestion window: the guest's window is the only limit, and
/// what is lost is sent again from the first missing byte. Data for the guest waits in `outgoing` until it is acknowledged; data
/// from the guest goes straight to the socket, and into `incoming`, which bounds our window, while that is full.
final class TCPConnection: Endpoint {
    enum Phase {
        /// The host connects; the guest waits.
        case connecting
        /// The guest has been told that it is connected.
        case synReceived
        /// Somebody connected to a forwarded port; the guest has been asked.
        case synSent
        case open
    }
    enum Flag {
        static let fin: UInt8 = 1
        static let syn: UInt8 = 2
        static let reset: UInt8 = 4
        static let push: UInt8 = 8
        static let acknowledge: UInt8 = 16
    }
    static let ringSize = 256 << 10
    private static let smallRingSize = 16 << 10
    private static let ringBudget = 32 << 20
    static let windowShift: UInt8 = 7
    private static let firstTimeout: UInt64 = 300_000_000
    private static let mostAttempts = 8

    let key: TCPKey
    var phase: Phase
    var isAborted = false

    // Towards the guest.
    var outgoing = ByteRing()
    var unacknowledged: SequenceNumber
    var next: SequenceNumber
    /// The furthest that was ever sent: `next` goes back when something is lost.
    var highest: SequenceNumber
    var guestWindow = 0
    var guestShift: UInt8 = 0
    var segmentSize = 536
    var hostEnded = false
    var finSent = false
    var finAcknowledged = false
    private var duplicates = 0
    private var attempts = 0

    // From the guest.
    var incoming = ByteRing()
    var expected = SequenceNumber(value: 0)
    /// The furthest right edge of a window that the guest was shown.
    var promised = SequenceNumber(value: 0)
    var guestEnded = false
    private var hasShutDown = false

    // What the socket may do, as far as epoll's edges tell.
    var isReadable = false
    private var isWritable = true
    private var hostHungUp = false

    var mustAcknowledge = false
    var mustReset = false

    init(_ key: TCPKey, phase: Phase, id: UInt64, fd: Int32) {
        self.key = key
        self.phase = phase
        var random: UInt32 = 0
        _ = getrandom(&random, 4, 0)
        unacknowledged = SequenceNumber(value: random)
        next = unacknowledged
        highest = unacknowledged
        HostSocket.set(fd, Int32(IPPROTO_TCP), Int32(TCP_NODELAY), 1)
        HostSocket.set(fd, SOL_SOCKET, SO_OOBINLINE, 1)
        super.init(id: id, fd: fd)
    }
    override func end() { if isAborted { HostSocket.abort(fd) } else { close(fd) } }

    // MARK: the host's side

    override func happened(_ events: UInt32, _ stack: Stack) {
        if events & (EPOLLHUP.rawValue | EPOLLERR.rawValue | EPOLLRDHUP.rawValue) != 0 { hostHungUp = true }
        if phase == .connecting {
            guard events & (EPOLLOUT.rawValue | EPOLLERR.rawValue | EPOLLHUP.rawValue) != 0 else { return }
            let error = HostSocket.error(fd)
            if error != 0 { return refuse(error, stack) }
            // An event that came before the connect did.
            guard clinux_is_connected(fd) != 0 else { return }
            hostHungUp = false
            phase = .synReceived
        }
        if events & (EPOLLIN.rawValue | EPOLLRDHUP.rawValue | EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 { isReadable = true }
        if events & EPOLLOUT.rawValue != 0 {
            isWritable = true
            drain(stack)
        }
        stack.makeReady(self)
    }
    private func refuse(_ error: Int32, _ stack: Stack) {
        // A reset says "refused" to a guest that waits; "no route" it hears as what it is.
        if error == ENETUNREACH || error == EHOSTUNREACH { stack.sendUnreachable(self) } else { stack.emitReset(self) }
        finish(stack)
    }
    /// Lets go of the connection and of the socket.
    func finish(_ stack: Stack) {
        stack.ringBytes -= outgoing.capacity + incoming.capacity
        outgoing.release()
        incoming.release()
        stack.connections[key] = nil
        stack.erase(self)
    }
    private func abort(_ stack: Stack) {
        isAborted = true
        stack.emitReset(self)
        finish(stack)
    }
    private func allocate(_ ring: inout ByteRing, _ stack: Stack) {
        guard ring.capacity == 0 else { return }
        ring.allocate(stack.ringBytes < Self.ringBudget ? Self.ringSize : Self.smallRingSize)
        stack.ringBytes += ring.capacity
    }
    private func releaseIfEmpty(_ ring: inout ByteRing, _ stack: Stack) {
        guard ring.count == 0, ring.capacity > 0, stack.ringBytes > Self.ringBudget / 2 || guestEnded || hostEnded else { return }
        stack.ringBytes -= ring.capacity
        ring.release()
    }

    /// Reads from the socket while there is room; false when the connection is over.
    private func fill(_ stack: Stack) -> Bool {
        guard isReadable, !hostEnded, phase == .open else { return true }
        // Enough for the next frame: read larger pieces, less often.
        guard outgoing.count - (next - unacknowledged) < 64 << 10 else { return true }
        allocate(&outgoing, stack)
        while outgoing.free > 0 {
            let free = outgoing.free
            let parts = outgoing.freePieces(stack.parts)
            var message = msghdr()
            message.msg_iov = stack.parts
            message.msg_iovlen = parts
            let count = recvmsg(fd, &message, Int32(MSG_DONTWAIT))
            if count > 0 {
                outgoing.appended(count)
                // A short read has emptied the socket, unless the end waits behind it.
                if count < free, !hostHungUp { isReadable = false }
                if count < free, hostHungUp { continue }
                return true
            }
            if count == 0 {
                hostEnded = true
                isReadable = false
                return true
            }
            if errno == EINTR { continue }
            if errno == EAGAIN {
                isReadable = false
                return true
            }
            abort(stack)
            return false
        }
        return true
    }
    /// Brings what waits to the socket, and its end behind it.
    private func drain(_ stack: Stack) {
        guard phase == .open else { return }
        while incoming.count > 0, isWritable {
            let parts = incoming.pieces(from: 0, size: incoming.count, stack.parts)
            let count = HostSocket.send(fd, stack.parts, parts, to: nil)
            if count < 0 {
                if errno == EINTR { continue }
                isWritable = false
                if errno == EAGAIN { break }
                return abort(stack)
            }
            incoming.drop(count)
        }
        releaseIfEmpty(&incoming, stack)
        // The guest hears of room once it is worth a packet.
        if expected + window - promised >= Self.ringSize / 2 { mustAcknowledge = true }
        if guestEnded, incoming.count == 0, !hasShutDown {
            hasShutDown = true
            shutdown(fd, Int32(SHUT_WR))
        }
    }
    private var window: Int { incoming.capacity == 0 ? Self.ringSize : incoming.free }

    // MARK: from the guest

    func input(_ segment: TCPSegment, _ frame: MemoryPieces, _ stack: Stack) {
        if segment.has(Flag.reset) {
            guard phase == .connecting || phase == .synSent || segment.sequence - expected >= 0 else { return }
            isAborted = true
            return finish(stack)
        }
        switch phase {
        case .connecting: return  // its SYN again
        case .synSent:
            guard segment.has(Flag.syn), segment.has(Flag.acknowledge), segment.acknowledged == highest else { return }
            greet(segment)
            phase = .open
            (attempts, deadline) = (0, 0)
            unacknowledged = highest
            next = highest
            guestWindow = segment.window
            mustAcknowledge = true
            isReadable = true
            return stack.makeReady(self)
        case .synReceived where segment.has(Flag.syn):
            next = unacknowledged  // our answer was lost
            return stack.makeReady(self)
        case .synReceived, .open: break
        }
        guard segment.has(Flag.acknowledge), !segment.has(Flag.syn) else { return }
        acknowledge(segment, stack)
        if segment.count > 0 || segment.has(Flag.fin) { accept(segment, frame, stack) }
        guard stack.isAlive(self) else { return }
        if isOver { return finish(stack) }
        stack.makeReady(self)
    }
    /// Takes what the guest's SYN says.
    func greet(_ segment: TCPSegment) {
        expected = segment.sequence + 1
        guestShift = segment.windowShift ?? 0
        guestWindow = segment.window
        promised = expected + min(Self.ringSize, 65535)
        segmentSize = min(segment.maximumSegment ?? 536, 1500 - (key.guest.address.isV4 ? 40 : 60))
    }
    private func acknowledge(_ segment: TCPSegment, _ stack: Stack) {
        let news = segment.acknowledged - unacknowledged
        guard news >= 0, segment.acknowledged - highest <= 0 else { return }
        let window = segment.window << Int(segment.has(Flag.syn) ? 0 : guestShift)
        if news == 0 {
            guard segment.count == 0, !segment.has(Flag.fin), highest != unacknowledged, window == guestWindow else {
                guestWindow = window
                // A guest that answers is alive, however long it takes nothing.
                if window == 0 { attempts = min(attempts, 4) }
                return
            }
            if window == 0 { attempts = min(attempts, 4) }
            // Three of the same: the segment after it is lost. RFC 5681 § 3.2.
            duplicates += 1
            if duplicates == 3 { goBack() }
            return
        }
        guestWindow = window
        (duplicates, attempts) = (0, 0)
        var bytes = news
        if phase == .synReceived {
            phase = .open
            bytes -= 1
            isReadable = true
            drain(stack)
        }
        if bytes > outgoing.count, hostEnded {
            finAcknowledged = true
            bytes -= 1
        }
        outgoing.drop(min(bytes, outgoing.count))
        unacknowledged = segment.acknowledged
        if next - unacknowledged < 0 { next = unacknowledged }
        if highest == unacknowledged {
            deadline = 0
            releaseIfEmpty(&outgoing, stack)
        } else {
            stack.setDeadline(self, stack.now() + Self.firstTimeout)
        }
    }
    private var timeout: UInt64 { Self.firstTimeout << UInt64(min(attempts, 6)) }
    private func goBack() {
        next = unacknowledged
        finSent = false
    }
    private func accept(_ segment: TCPSegment, _ frame: MemoryPieces, _ stack: Stack) {
        mustAcknowledge = true
        let skip = expected - segment.sequence
        // A gap, or nothing new: the acknowledgement says what is expected.
        guard skip >= 0, skip <= segment.count, !guestEnded else { return }
        let count = min(segment.count - skip, max(0, promised - expected))
        if count > 0 {
            guard let taken = take(frame, segment.offset + skip, count, stack) else { return abort(stack) }
            expected = expected + taken
        }
        if segment.has(Flag.fin), segment.sequence + segment.count == expected {
            expected = expected + 1
            guestEnded = true
            drain(stack)
        }
    }
    /// Straight to the socket, the rest into the ring. Returns how much found a place; nil when the host's side is gone.
    private func take(_ frame: MemoryPieces, _ offset: Int, _ count: Int, _ stack: Stack) -> Int? {
        var done = 0
        if incoming.count == 0, isWritable, phase == .open {
            let parts = frame.slice(from: offset, limit: count, to: stack.parts, capacity: Stack.partCapacity)
            let sent = HostSocket.send(fd, stack.parts, parts, to: nil)
            if sent < 0, errno != EAGAIN, errno != EINTR { return nil }
            if sent < 0, errno == EAGAIN { isWritable = false }
            done = max(sent, 0)
        }
        guard done < count else { return done }
        allocate(&incoming, stack)
        let rest = min(count - done, incoming.free)
        let parts = incoming.freePieces(stack.parts)
        var copied = 0
        for index in 0..<parts where copied < rest {
            let part = stack.parts[index]
            guard let base = part.iov_base else { break }
            copied += frame.copy(from: offset + done + copied, limit: min(part.iov_len, rest - copied), to: base)
        }
        incoming.appended(copied)
        // A send that took less than it was given has filled the socket, or was cut at a great many pieces.
        drain(stack)
        return stack.isAlive(self) ? done + copied : nil
    }
    private var isOver: Bool { finAcknowledged && guestEnded && incoming.count == 0 && !mustAcknowledge }

    // MARK: to the guest

    override func produce(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        switch phase {
        case .connecting: return nil
        case .synReceived, .synSent:
            guard next == unacknowledged else { return nil }
            return sendSynchronize(room, stack)
        case .open: break
        }
        guard fill(stack) else { return nil }
        if let size = sendData(room, stack) { return size }
        if hostEnded, !finSent, next - unacknowledged == outgoing.count {
            finSent = true
            let size = sendHeader(Flag.fin | Flag.acknowledge, room, stack)
            sent(1, stack)
            return size
        }
        guard mustAcknowledge else { return nil }
        let size = sendHeader(Flag.acknowledge, room, stack)
        if isOver { finish(stack) }
        return size
    }
    private func sendSynchronize(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        let flags = phase == .synSent ? Flag.syn : Flag.syn | Flag.acknowledge
        let size = sendHeader(flags, room, stack)
        sent(1, stack)
        return size
    }
    /// Counts what was sent, and sees to it that it is sent again if need be.
    private func sent(_ count: Int, _ stack: Stack) {
        next = next + count
        if next - highest > 0 { highest = next }
        if deadline == 0 { stack.setDeadline(self, stack.now() + timeout) }
    }
    private func sendData(_ room: MemoryPieces, _ stack: Stack) -> Int? {
        guard !finSent else { return nil }
        let inFlight = next - unacknowledged
        let unsent = outgoing.count - inFlight
        guard unsent > 0 else { return nil }
        let isV4 = key.guest.address.isV4
        let headers = isV4 ? 54 : 74
        let cuts = stack.accepted.contains(isV4 ? .tcp4 : .tcp6)
        let most = min(cuts ? 65535 - 60 : segmentSize, room.total - headers)
        var count = min(unsent, guestWindow - inFlight, most)
        if count < min(unsent, segmentSize) {
            // The window is (nearly) full. When nothing is on its way that would open it, ask again later.
            if inFlight > 0 || count <= 0 {
                if inFlight == 0, deadline == 0 { stack.setDeadline(self, stack.now() + timeout) }
                return nil
            }
        } else if count > segmentSize, count < unsent {
            count -= count % segmentSize
        }
        let size = sendHeader(Flag.acknowledge | Flag.push, room, stack, from: inFlight, count: count)
        sent(count, stack)
        return size
    }
    /// One packet of this connection, with `count` bytes of `outgoing` from `offset`.
    private func sendHeader(_ flags: UInt8, _ room: MemoryPieces, _ stack: Stack, from offset: Int = 0, count: Int = 0) -> Int {
        let parts = outgoing.pieces(from: offset, size: count, stack.parts)
        let window = self.window
        let start = stack.writeTCP(self, flags, window: window, stack.parts, parts, count)
        mustAcknowledge = false
        let shown = expected + (flags & Flag.syn != 0 ? min(window, 65535) : (window >> Int(Self.windowShift)) << Int(Self.windowShift))
        // Rounded down, the edge may lie a little before the last one, up to which data may be under way. There is room for that.
        if shown - promised > 0 { promised = shown }
        room.write(stack.writer.bytes, start, at: 0)
        var at = start
        for index in 0..<parts {
            if let base = stack.parts[index].iov_base { at += room.write(base, stack.parts[index].iov_len, at: at) }
        }
        return start + count
    }
    override func expired(_ now: UInt64, _ stack: Stack) {
        attempts += 1
        guard attempts <= Self.mostAttempts else { return abort(stack) }
        guard phase == .open, outgoing.count > next - unacknowledged, guestWindow <= next - unacknowledged, highest == unacknowledged else {
            goBack()
            return stack.makeReady(self)
        }
        // The window is closed: one byte beyond it asks whether it still is. RFC 9293 § 3.8.6.1. That is no failure.
        attempts = min(attempts, 4)
        guestWindow = 1
        stack.makeReady(self)
    }
}
