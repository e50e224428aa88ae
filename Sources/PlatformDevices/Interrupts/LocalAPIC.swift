import Hypervisor

/// Register offsets in the memory-mapped form; x2APIC MSR = 0x800 + offset / 16. Intel SDM vol. 3 § 10.4.1, 10.12.1.
enum LocalAPICRegister: UInt32 {
    case id = 0x20
    case version = 0x30
    case taskPriority = 0x80
    case arbitrationPriority = 0x90
    case processorPriority = 0xA0
    case endOfInterrupt = 0xB0
    case logicalDestination = 0xD0
    case destinationFormat = 0xE0
    case spuriousVector = 0xF0
    case errorStatus = 0x280
    case interruptCommandLow = 0x300
    case interruptCommandHigh = 0x310
    case lvtTimer = 0x320
    case lvtThermal = 0x330
    case lvtPerformance = 0x340
    case lvtLINT0 = 0x350
    case lvtLINT1 = 0x360
    case lvtError = 0x370
    case initialCount = 0x380
    case currentCount = 0x390
    case divideConfiguration = 0x3E0
    case selfIPI = 0x3F0
}

/// 256 bits by vector.
struct VectorSet: Equatable, Sendable {
    private var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    static func == (a: Self, b: Self) -> Bool { a.words == b.words }

    subscript(word index: Int) -> UInt64 {
        get {
            switch index {
            case 0: return words.0
            case 1: return words.1
            case 2: return words.2
            default: return words.3
            }
        }
        set {
            switch index {
            case 0: words.0 = newValue
            case 1: words.1 = newValue
            case 2: words.2 = newValue
            default: words.3 = newValue
            }
        }
    }
    subscript(_ vector: UInt8) -> Bool {
        get { self[word: Int(vector >> 6)] >> UInt64(vector & 63) & 1 != 0 }
        set {
            let bit = UInt64(1) << UInt64(vector & 63)
            if newValue { self[word: Int(vector >> 6)] |= bit } else { self[word: Int(vector >> 6)] &= ~bit }
        }
    }
    var highest: UInt8? {
        for index in [3, 2, 1, 0] where self[word: index] != 0 {
            return UInt8(index * 64 + 63 - self[word: index].leadingZeroBitCount)
        }
        return nil
    }
    mutating func setRegister(_ index: Int, _ value: UInt32) {
        let shift = UInt64(index & 1) * 32
        self[word: index / 2] = self[word: index / 2] & ~(0xFFFF_FFFF << shift) | UInt64(value) << shift
    }
    /// The 32 bits that register `index` of the eight shows.
    func register(_ index: Int) -> UInt32 { UInt32(truncatingIfNeeded: self[word: index / 2] >> (UInt64(index & 1) * 32)) }
}

/// One local APIC's registers. Intel SDM vol. 3 chapter 10.
struct LocalAPICState: Equatable, Sendable {
    var id: UInt32
    var enabled = true
    var x2 = false
    var taskPriority: UInt32 = 0
    var logicalDestination: UInt32 = 0
    var destinationFormat: UInt32 = .max
    var spuriousVector: UInt32 = 0xFF
    var errorStatus: UInt32 = 0
    var interruptCommand: UInt64 = 0
    var lvtTimer: UInt32 = 1 << 16
    var lvtThermal: UInt32 = 1 << 16
    var lvtPerformance: UInt32 = 1 << 16
    var lvtLINT0: UInt32 = 1 << 16
    var lvtLINT1: UInt32 = 1 << 16
    var lvtError: UInt32 = 1 << 16
    var initialCount: UInt32 = 0
    var divide: UInt32 = 0
    /// When the running timer fires, in nanoseconds of CLOCK_MONOTONIC; nil when it is not running.
    var deadline: UInt64?
    var timerStart: UInt64 = 0
    var tscDeadline: UInt64 = 0
    var requested = VectorSet()
    var inService = VectorSet()
    var levelTriggered = VectorSet()

    init(id: UInt32) { self.id = id }

    var isSoftwareEnabled: Bool { enabled && spuriousVector & 0x100 != 0 }
    var processorPriority: UInt32 {
        let service = UInt32(inService.highest ?? 0)
        return taskPriority & 0xF0 >= service & 0xF0 ? taskPriority & 0xFF : service & 0xF0
    }
    var deliverable: UInt8? {
        guard isSoftwareEnabled, let vector = requested.highest, UInt32(vector) & 0xF0 > processorPriority & 0xF0 else { return nil }
        return vector
    }
    /// Divisor of the timer's input clock. SDM vol. 3 figure 10-10.
    var divisor: UInt64 {
        let code = divide & 3 | (divide >> 1) & 4
        return code == 7 ? 1 : 2 << UInt64(code)
    }
    /// 0 one-shot, 1 periodic, 2 TSC deadline.
    var timerMode: UInt32 { (lvtTimer >> 17) & 3 }
}
