import CLinux
import Glibc
import HostNetwork
import LinuxSystem

/// All streams of a device, and the epoll descriptor that watches their sockets. One thread at a time.
final class VsockTable {
    private typealias Operation = VsockPacket.Operation
    private static let mostConnections = 4096
    private static let mostReplies = 1024
    private static let bufferBudget: UInt64 = 128 << 20
    /// Linux's own wait for an answer is two seconds.
    private static let connectTimeout: UInt64 = 10_000_000_000
    /// A guest that says nothing of its room for so long is asked. Linux tells by itself.
    private static let patience: UInt64 = 5_000_000
    /// How often the sending thread goes round the connections before it looks at the guest's next packet.
    private static let mostTurns = 8

    private let host: VsockHost
    let epoll: Int32
    private var connections: [VsockKey: VsockConnection] = [:]
    /// These, and those whose guest has gone while the host has not read everything.
    private var byID: [UInt64: VsockConnection] = [:]
    /// How many have a deadline.
    private var waiting = 0
    private var nextID: UInt64 = 1
    private var nextPort: UInt32 = 1 << 30
    private var replies: [VsockPacket] = []
    private var ready: [VsockConnection] = []
    private var isSleeping = false
    /// Connections that have, or had, something for a guest without room, and when they are looked at next.
    private var starved: [VsockConnection] = []
    private var nextLook: UInt64 = 0
    private var hasNewDeadline = false
    private let parts = UnsafeMutablePointer<iovec>.allocate(capacity: 2)
    /// Called, off the lock, with what has become of a connection.
    private var news: [() -> Void] = []
    /// Sends a stream's answer back to the device.
    private let answered: @Sendable (UInt64, Bool) -> Void

    init(_ host: VsockHost, wake: EventFD, answered: @escaping @Sendable (UInt64, Bool) -> Void) throws(SystemError) {
        self.host = host
        self.answered = answered
        epoll = Int32(try SystemError.check("epoll_create1") { Int(epoll_create1(Int32(EPOLL_CLOEXEC))) })
        watch(wake.fileDescriptor, 0)
    }
    deinit {
        close(epoll)
        parts.deallocate()
    }
    private func watch(_ fd: Int32, _ id: UInt64, _ operation: Int32 = EPOLL_CTL_ADD, forRoom: Bool = false) {
        var event = epoll_event()
        event.events = EPOLLIN.rawValue | EPOLLRDHUP.rawValue | EPOLLET.rawValue | (forRoom ? EPOLLOUT.rawValue : 0)
        event.data.u64 = id
        epoll_ctl(epoll, operation, fd, &event)
    }
    /// Room in a socket is only asked for while something waits for it: else each read of the host's would wake the receiving thread.
    private func watchRoom(_ connection: VsockConnection) {
        guard connection.watchesRoom == connection.isWritable else { return }
        connection.watchesRoom = !connection.isWritable
        watch(connection.fd, connection.id, EPOLL_CTL_MOD, forRoom: connection.watchesRoom)
    }

    // MARK: connections

    private func insert(_ key: VsockKey, fd: Int32, _ phase: VsockConnection.Phase) -> VsockConnection {
        let isFull = UInt64(byID.count) * UInt64(VsockConnection.bufferSize) > Self.bufferBudget
        let room = isFull ? VsockConnection.smallBufferSize : VsockConnection.bufferSize
        let connection = VsockConnection(key, id: nextID, fd: fd, phase: phase, room: room)
        nextID += 1
        connections[key] = connection
        byID[connection.id] = connection
        return connection
    }
    private func forget(_ connection: VsockConnection) {
        if connections[connection.key] === connection { connections[connection.key] = nil }
        guard byID.removeValue(forKey: connection.id) != nil else { return }
        epoll_ctl(epoll, EPOLL_CTL_DEL, connection.fd, nil)
        shutdown(connection.fd, Int32(SHUT_RDWR))
        finish(connection, false)
    }
    private func finish(_ connection: VsockConnection, _ succeeded: Bool) {
        if connection.deadline != 0 { waiting -= 1 }
        connection.deadline = 0
        guard let completion = connection.completion else { return }
        connection.completion = nil
        news.append { completion(succeeded) }
    }
    private func reset(_ connection: VsockConnection) {
        reply(connection.packet(Operation.reset))
        forget(connection)
    }
    /// All of them are over: the guest's driver has gone.
    func forgetAll() {
        for connection in byID.values { forget(connection) }
        replies = []
        ready = []
        starved = []
    }
    private func reply(_ packet: VsockPacket) {
        // A guest that asks and does not listen loses answers.
        if replies.count < Self.mostReplies { replies.append(packet) }
    }
    private func makeReady(_ connection: VsockConnection) {
        guard !connection.isReady else { return }
        connection.isReady = true
        ready.append(connection)
    }
    func takeNews() -> [() -> Void] {
        defer { news = [] }
        return news
    }
    /// Whether the receiving thread sleeps although there is something for it.
    func takeWake() -> Bool {
        guard isSleeping, !replies.isEmpty || !ready.isEmpty || hasNewDeadline else { return false }
        isSleeping = false
        return true
    }

    // MARK: from the host

    /// Asks the guest for a connection; `fd` is the device's end. Returns the host's port, or nil when there are too many.
    func request(_ port: UInt32, fd: Int32, now: UInt64, _ completion: ((Bool) -> Void)?) -> UInt32? {
        guard byID.count < Self.mostConnections else { return nil }
        repeat { nextPort = nextPort == .max ? 1 << 30 : nextPort + 1 } while connections[VsockKey(host: nextPort, guest: port)] != nil
        let connection = insert(VsockKey(host: nextPort, guest: port), fd: fd, .requested)
        connection.completion = completion
        connection.deadline = now + Self.connectTimeout
        waiting += 1
        reply(connection.packet(Operation.request))
        return nextPort
    }
    /// When the next connection has waited long enough; 0: none waits.
    var deadline: UInt64 {
        let look = starved.isEmpty ? 0 : nextLook
        return waiting == 0 ? look : byID.values.reduce(look) { $1.deadline != 0 && ($0 == 0 || $1.deadline < $0) ? $1.deadline : $0 }
    }
    /// Whether what comes next is the guest's word of room, which the sending thread hears and answers.
    var isStarving: Bool { starved.contains { $0.mayHaveData && $0.credit == 0 } }
    func expire(_ now: UInt64) {
        if waiting > 0 { for connection in byID.values where connection.deadline != 0 && connection.deadline <= now { reset(connection) } }
        if now >= nextLook { askForCredit(now) }
    }
    /// Notes that a connection has to wait for the guest to make room.
    private func starve(_ connection: VsockConnection) {
        guard !connection.isStarved else { return }
        (connection.isStarved, connection.sentBefore) = (true, connection.sent)
        if starved.isEmpty { (nextLook, hasNewDeadline) = (monotonicNanoseconds() + Self.patience, true) }
        starved.append(connection)
    }
    private func askForCredit(_ now: UInt64) {
        starved.removeAll { connection in
            connection.isStarved = byID[connection.id] === connection && connection.mayHaveData && connection.credit == 0
            guard connection.isStarved else { return true }
            defer { connection.sentBefore = connection.sent }
            if connection.sent != connection.sentBefore { return false }
            // Once; the answer makes it ready.
            connection.isStarved = false
            if connection.takeCreditQuestion() { reply(connection.packet(Operation.creditRequest)) }
            return true
        }
        nextLook = now + Self.patience
    }
    /// The application's answer to a connection of the guest's.
    func answer(_ id: UInt64, _ accepts: Bool) {
        guard let connection = byID[id], connection.phase == .offered else { return }
        guard accepts else { return reset(connection) }
        open(connection)
        reply(connection.packet(Operation.response))
    }
    private func open(_ connection: VsockConnection) {
        connection.phase = .open
        watch(connection.fd, connection.id)
        makeReady(connection)
    }

    // MARK: from the guest

    func input(_ packet: VsockPacket, _ payload: GuestPieces) {
        let key = VsockKey(host: packet.targetPort, guest: packet.sourcePort)
        guard packet.isOurs else { return refuse(packet) }
        if packet.operation == Operation.request { return offer(packet, key) }
        guard let connection = connections[key] else { return refuse(packet) }
        connection.note(packet)
        switch packet.operation {
        case Operation.response:
            guard connection.phase == .requested else { return reset(connection) }
            open(connection)
            finish(connection, true)
        case Operation.reset: connection.buffer.count > 0 ? drain(connection) : forget(connection)
        case Operation.shutdown where connection.phase == .open: shutDown(connection, packet.flags)
        case Operation.data where connection.phase == .open:
            guard Int(packet.count) <= payload.total else { return reset(connection) }
            payload.limit(to: Int(packet.count))
            switch connection.take(payload, parts) {
            case .done: watchRoom(connection)
            case .gone, .tooMuch: return reset(connection)
            }
        case Operation.creditUpdate: break
        case Operation.creditRequest: reply(connection.packet(Operation.creditUpdate))
        default: return reset(connection)
        }
        if connection.mustShowCredit { reply(connection.packet(Operation.creditUpdate)) }
        if connection.phase == .open, connection.mayHaveData { makeReady(connection) }
    }
    /// For what belongs to nothing: a reset, but never for a reset.
    private func refuse(_ packet: VsockPacket) {
        guard packet.operation != Operation.reset else { return }
        var answer = VsockPacket(Operation.reset, from: packet.targetPort, to: packet.sourcePort)
        answer.type = packet.type
        answer.sourceContext = packet.targetContext
        answer.targetContext = packet.sourceContext
        reply(answer)
    }
    private func offer(_ packet: VsockPacket, _ key: VsockKey) {
        if let old = connections[key] { return reset(old) }
        guard byID.count < Self.mostConnections else { return refuse(packet) }
        switch host.whoListens(packet.targetPort) {
        case .nobody: refuse(packet)
        case .socket(let path):
            let fd = UnixSocket.connect(path)
            guard fd >= 0 else { return refuse(packet) }
            let connection = insert(key, fd: fd, .offered)
            connection.note(packet)
            answer(connection.id, true)
        case .listener:
            guard let (mine, theirs) = UnixSocket.pair() else { return refuse(packet) }
            let connection = insert(key, fd: mine, .offered)
            connection.note(packet)
            let stream = VsockStream(sourcePort: packet.sourcePort, destinationPort: packet.targetPort, descriptor: theirs)
            let (host, id, answered) = (host, connection.id, answered)
            news.append { host.offer(stream) { answered(id, $0) } }
        }
    }
    private func shutDown(_ connection: VsockConnection, _ flags: UInt32) {
        if flags & VsockPacket.Shutdown.receive != 0 { connection.guestReceivesNoMore = true }
        if flags & VsockPacket.Shutdown.send != 0 { connection.guestSendsNoMore = true }
        let isGone = connection.guestReceivesNoMore && connection.guestSendsNoMore
        // The guest waits for this when it has closed its end.
        if isGone { reply(connection.packet(Operation.reset)) }
        if !connection.flush(parts) { return isGone ? forget(connection) : reset(connection) }
        if isGone { drain(connection) }
    }
    /// The guest has gone: its port is free for another connection, what it sent still goes out.
    private func drain(_ connection: VsockConnection) {
        connections[connection.key] = nil
        connection.phase = .draining
        connection.guestSendsNoMore = true
        if !connection.flush(parts) || connection.buffer.count == 0 { forget(connection) }
    }

    // MARK: to the guest

    enum Output { case done, needsBuffers, nothing }

    /// Fills the guest's buffers as long as there are some and something is to be said; interrupts the guest when there is no more.
    func output(_ receiver: VsockReceiver) throws(QueueError) -> Output {
        let result = try bringAll(receiver)
        if result != .done { receiver.queue.notify() }
        return result
    }
    private func bringAll(_ receiver: VsockReceiver) throws(QueueError) -> Output {
        isSleeping = false
        guard try sendReplies(receiver) else { return .needsBuffers }
        guard !ready.isEmpty else {
            if pollHost() { return .done }
            (isSleeping, hasNewDeadline) = (true, false)
            return .nothing
        }
        return try bringReady(receiver)
    }
    private func bringReady(_ receiver: VsockReceiver) throws(QueueError) -> Output {
        let turn = ready
        ready.removeAll(keepingCapacity: true)
        for (index, connection) in turn.enumerated() {
            connection.isReady = false
            guard byID[connection.id] === connection, connection.phase == .open else { continue }
            guard try bring(connection, receiver) else {
                for waiting in turn[index...] {
                    waiting.isReady = false
                    makeReady(waiting)
                }
                return .needsBuffers
            }
        }
        return .done
    }
    /// Says at once what is to be said, and while the receiving thread sleeps, brings what the guest's packet made room for: the
    /// sending thread need not wake the other for it. What there are no buffers for waits for that one.
    func answer(_ receiver: VsockReceiver) throws(QueueError) {
        defer { receiver.queue.notify() }
        guard try sendReplies(receiver), isSleeping else { return }
        var turns = 0
        while turns < Self.mostTurns, !ready.isEmpty, try bringReady(receiver) == .done { turns += 1 }
    }
    private func sendReplies(_ receiver: VsockReceiver) throws(QueueError) -> Bool {
        var done = 0
        while done < replies.count {
            guard try receiver.send(replies[done]) else {
                replies.removeFirst(done)
                return false
            }
            done += 1
        }
        replies.removeAll(keepingCapacity: true)
        return true
    }
    /// Data from the socket, as much as the guest's credit and its buffers allow: one system call for many packets. False when
    /// there are no buffers.
    private func bring(_ connection: VsockConnection, _ receiver: VsockReceiver) throws(QueueError) -> Bool {
        guard connection.mayHaveData else { return true }
        let credit = connection.credit
        guard credit > 0 else {
            starve(connection)
            if connection.fillStock(parts) { makeReady(connection) }
            return true
        }
        guard let pieces = try receiver.room(for: credit) else { return false }
        let count = connection.read(pieces, parts)
        if count > 0 {
            receiver.send(count) { connection.packet(Operation.data) }
            connection.sent &+= UInt32(truncatingIfNeeded: count)
            // A guest that has slept wakes while the next packets are read.
            receiver.queue.notify()
            if connection.credit == 0 { starve(connection) }
            makeReady(connection)
        } else if count == 0 {
            end(connection)
        } else if errno == EINTR {
            makeReady(connection)
        } else {
            connection.isReadable = false
            if errno == EAGAIN { connection.releaseStock() } else { reset(connection) }
        }
        return true
    }
    /// The host's side sends no more; when it has closed, it takes nothing either.
    private func end(_ connection: VsockConnection) {
        connection.hostEnded = true
        var packet = connection.packet(Operation.shutdown)
        packet.flags = VsockPacket.Shutdown.send | (connection.hasHungUp ? VsockPacket.Shutdown.receive : 0)
        reply(packet)
    }

    /// Takes what the sockets have; false when there is nothing.
    private func pollHost() -> Bool {
        withUnsafeTemporaryAllocation(of: epoll_event.self, capacity: 64) { events in
            let count = Int(epoll_wait(epoll, events.baseAddress, 64, 0))
            guard count > 0 else { return false }
            for event in events[..<count] { if let connection = byID[event.data.u64] { happened(connection, event.events) } }
            return true
        }
    }
    private func happened(_ connection: VsockConnection, _ events: UInt32) {
        if events & (EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 {
            // Closed for good after it had ended: the guest's data would go nowhere.
            if connection.hostEnded, !connection.hasHungUp {
                connection.hasHungUp = true
                end(connection)
            }
            connection.hasHungUp = true
        }
        if events & (EPOLLIN.rawValue | EPOLLRDHUP.rawValue | EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 { connection.isReadable = true }
        if events & EPOLLOUT.rawValue != 0 {
            connection.isWritable = true
            guard connection.flush(parts) else { return connection.phase == .draining ? forget(connection) : reset(connection) }
            if connection.phase == .draining, connection.buffer.count == 0 { return forget(connection) }
            watchRoom(connection)
            if connection.mustShowCredit { reply(connection.packet(Operation.creditUpdate)) }
        }
        makeReady(connection)
    }
}
