import CX86

/// Host registers that do not stand for a guest register of the same number.
enum Host {
    static let rax: UInt8 = 0
    static let rcx: UInt8 = 1
    static let rsi: UInt8 = 6
    static let rdi: UInt8 = 7
    /// The guest's stack pointer: the host's stack stays the host's.
    static let guestRSP: UInt8 = 8
    static let scratch: UInt8 = 9
    /// The CPU state.
    static let state: UInt8 = 10
    static let address: UInt8 = 11

    /// The host register that holds guest register `n` in translated code; nil when it stays in memory (R8–R11).
    static func register(_ n: UInt8) -> UInt8? {
        switch n {
        case 4: return guestRSP
        case 8...11: return nil
        default: return n
        }
    }
    static let calleeSaved: [UInt8] = [3, 5, 12, 13, 14, 15]
    static let mapped: [UInt8] = [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]

    /// What `state` points behind the state's beginning, so that a displacement of one byte reaches what code names most.
    static let bias: Int32 = 192
    static func cell(_ offset: Int) -> HostOperand { .memory(base: state, displacement: Int32(offset) - bias) }
    /// An entry of a table behind the state.
    static func cell(_ offset: Int32, index: UInt8, scale: UInt8) -> HostOperand { .memory(base: state, index: index, scale: scale, displacement: offset - bias) }
    static func home(_ n: UInt8) -> HostOperand { cell(Int(n) * 8) }
    static func vectorHome(_ n: UInt8) -> HostOperand { cell(vectorOffset(Int(n))) }
}
