import Hypervisor
import Synchronization

/// Where the messages of an MSI-X table go.
package struct MSIXSink: Sendable {
    package var send: @Sendable (MSIMessage) -> Void = { _ in }
    package var makeRoute: @Sendable () -> (any MessageRoute)? = { nil }
    package init() {}
    /// Messages for `machine`, which the sink does not keep alive.
    package init(_ machine: any HypervisorMachine) {
        send = { [weak machine] in machine?.signal($0) }
        makeRoute = { [weak machine] in machine?.makeMessageRoute() }
    }
}

/// An MSI-X table with its pending bits. PCI Local Bus 3.0 § 6.8.2. Any thread.
package final class MSIX: Sendable {
    private struct Entry {
        var address: UInt64 = 0
        var data: UInt32 = 0
        var control: UInt32 = 1
        var pending = false
        /// The engine's way for this vector, and what it raises now.
        var route: (any MessageRoute)?
        var routed: MSIMessage?
    }
    private struct State {
        var entries: [Entry]
        var enabled = false
        var masked = false
    }
    private let state: Mutex<State>
    private let sink: MSIXSink
    package let count: Int

    init(count: Int, sink: MSIXSink) {
        self.count = count
        self.sink = sink
        state = Mutex(State(entries: Array(repeating: Entry(), count: count)))
    }

    /// Raises a vector, or remembers it while it is masked. Vectors beyond the table are nobody's.
    package func signal(_ vector: UInt16) {
        let message: MSIMessage? = state.withLock { state in
            let index = Int(vector)
            guard index < state.entries.count, state.enabled else { return nil }
            if state.masked || state.entries[index].control & 1 != 0 {
                state.entries[index].pending = true
                return nil
            }
            let message = MSIMessage(address: state.entries[index].address, data: state.entries[index].data)
            if let route = route(&state.entries[index], message) {
                route.signal()
                return nil
            }
            return message
        }
        if let message { sink.send(message) }
    }
    /// The vector's route, set to `message`; nil when the engine has none for it.
    private func route(_ entry: inout Entry, _ message: MSIMessage) -> (any MessageRoute)? {
        if entry.routed == message { return entry.route }
        if entry.routed == nil { entry.route = sink.makeRoute() }
        entry.routed = message
        if entry.route?.set(message) == false { entry.route = nil }
        return entry.route
    }

    func setControl(enabled: Bool, masked: Bool) {
        let due = state.withLock { state -> [MSIMessage] in
            state.enabled = enabled
            state.masked = masked
            return Self.takeUnmasked(&state)
        }
        for message in due { sink.send(message) }
    }
    private static func takeUnmasked(_ state: inout State) -> [MSIMessage] {
        guard state.enabled, !state.masked else { return [] }
        var due: [MSIMessage] = []
        for index in state.entries.indices where state.entries[index].pending && state.entries[index].control & 1 == 0 {
            state.entries[index].pending = false
            due.append(MSIMessage(address: state.entries[index].address, data: state.entries[index].data))
        }
        return due
    }

    package func tableRead(_ offset: Int, size: Int) -> UInt64 {
        if size == 8 { return word(offset) | word(offset + 4) << 32 }
        let shift = UInt64(offset & 3) * 8
        return word(offset & ~3) >> shift
    }
    private func word(_ offset: Int) -> UInt64 {
        state.withLock { state in
            let index = offset / 16
            guard index < state.entries.count else { return 0 }
            let entry = state.entries[index]
            switch offset % 16 {
            case 0: return entry.address & 0xFFFF_FFFF
            case 4: return entry.address >> 32
            case 8: return UInt64(entry.data)
            default: return UInt64(entry.control)
            }
        }
    }
    package func tableWrite(_ offset: Int, _ value: UInt64, size: Int) {
        guard offset % 4 == 0, size >= 4 else { return }
        setWord(offset, UInt32(truncatingIfNeeded: value))
        if size == 8 { setWord(offset + 4, UInt32(truncatingIfNeeded: value >> 32)) }
    }
    private func setWord(_ offset: Int, _ value: UInt32) {
        let due = state.withLock { state -> [MSIMessage] in
            let index = offset / 16
            guard index < state.entries.count else { return [] }
            switch offset % 16 {
            case 0: state.entries[index].address = state.entries[index].address & ~0xFFFF_FFFF | UInt64(value & ~3)
            case 4: state.entries[index].address = state.entries[index].address & 0xFFFF_FFFF | UInt64(value) << 32
            case 8: state.entries[index].data = value
            default: state.entries[index].control = value & 1
            }
            return Self.takeUnmasked(&state)
        }
        for message in due { sink.send(message) }
    }
    package func pendingRead(_ offset: Int) -> UInt64 {
        state.withLock { state in
            var bits: UInt64 = 0
            for index in 0..<64 where offset * 8 + index < state.entries.count && state.entries[offset * 8 + index].pending {
                bits |= 1 << UInt64(index)
            }
            return bits
        }
    }

    // MARK: images

    /// The table, word by word, and which vectors are pending.
    package struct Image: Equatable, Sendable, Codable {
        package var table: [UInt64]
        package var pending: [Bool]
    }
    package var image: Image {
        let words = (0..<count * 2).map { tableRead($0 * 8, size: 8) }
        return Image(table: words, pending: state.withLock { $0.entries.map(\.pending) })
    }
    /// Before the guest runs, and before `setControl`.
    package func restore(_ image: Image) {
        for (index, word) in image.table.prefix(count * 2).enumerated() { tableWrite(index * 8, word, size: 8) }
        state.withLock { state in
            for (index, pending) in image.pending.prefix(state.entries.count).enumerated() { state.entries[index].pending = pending }
        }
    }
}
