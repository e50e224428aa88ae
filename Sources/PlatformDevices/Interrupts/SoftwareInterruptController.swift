import Hypervisor
import LinuxSystem
import Synchronization
import Glibc

/// Local APICs and an I/O APIC in software, with the thread that fires their timers. Any thread.
///
/// Times are nanoseconds of CLOCK_MONOTONIC, which is also the clock of the timers (1 GHz, as in KVM); TSC deadlines are
/// translated by the guest's clock.
package final class SoftwareInterruptController: InterruptController, @unchecked Sendable {  // state is under one lock
    struct State {
        var local: [LocalAPICState]
        var io = IOAPICState()
        var notify: [(@Sendable (InterruptEvent) -> Void)?]
        var stopped = false
        /// When the timer thread wakes: not behind the first deadline.
        var alarm: UInt64 = .max
    }
    let state: Mutex<State>
    private static let shortestPeriod: UInt64 = 50_000
    private let clock: GuestClock
    private let timer: TimerFD
    private let timerWake: EventFD
    private var timerThread: HostThread?

    package init(cpuCount: Int, clock: GuestClock) throws(SystemError) {
        self.clock = clock
        state = Mutex(State(local: (0..<cpuCount).map { LocalAPICState(id: UInt32($0)) }, notify: Array(repeating: nil, count: cpuCount)))
        timer = try TimerFD()
        timerWake = try EventFD()
        timerThread = try HostThread(name: "vz-timer") { [unowned self] in runTimers() }
    }
    package func stop() {
        state.withLock {
            $0.stopped = true
            $0.notify = $0.notify.map { _ in nil }
        }
        timerWake.signal()
        timerThread?.join()
    }

    private var now: UInt64 { monotonicNanoseconds() }

    package func connect(_ cpu: Int, _ notify: @escaping @Sendable (InterruptEvent) -> Void) {
        state.withLock { $0.notify[cpu] = notify }
    }

    /// Runs `body` under the lock, then makes the calls it collected outside of it.
    private func update<R: Sendable>(_ body: (inout State, inout Calls) -> R) -> R {
        var calls = Calls()
        let result = state.withLock { state -> R in
            let result = body(&state, &calls)
            // One that comes later than it did costs nothing now: the thread looks when it wakes.
            let first = Self.firstDeadline(state)
            if first < state.alarm { setAlarm(&state, first) }
            return result
        }
        if !calls.isEmpty { make(calls) }
        return result
    }
    private static func firstDeadline(_ state: State) -> UInt64 {
        var first = UInt64.max
        for cpu in state.local.indices { first = min(first, state.local[cpu].deadline ?? .max) }
        return first
    }
    /// Under the lock, so that the alarm is what was set last.
    private func setAlarm(_ state: inout State, _ time: UInt64) {
        state.alarm = time
        timer.set(time)
    }
    private func make(_ calls: Calls) {
        forEach(calls.initialize) { $0(.initialize) }
        forEach(calls.startup) { $0(.startup(page: calls.page)) }
        forEach(calls.interrupt) { $0(.interrupt) }
    }
    private func forEach(_ processors: UInt64, _ body: (@Sendable (InterruptEvent) -> Void) -> Void) {
        var left = processors
        while left != 0 {
            let cpu = left.trailingZeroBitCount
            left &= left - 1
            if let notify = state.withLock({ $0.notify[cpu] }) { body(notify) }
        }
    }
    /// Who has to be told of what when the lock is released, a bit a processor: no allocation for a message.
    private struct Calls {
        var interrupt: UInt64 = 0
        var initialize: UInt64 = 0
        var startup: UInt64 = 0
        var page: UInt8 = 0
        var isEmpty: Bool { interrupt | initialize | startup == 0 }
    }

    // MARK: delivery to processors

    package func acknowledge(_ cpu: Int) -> UInt8? {
        state.withLock { state in
            guard let vector = state.local[cpu].deliverable else { return nil }
            state.local[cpu].requested[vector] = false
            state.local[cpu].inService[vector] = true
            return vector
        }
    }
    package func hasDeliverable(_ cpu: Int) -> Bool { state.withLock { $0.local[cpu].deliverable != nil } }
    package func taskPriority(_ cpu: Int) -> UInt64 { state.withLock { UInt64($0.local[cpu].taskPriority >> 4) } }
    package func setTaskPriority(_ cpu: Int, _ value: UInt64) {
        update { state, calls in
            state.local[cpu].taskPriority = UInt32(value & 15) << 4
            Self.poke(&state, cpu, &calls)
        }
    }

    private static func poke(_ state: inout State, _ cpu: Int, _ calls: inout Calls) {
        if state.local[cpu].deliverable != nil { calls.interrupt |= 1 << UInt64(cpu) }
    }
    private static func request(_ state: inout State, _ cpu: Int, _ vector: UInt8, level: Bool, _ calls: inout Calls) {
        guard vector >= 16 else { return }
        state.local[cpu].requested[vector] = true
        state.local[cpu].levelTriggered[vector] = level
        poke(&state, cpu, &calls)
    }

    /// Delivery by destination and mode. SDM vol. 3 § 10.6.
    private static func deliver(
        _ state: inout State, destination: UInt32, logical: Bool, mode: UInt32, vector: UInt8, level: Bool, from source: Int?,
        _ calls: inout Calls
    ) {
        for cpu in state.local.indices where matches(state.local[cpu], destination, logical: logical) {
            send(&state, cpu, mode: mode, vector: vector, level: level, &calls)
            if mode == 1 { return }  // lowest priority: any one will do
        }
    }
    private static func send(_ state: inout State, _ cpu: Int, mode: UInt32, vector: UInt8, level: Bool, _ calls: inout Calls) {
        switch mode {
        case 0, 1: request(&state, cpu, vector, level: level, &calls)
        case 5: calls.initialize |= 1 << UInt64(cpu)
        case 6:
            calls.startup |= 1 << UInt64(cpu)
            calls.page = vector
        default: break  // SMI and NMI: nobody here raises them
        }
    }
    private static func matches(_ local: LocalAPICState, _ destination: UInt32, logical: Bool) -> Bool {
        if local.x2 {
            if destination == .max || destination == 0xFF { return true }
            if !logical { return local.id == destination }
            let mine = (local.id >> 4) << 16 | 1 << (local.id & 15)
            return mine >> 16 == destination >> 16 && mine & destination & 0xFFFF != 0
        }
        if destination & 0xFF == 0xFF { return true }
        if !logical { return local.id == destination & 0xFF }
        let mine = local.logicalDestination >> 24
        if local.destinationFormat >> 28 == 0 { return mine >> 4 == destination >> 4 & 15 && mine & destination & 15 != 0 }
        return mine & destination & 0xFF != 0
    }

    package func signal(_ message: MSIMessage) {
        guard message.address >> 20 == 0xFEE else { return }
        update { state, calls in
            Self.deliver(
                &state, destination: UInt32(message.address >> 12 & 0xFF), logical: message.address & 4 != 0,
                mode: message.data >> 8 & 7, vector: UInt8(truncatingIfNeeded: message.data), level: message.data & 0x8000 != 0,
                from: nil, &calls)
        }
    }

    // MARK: registers

    package func memoryRead(_ cpu: Int, _ address: UInt64) -> UInt32? {
        if address & ~0xFFF == 0xFEE0_0000 {
            return state.withLock { state in
                guard state.local[cpu].enabled, !state.local[cpu].x2 else { return .max }
                return read(state.local[cpu], UInt32(address & 0xFF0))
            }
        }
        if address & ~0xFFF == 0xFEC0_0000 { return state.withLock { $0.io.read(UInt32(address & 0xFF)) } }
        return nil
    }
    package func memoryWrite(_ cpu: Int, _ address: UInt64, _ value: UInt32) -> Bool {
        if address & ~0xFFF == 0xFEE0_0000 {
            update { state, calls in
                guard state.local[cpu].enabled, !state.local[cpu].x2 else { return }
                write(&state, cpu, UInt32(address & 0xFF0), UInt64(value), &calls)
            }
            return true
        }
        if address & ~0xFFF == 0xFEC0_0000 {
            update { state, calls in
                if state.io.write(UInt32(address & 0xFF), value) { Self.raiseAsserted(&state, &calls) }
            }
            return true
        }
        return false
    }
    package func readMSR(_ cpu: Int, _ index: UInt32) -> UInt64? {
        state.withLock { state in
            let local = state.local[cpu]
            switch index {
            case 0x1B:
                return 0xFEE0_0000 | (local.enabled ? 1 << 11 : 0) | (local.x2 ? 1 << 10 : 0) | (cpu == 0 ? 1 << 8 : 0)
            case 0x6E0: return local.tscDeadline
            case 0x802: return local.x2 ? UInt64(local.id) : nil
            case 0x80D: return local.x2 ? UInt64((local.id >> 4) << 16 | 1 << (local.id & 15)) : nil
            case 0x830: return local.x2 ? local.interruptCommand : nil
            case 0x800...0x8FF: return local.x2 ? UInt64(read(local, (index - 0x800) << 4)) : nil
            default: return nil
            }
        }
    }
    package func writeMSR(_ cpu: Int, _ index: UInt32, _ value: UInt64) -> Bool {
        update { state, calls in
            switch index {
            case 0x1B:
                let enable = value & 1 << 11 != 0
                let x2 = value & 1 << 10 != 0
                if x2, !enable { return false }
                state.local[cpu].enabled = enable
                state.local[cpu].x2 = x2
                return true
            case 0x6E0:
                guard state.local[cpu].timerMode == 2 else { return true }
                state.local[cpu].tscDeadline = value
                state.local[cpu].deadline = value == 0 ? nil : clock.timeStamp.nanoseconds(when: value)
                return true
            case 0x830 where state.local[cpu].x2:
                state.local[cpu].interruptCommand = value
                command(&state, cpu, destination: UInt32(value >> 32), value, &calls)
                return true
            case 0x83F where state.local[cpu].x2:
                Self.request(&state, cpu, UInt8(truncatingIfNeeded: value), level: false, &calls)
                return true
            case 0x800...0x8FF:
                guard state.local[cpu].x2 else { return false }
                write(&state, cpu, (index - 0x800) << 4, value, &calls)
                return true
            default: return false
            }
        }
    }

    private func read(_ local: LocalAPICState, _ offset: UInt32) -> UInt32 {
        switch offset {
        case 0x100...0x170: return local.inService.register(Int(offset - 0x100) >> 4)
        case 0x180...0x1F0: return local.levelTriggered.register(Int(offset - 0x180) >> 4)
        case 0x200...0x270: return local.requested.register(Int(offset - 0x200) >> 4)
        default: break
        }
        switch LocalAPICRegister(rawValue: offset) {
        case .id: return local.x2 ? local.id : local.id << 24
        case .version: return 0x0005_0014
        case .taskPriority: return local.taskPriority
        case .processorPriority: return local.processorPriority
        case .logicalDestination: return local.logicalDestination
        case .destinationFormat: return local.destinationFormat
        case .spuriousVector: return local.spuriousVector
        case .errorStatus: return local.errorStatus
        case .interruptCommandLow: return UInt32(truncatingIfNeeded: local.interruptCommand)
        case .interruptCommandHigh: return UInt32(truncatingIfNeeded: local.interruptCommand >> 32)
        case .lvtTimer: return local.lvtTimer
        case .lvtThermal: return local.lvtThermal
        case .lvtPerformance: return local.lvtPerformance
        case .lvtLINT0: return local.lvtLINT0
        case .lvtLINT1: return local.lvtLINT1
        case .lvtError: return local.lvtError
        case .initialCount: return local.initialCount
        case .currentCount:
            guard let deadline = local.deadline, local.timerMode < 2, deadline > now else { return 0 }
            return UInt32(truncatingIfNeeded: (deadline - now) / local.divisor)
        case .divideConfiguration: return local.divide
        default: return 0
        }
    }

    private func write(_ state: inout State, _ cpu: Int, _ offset: UInt32, _ wide: UInt64, _ calls: inout Calls) {
        let value = UInt32(truncatingIfNeeded: wide)
        switch LocalAPICRegister(rawValue: offset) {
        case .taskPriority:
            state.local[cpu].taskPriority = value & 0xFF
            Self.poke(&state, cpu, &calls)
        case .endOfInterrupt: endOfInterrupt(&state, cpu, &calls)
        case .logicalDestination: state.local[cpu].logicalDestination = value & 0xFF00_0000
        case .destinationFormat: state.local[cpu].destinationFormat = value | 0x0FFF_FFFF
        case .spuriousVector:
            state.local[cpu].spuriousVector = value & 0x1FF
            Self.poke(&state, cpu, &calls)
        case .errorStatus: state.local[cpu].errorStatus = 0
        case .interruptCommandLow:
            state.local[cpu].interruptCommand = state.local[cpu].interruptCommand & ~0xFFFF_FFFF | wide & 0xFFFF_FFFF
            command(&state, cpu, destination: UInt32(state.local[cpu].interruptCommand >> 56), wide, &calls)
        case .interruptCommandHigh:
            state.local[cpu].interruptCommand = state.local[cpu].interruptCommand & 0xFFFF_FFFF | UInt64(value) << 32
        case .lvtTimer:
            let oldMode = state.local[cpu].timerMode
            state.local[cpu].lvtTimer = value & 0x7_10FF
            if oldMode != state.local[cpu].timerMode {
                state.local[cpu].deadline = nil
                state.local[cpu].tscDeadline = 0
            }
        case .lvtThermal: state.local[cpu].lvtThermal = value & 0x1_17FF
        case .lvtPerformance: state.local[cpu].lvtPerformance = value & 0x1_17FF
        case .lvtLINT0: state.local[cpu].lvtLINT0 = value & 0x1_F7FF
        case .lvtLINT1: state.local[cpu].lvtLINT1 = value & 0x1_F7FF
        case .lvtError: state.local[cpu].lvtError = value & 0x1_10FF
        case .initialCount:
            state.local[cpu].initialCount = value
            guard state.local[cpu].timerMode < 2 else { break }
            state.local[cpu].timerStart = now
            state.local[cpu].deadline = value == 0 ? nil : now &+ UInt64(value) * state.local[cpu].divisor
        case .divideConfiguration: state.local[cpu].divide = value & 0xB
        default: break
        }
    }

    private func endOfInterrupt(_ state: inout State, _ cpu: Int, _ calls: inout Calls) {
        guard let vector = state.local[cpu].inService.highest else { return }
        state.local[cpu].inService[vector] = false
        if state.local[cpu].levelTriggered[vector] {
            state.io.endOfInterrupt(vector)
            Self.raiseAsserted(&state, &calls)
        }
        Self.poke(&state, cpu, &calls)
    }

    /// The interrupt command register. SDM vol. 3 § 10.6.1.
    private func command(_ state: inout State, _ cpu: Int, destination: UInt32, _ value: UInt64, _ calls: inout Calls) {
        let mode = UInt32(value >> 8 & 7)
        let vector = UInt8(truncatingIfNeeded: value)
        let level = value & 1 << 15 != 0
        if mode == 5, value & 1 << 14 == 0, level { return }  // INIT level de-assert: nothing on current processors
        switch value >> 18 & 3 {
        case 0:
            Self.deliver(
                &state, destination: destination, logical: value & 1 << 11 != 0, mode: mode, vector: vector, level: false, from: cpu, &calls)
        case 1: Self.send(&state, cpu, mode: mode, vector: vector, level: false, &calls)
        case let shorthand:
            for target in state.local.indices where shorthand == 2 || target != cpu {
                Self.send(&state, target, mode: mode, vector: vector, level: false, &calls)
            }
        }
    }

    // MARK: I/O APIC

    package func setLine(_ gsi: UInt32, level: Bool) {
        update { state, calls in
            state.io.setLine(Int(gsi), level)
            Self.raiseAsserted(&state, &calls)
        }
    }
    private static func raiseAsserted(_ state: inout State, _ calls: inout Calls) {
        while let entry = state.io.takeDeliverable() {
            deliver(
                &state, destination: UInt32(entry >> 56), logical: entry & 1 << 11 != 0, mode: UInt32(entry >> 8 & 7),
                vector: UInt8(truncatingIfNeeded: entry), level: entry & 1 << 15 != 0, from: nil, &calls)
        }
    }

    // MARK: images

    package func makeImages() -> ([LocalAPICImage], IOAPICImage) {
        state.withLock { state in
            let now = now
            let local = state.local.map { local in
                var plain = local
                plain.x2 = false  // registers as in memory
                let isCounting = local.timerMode < 2
                return LocalAPICImage(
                    registers: (0..<LocalAPICImage.registerCount).map { read(plain, UInt32($0) << 4) },
                    base: 0xFEE0_0000 | (local.enabled ? 1 << 11 : 0) | (local.x2 ? 1 << 10 : 0) | (local.id == 0 ? 1 << 8 : 0), identifier: local.id,
                    timeStampDeadline: isCounting ? 0 : local.tscDeadline,
                    timerRemaining: isCounting ? local.deadline.map { $0 > now ? $0 - now : 0 } : nil)
            }
            return (local, state.io.image)
        }
    }
    package func restore(_ local: [LocalAPICImage], _ io: IOAPICImage) {
        update { state, calls in
            let now = now
            for (cpu, image) in local.prefix(state.local.count).enumerated() {
                state.local[cpu] = LocalAPICState(image, id: UInt32(cpu), now: now, clock: clock.timeStamp)
                Self.poke(&state, cpu, &calls)
            }
            state.io = IOAPICState(io)
        }
    }

    // MARK: timers

    private func runTimers() {
        var entries = (pollfd(fd: timer.fileDescriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: timerWake.fileDescriptor, events: Int16(POLLIN), revents: 0))
        while !state.withLock({ $0.stopped }) {
            let time = now
            let isDue = state.withLock { state in
                let first = Self.firstDeadline(state)
                if first > time { setAlarm(&state, first) }
                return first <= time
            }
            if isDue {
                fire(time)
                continue
            }
            withUnsafeMutableBytes(of: &entries) { _ = $0.bindMemory(to: pollfd.self).baseAddress.map { poll($0, 2, -1) } }
            timer.drain()
        }
    }
    private func fire(_ time: UInt64) {
        update { state, calls in
            for cpu in state.local.indices {
                guard let deadline = state.local[cpu].deadline, deadline <= time else { continue }
                let local = state.local[cpu]
                if local.timerMode == 1, local.initialCount > 0 {
                    let period = UInt64(local.initialCount) * local.divisor
                    // A guest that asks for a tick a nanosecond must not keep a host core busy.
                    state.local[cpu].deadline = max(deadline &+ period, time &+ Self.shortestPeriod)
                } else {
                    state.local[cpu].deadline = nil
                    state.local[cpu].tscDeadline = 0
                }
                if local.lvtTimer & 1 << 16 == 0 {
                    Self.request(&state, cpu, UInt8(truncatingIfNeeded: local.lvtTimer), level: false, &calls)
                }
            }
        }
    }
}
