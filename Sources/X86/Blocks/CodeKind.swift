/// What code there is as far as its blocks are concerned: which width, and whether it may be translated.
enum CodeKind: UInt8 {
    case bits16 = 0
    case bits32 = 1
    case bits64 = 2
    /// 32-bit code of a program, in long mode, whose code, data and stack segments all begin at address 0.
    case narrow = 3

    var size: CodeSize {
        switch self {
        case .bits16: .bits16
        case .bits32, .narrow: .bits32
        case .bits64: .bits64
        }
    }
    var isTranslated: Bool { self == .bits64 || self == .narrow }

    @inline(__always) init(_ s: CPU) {
        self = s.pointee.mode == 2 ? .bits64 : (s.pointee.narrow != 0 ? .narrow : (s.pointee.mode == 1 ? .bits32 : .bits16))
    }
}
