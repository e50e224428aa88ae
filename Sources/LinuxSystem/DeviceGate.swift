import Glibc
import Synchronization

/// Where a machine's device threads wait while its state is looked at: closed, nobody is behind it.
package final class DeviceGate: Sendable {
    private struct State {
        var isClosed = false
        var members: [UInt64: Member] = [:]
        var next: UInt64 = 0
        var parked: Set<UInt64> = []
    }
    private let state = Mutex(State())
    private let closed = Atomic<Bool>(false)
    private let arrived: EventFD

    package init() throws(SystemError) { arrived = try EventFD() }

    /// One thread that passes the gate, between pieces of work, with `checkpoint`.
    package final class Member: Sendable {
        private let gate: DeviceGate
        fileprivate let number: UInt64
        /// Makes the thread come to its checkpoint.
        fileprivate let wake: EventFD
        fileprivate let opened: EventFD
        fileprivate init(_ gate: DeviceGate, _ number: UInt64, _ wake: EventFD) throws(SystemError) {
            self.gate = gate
            self.number = number
            self.wake = wake
            opened = try EventFD()
        }
        /// Waits while the gate is closed.
        @inline(__always) package func checkpoint() { if gate.closed.load(ordering: .acquiring) { gate.park(self) } }
        package var isClosed: Bool { gate.closed.load(ordering: .acquiring) }
        fileprivate func leave() { gate.leave(self) }
    }

    /// Makes a thread that passes the gate.
    /// - Parameter wake: signalled when the gate closes; the thread then comes to its checkpoint soon.
    package func thread(name: String, wake: EventFD, _ body: @escaping @Sendable (Member) -> Void) throws(SystemError) -> HostThread {
        let member = try join(wake: wake)
        do throws(SystemError) {
            return try HostThread(name: name) {
                body(member)
                member.leave()
            }
        } catch {
            member.leave()
            throw error
        }
    }
    private func join(wake: EventFD) throws(SystemError) -> Member {
        let number = state.withLock { state in
            state.next += 1
            return state.next
        }
        let member = try Member(self, number, wake)
        state.withLock { $0.members[number] = member }
        return member
    }
    private func leave(_ member: Member) {
        state.withLock { state in
            state.members[member.number] = nil
            state.parked.remove(member.number)
        }
        arrived.signal()
    }
    private func park(_ member: Member) {
        while state.withLock({ state in
            if state.isClosed { state.parked.insert(member.number) }
            return state.isClosed
        }) {
            arrived.signal()
            member.opened.wait()
        }
    }

    /// Returns when every thread waits at the gate; false, with the gate open again, when one has not come in time.
    package func close(milliseconds: Int) -> Bool {
        let members = state.withLock { state in
            state.isClosed = true
            return state.members.values
        }
        closed.store(true, ordering: .releasing)
        for member in members { member.wake.signal() }
        for _ in 0..<max(1, milliseconds / 10) {
            if state.withLock({ $0.parked.count >= $0.members.count }) { return true }
            var entry = pollfd(fd: arrived.fileDescriptor, events: Int16(POLLIN), revents: 0)
            _ = poll(&entry, 1, 10)
            arrived.drain()
        }
        open()
        return false
    }
    package func open() {
        closed.store(false, ordering: .releasing)
        let members = state.withLock { state in
            state.isClosed = false
            defer { state.parked = [] }
            return state.members.values.filter { state.parked.contains($0.number) }
        }
        for member in members { member.opened.signal() }
    }
}
