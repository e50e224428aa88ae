import Glibc
import LinuxSystem

/// One connection's worth of requests. Survives connections: what was not answered is asked again on the next.
///
/// Data goes straight between the socket and the guest's memory, but for what comes along with a reply's header.
final class NBDChannel: BlockChannel {
    /// An operation under way; its requests go out one after the other, each at most as large as the server takes.
    private struct Slot {
        var kind = DiskOperation.Kind.flush
        var isActive = false
        var offset: UInt64 = 0
        var count = 0
        var vectors: [iovec] = []
        /// Bytes of the operation that are done, and bytes of the request that is out.
        var done = 0
        var length = 0
        /// Tells a request's reply from an earlier one's.
        var generation: UInt32 = 0
        /// Bytes of the request that replies have brought, and what went wrong.
        var received = 0
        var error: Int32 = 0
        /// Milliseconds.
        var since: UInt64 = 0
        var isSent = false
    }
    private enum Link {
        case up(NBDConnection)
        /// Down since then; to be tried again at a time.
        case down(since: UInt64, next: UInt64, why: NBDError?)
        case dead
    }
    private let disk: NBDDisk
    private let stop: Int32
    private var slots: [Slot]
    private var link: Link
    private var activeCount = 0
    private var ended: [(tag: Int, result: Int32)] = []
    /// Slots with a request to send, oldest first.
    private var outbox: [Int] = []
    private var outboxHead = 0
    /// When the trouble began that no answer has ended yet, in milliseconds; 0 for none.
    private var troubledSince: UInt64 = 0
    private var nextCheck: UInt64 = 0
    private let sender: NBDSender
    private let receiver: NBDReceiver

    init(_ disk: NBDDisk, capacity: Int, stop: Int32) {
        self.disk = disk
        self.stop = stop
        slots = [Slot](repeating: Slot(), count: capacity)
        sender = NBDSender()
        receiver = NBDReceiver()
        link = .down(since: NBDConnection.now(), next: 0, why: nil)
        outbox.reserveCapacity(capacity)
        ended.reserveCapacity(capacity)
    }

    var wait: (descriptor: Int32, events: Int16, milliseconds: Int32) {
        let now = NBDConnection.now()
        switch link {
        case .dead: return (-1, 0, -1)
        case .down(_, let next, _): return (-1, 0, activeCount == 0 && next == 0 ? -1 : Int32(clamping: max(1, Int64(next) - Int64(now))))
        case .up(let connection):
            let events = POLLIN | (sender.isIdle ? 0 : POLLOUT)
            // An answer that never comes is noticed, if anybody waits for one.
            return (connection.descriptor, Int16(events), activeCount == 0 ? -1 : 1000)
        }
    }

    func submit(_ operation: DiskOperation, _ vectors: UnsafeMutablePointer<iovec>, _ count: Int, tag: Int) {
        slots[tag].kind = operation.kind
        slots[tag].isActive = true
        slots[tag].offset = operation.offset
        slots[tag].count = operation.count
        slots[tag].vectors.removeAll(keepingCapacity: true)
        slots[tag].vectors.append(contentsOf: UnsafeBufferPointer(start: vectors, count: count))
        slots[tag].done = 0
        activeCount += 1
        if case .dead = link { return end(tag, EIO) }
        queue(tag)
    }
    /// What the server does not offer and need not do.
    private func isNeedless(_ slot: Slot, _ export: NBDConnection.Export) -> Bool {
        switch slot.kind {
        case .flush: !disk.options.flushes || !export.flags.contains(.flush)
        case .discard: !export.flags.contains(.trim) || slot.count == 0
        default: slot.count == 0
        }
    }
    private func queue(_ tag: Int) {
        slots[tag].isSent = false
        slots[tag].since = NBDConnection.now()
        outbox.append(tag)
    }
    private func end(_ tag: Int, _ result: Int32) {
        slots[tag].isActive = false
        activeCount -= 1
        ended.append((tag, result))
    }

    func advance(_ tell: (_ tag: Int, _ result: Int32) -> Void) {
        work()
        for (tag, result) in ended { tell(tag, result) }
        ended.removeAll(keepingCapacity: true)
    }
    private func work() {
        reconnectIfDue()
        guard case .up(let connection) = link else { return }
        do throws(NBDError) {
            try send(connection)
            try receiver.receive(connection.descriptor, structured: connection.export.hasStructuredReplies) { (event) throws(NBDError) in try self.heard(event) }
            try send(connection)
            try checkPatience()
        } catch {
            error.isPassing ? lose(error) : die(error)
        }
    }
    func close() {
        if case .up(let connection) = link, activeCount == 0 { sender.sayGoodbye(connection.descriptor) }
        link = .dead
        for tag in slots.indices { slots[tag].isActive = false }
        activeCount = 0
        ended = []
    }

    // MARK: the connection

    private func reconnectIfDue() {
        guard case .down(let since, let next, let why) = link else { return }
        let now = NBDConnection.now()
        guard now >= next, next != 0 || activeCount > 0 || why == nil else { return }
        if let failure = disk.failure { return die(failure) }
        if let why, now - since >= UInt64(disk.options.timeout) { return die(why) }
        do throws(NBDError) {
            // A server that is there answers soon.
            let connection = try disk.takeConnection(milliseconds: min(5000, disk.options.timeout), stop: stop)
            link = .up(connection)
            sender.reset()
            receiver.reset()
            outbox.removeAll(keepingCapacity: true)
            outboxHead = 0
            for tag in slots.indices where slots[tag].isActive { queue(tag) }
        } catch {
            guard error.isPassing, now - since < UInt64(disk.options.timeout) else { return die(error) }
            link = .down(since: since, next: now + min(1000, 50 + (now - since) / 4), why: error)
        }
    }
    private func lose(_ error: NBDError) {
        let now = NBDConnection.now()
        // A server that takes connections and answers nothing is no better than one that is away.
        if troubledSince == 0 { troubledSince = now }
        let waited = now - troubledSince
        link = .down(since: troubledSince, next: now + min(1000, waited / 4), why: error)
    }
    private func die(_ error: NBDError) {
        link = .dead
        disk.fail(error)
        for tag in slots.indices where slots[tag].isActive { end(tag, EIO) }
    }
    /// A server that takes too long for an answer is left, and asked again on a new connection.
    private func checkPatience() throws(NBDError) {
        let now = NBDConnection.now()
        // A look at every slot: once a second is enough.
        guard activeCount > 0, now >= nextCheck else { return }
        nextCheck = now + 1000
        let limit = UInt64(disk.options.timeout)
        for slot in slots where slot.isActive && slot.isSent && now > slot.since + limit {
            throw NBDError("\(disk.address) has not answered for \(limit / 1000) s", isPassing: true)
        }
    }

    // MARK: sending

    private func send(_ connection: NBDConnection) throws(NBDError) {
        while true {
            guard try sender.flush(connection.descriptor) else { return }
            guard outboxHead < outbox.count else {
                outbox.removeAll(keepingCapacity: true)
                outboxHead = 0
                return
            }
            while outboxHead < outbox.count, sender.hasRoom {
                stage(outbox[outboxHead], connection.export)
                outboxHead += 1
            }
        }
    }
    private func stage(_ tag: Int, _ export: NBDConnection.Export) {
        if isNeedless(slots[tag], export) { return end(tag, 0) }
        slots[tag].generation &+= 1
        slots[tag].received = 0
        slots[tag].error = 0
        slots[tag].isSent = true
        let left = slots[tag].count - slots[tag].done
        let limit = min(Int(export.maximumBlock), NBD.defaultPayload)
        var command: UInt16 = 0
        var flags: UInt16 = 0
        // Where nothing flushes, each write goes through.
        let force = disk.options.flushes && !export.flags.contains(.flush) && export.flags.contains(.forceUnitAccess) ? NBD.Command.forceUnitAccess : 0
        var zeroes = 0
        switch slots[tag].kind {
        case .read: (command, slots[tag].length) = (NBD.Command.read, min(left, limit))
        case .write: (command, flags, slots[tag].length) = (NBD.Command.write, force, min(left, limit))
        case .flush: (command, slots[tag].length) = (NBD.Command.flush, 0)
        case .discard: (command, slots[tag].length) = (NBD.Command.trim, min(left, 1 << 30))
        case .writeZeroes(let mayUnmap) where export.flags.contains(.writeZeroes):
            (command, flags, slots[tag].length) = (NBD.Command.writeZeroes, force | (mayUnmap ? 0 : NBD.Command.noHole), min(left, 1 << 30))
        case .writeZeroes:
            zeroes = min(left, limit, NBDSender.zeroCount)
            (command, flags, slots[tag].length) = (NBD.Command.write, force, zeroes)
        }
        let slot = slots[tag]
        sender.add(
            command: command, flags: flags, handle: UInt64(slot.generation) << 32 | UInt64(tag),
            offset: command == NBD.Command.flush ? 0 : slot.offset + UInt64(slot.done), length: UInt32(slot.length))
        if slot.kind == .write { sender.add(slot.vectors, from: slot.done, count: slot.length) } else if zeroes > 0 { sender.addZeroes(zeroes) }
    }

    // MARK: receiving

    private func violation() -> NBDError { NBDError("\(disk.address) answers against the protocol") }
    private func tag(_ handle: UInt64) throws(NBDError) -> Int {
        let tag = Int(handle & 0xFFFF_FFFF)
        guard tag < slots.count, slots[tag].isActive, slots[tag].isSent, slots[tag].generation == UInt32(handle >> 32) else { throw violation() }
        return tag
    }
    /// Returns where bytes that follow are to go.
    private func heard(_ event: NBDReceiver.Event) throws(NBDError) -> NBDReceiver.Room {
        switch event {
        case .simple(let handle, let error):
            let tag = try tag(handle)
            if slots[tag].kind == .read, error == 0 {
                return NBDReceiver.Room(vectors: slots[tag].vectors, skip: slots[tag].done, count: slots[tag].length, handle: handle, endsRequest: true)
            }
            slots[tag].error = error == 0 ? 0 : NBD.errno(error)
            finish(tag)
        case .data(let handle, let offset, let count, let isLast):
            let tag = try tag(handle)
            let start = try place(tag, offset, count)
            return NBDReceiver.Room(vectors: slots[tag].vectors, skip: start, count: count, handle: handle, endsRequest: isLast)
        case .hole(let handle, let offset, let count):
            let tag = try tag(handle)
            let start = try place(tag, offset, count)
            slots[tag].vectors.withUnsafeBufferPointer { vectors in
                if let base = vectors.baseAddress { MemoryPieces(pieces: base, count: vectors.count).clear(from: start, count: count) }
            }
            slots[tag].received += count
        case .failed(let handle, let error):
            let tag = try tag(handle)
            slots[tag].error = NBD.errno(error)
        case .arrived(let handle, let count):
            let tag = try tag(handle)
            slots[tag].received += count
        case .ended(let handle):
            let tag = try tag(handle)
            if slots[tag].kind == .read, slots[tag].error == 0, slots[tag].received != slots[tag].length { throw violation() }
            finish(tag)
        }
        return NBDReceiver.Room()
    }
    /// Where in the operation's bytes a stretch of the disk lies that the server sends.
    private func place(_ tag: Int, _ offset: UInt64, _ count: Int) throws(NBDError) -> Int {
        let slot = slots[tag]
        let start = slot.offset + UInt64(slot.done)
        guard slot.kind == .read, offset >= start, offset - start <= UInt64(slot.length), count <= slot.length - Int(offset - start),
            count <= slot.length - slot.received
        else { throw violation() }
        return slot.done + Int(offset - start)
    }
    /// A request is answered: the next of the operation, or its end.
    private func finish(_ tag: Int) {
        troubledSince = 0
        slots[tag].isSent = false
        slots[tag].done += slots[tag].length
        if slots[tag].error != 0 { return end(tag, slots[tag].error) }
        if slots[tag].done < slots[tag].count, slots[tag].kind != .flush { queue(tag) } else { end(tag, 0) }
    }
}
