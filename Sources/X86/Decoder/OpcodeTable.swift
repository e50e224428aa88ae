/// What follows an opcode byte: enough to find an instruction's length and its operands' places.
/// Intel SDM vol. 2, appendix A (opcode maps).
struct OpcodeShape: OptionSet {
    let rawValue: UInt16
    static let modRM = OpcodeShape(rawValue: 1 << 0)
    /// One immediate byte, sign-extended.
    static let immediate8 = OpcodeShape(rawValue: 1 << 1)
    /// 16 or 32 bits by operand size.
    static let immediateZ = OpcodeShape(rawValue: 1 << 2)
    /// 16, 32 or 64 bits by operand size.
    static let immediateV = OpcodeShape(rawValue: 1 << 3)
    static let immediate16 = OpcodeShape(rawValue: 1 << 4)
    /// An absolute address of address-size bits.
    static let memoryOffset = OpcodeShape(rawValue: 1 << 5)
    /// A far pointer: offset (Z), then a 16-bit selector.
    static let farPointer = OpcodeShape(rawValue: 1 << 6)
    /// Group 3: an immediate only for /0 and /1 (TEST).
    static let group3 = OpcodeShape(rawValue: 1 << 7)
    /// A relative branch target: Z, but always 32 bits in 64-bit mode.
    static let branch = OpcodeShape(rawValue: 1 << 8)
    static let invalid = OpcodeShape(rawValue: 1 << 9)
    static let invalidIn64 = OpcodeShape(rawValue: 1 << 10)
    static let prefix = OpcodeShape(rawValue: 1 << 11)
}

/// The opcode maps, one token an opcode. m ModRM, b imm8, z immZ, v immV, w imm16, o memory offset, f far pointer,
/// g group 3, j branch, x undefined, 6 undefined in 64-bit mode, p prefix, `.` nothing follows.
enum OpcodeMaps {
    private static let oneByte = """
        m m m m b z 6. 6. m m m m b z 6. x
        m m m m b z 6. 6. m m m m b z 6. 6.
        m m m m b z p 6. m m m m b z p 6.
        m m m m b z p 6. m m m m b z p 6.
        . . . . . . . . . . . . . . . .
        . . . . . . . . . . . . . . . .
        6. 6. 6m m p p p p z mz b mb . . . .
        b b b b b b b b b b b b b b b b
        mb mz 6mb mb m m m m m m m m m m m m
        . . . . . . . . . . 6f . . . . .
        o o o o . . . . b z . . . . . .
        b b b b b b b b v v v v v v v v
        mb mb w . 6m 6m mb mz wb . w . . b 6. .
        m m m m 6b 6b 6. . m m m m m m m m
        b b b b b b b b j j 6f b . . . .
        p . p p . . mg mg . . . . . . m m
        """
    private static let twoByte = """
        m m m m x . . . . . x . x m . x
        m m m m m m m m m m m m m m m m
        m m m m x x x x m m m m m m m m
        . . . . . . x . x x x x x x x x
        m m m m m m m m m m m m m m m m
        m m m m m m m m m m m m m m m m
        m m m m m m m m m m m m m m m m
        mb mb mb mb m m m . m m x x m m m m
        j j j j j j j j j j j j j j j j
        m m m m m m m m m m m m m m m m
        . . . m mb m x x . . . m mb m m m
        m m m m m m m m m m mb m m m m m
        m m mb m mb mb mb m . . . . . . . .
        m m m m m m m m m m m m m m m m
        m m m m m m m m m m m m m m m m
        m m m m m m m m m m m m m m m m
        """

    static let one: [OpcodeShape] = parse(oneByte)
    static let two: [OpcodeShape] = parse(twoByte)

    private static func parse(_ text: String) -> [OpcodeShape] {
        text.split(whereSeparator: { $0 == " " || $0 == "\n" }).map { token in
            var shape: OpcodeShape = []
            for letter in token {
                switch letter {
                case "m": shape.insert(.modRM)
                case "b": shape.insert(.immediate8)
                case "z": shape.insert(.immediateZ)
                case "v": shape.insert(.immediateV)
                case "w": shape.insert(.immediate16)
                case "o": shape.insert(.memoryOffset)
                case "f": shape.insert(.farPointer)
                case "g": shape.insert(.group3)
                case "j": shape.insert(.branch)
                case "x": shape.insert(.invalid)
                case "6": shape.insert(.invalidIn64)
                case "p": shape.insert(.prefix)
                default: break
                }
            }
            return shape
        }
    }
}
