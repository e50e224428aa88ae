import Synchronization

/// A 16550A UART: what a kernel's early console and ttyS0 need. Output goes to a closure, byte by byte. Any thread.
package final class UART16550: Sendable {
    /// All that the guest can have set.
    package struct Image: Equatable, Sendable, Codable {
        var interruptEnable: UInt8 = 0
        var lineControl: UInt8 = 0
        var modemControl: UInt8 = 0
        var scratch: UInt8 = 0
        var divisor: UInt16 = 12
        var fifoEnabled = false
        var transmitPending = false
        var input: [UInt8] = []
    }
    private let state = Mutex(Image())
    private let setInterrupt: @Sendable (Bool) -> Void
    private let output: @Sendable (UInt8) -> Void

    package init(setInterrupt: @escaping @Sendable (Bool) -> Void, output: @escaping @Sendable (UInt8) -> Void) {
        self.setInterrupt = setInterrupt
        self.output = output
    }

    package func read(_ offset: UInt16) -> UInt8 {
        let (value, level) = state.withLock { state -> (UInt8, Bool) in
            var value: UInt8
            switch offset {
            case 0:
                if state.lineControl & 0x80 != 0 {
                    value = UInt8(truncatingIfNeeded: state.divisor)
                } else {
                    value = state.input.isEmpty ? 0 : state.input.removeFirst()
                }
            case 1: value = state.lineControl & 0x80 != 0 ? UInt8(state.divisor >> 8) : state.interruptEnable
            case 2:
                let fifo: UInt8 = state.fifoEnabled ? 0xC0 : 0
                if state.interruptEnable & 1 != 0, !state.input.isEmpty {
                    value = fifo | 4
                } else if state.interruptEnable & 2 != 0, state.transmitPending {
                    state.transmitPending = false
                    value = fifo | 2
                } else {
                    value = fifo | 1
                }
            case 3: value = state.lineControl
            case 4: value = state.modemControl
            case 5: value = 0x60 | (state.input.isEmpty ? 0 : 1)
            case 6: value = state.modemControl & 0x10 != 0 ? 0 : 0xB0
            default: value = state.scratch
            }
            return (value, Self.level(state))
        }
        setInterrupt(level)
        return value
    }

    package func write(_ offset: UInt16, _ value: UInt8) {
        let (sent, level) = state.withLock { state -> (UInt8?, Bool) in
            var sent: UInt8?
            switch offset {
            case 0:
                if state.lineControl & 0x80 != 0 {
                    state.divisor = state.divisor & 0xFF00 | UInt16(value)
                } else {
                    if state.modemControl & 0x10 != 0 { if state.input.count < 64 { state.input.append(value) } } else { sent = value }
                    state.transmitPending = true
                }
            case 1:
                if state.lineControl & 0x80 != 0 {
                    state.divisor = state.divisor & 0xFF | UInt16(value) << 8
                } else {
                    // Enabling the interrupt of an empty transmitter raises it at once.
                    if value & 2 != 0, state.interruptEnable & 2 == 0 { state.transmitPending = true }
                    state.interruptEnable = value & 0xF
                }
            case 2:
                state.fifoEnabled = value & 1 != 0
                if value & 2 != 0 { state.input = [] }
            case 3: state.lineControl = value
            case 4: state.modemControl = value & 0x1F
            case 7: state.scratch = value
            default: break
            }
            return (sent, Self.level(state))
        }
        if let sent { output(sent) }
        setInterrupt(level)
    }
    private static func level(_ state: Image) -> Bool {
        (state.interruptEnable & 1 != 0 && !state.input.isEmpty) || (state.interruptEnable & 2 != 0 && state.transmitPending)
    }
    package var image: Image { state.withLock { $0 } }
    package func restore(_ image: Image) { state.withLock { $0 = image } }
}
