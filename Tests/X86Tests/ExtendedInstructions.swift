import X86

/// Random instructions that came after SSE3: three-byte opcodes and VEX.
extension Generator {
    private mutating func chance(_ n: UInt64) -> Bool { next() % n == 0 }
    private mutating func pick<T>(_ values: [T]) -> T { values[Int(next() % UInt64(values.count))] }

    private static let legacy38: [UInt8] =
        Array(0x00...0x0B) + [0x10, 0x14, 0x15, 0x17] + Array(0x1C...0x1E) + Array(0x20...0x25) + Array(0x28...0x2B) + Array(0x30...0x41)
        + Array(0xC8...0xCD) + Array(0xDB...0xDF) + [0xF0, 0xF1]
    private static let legacy3A: [UInt8] = Array(0x08...0x0F) + Array(0x14...0x17) + Array(0x20...0x22) + Array(0x40...0x42) + [0x44] + Array(0x60...0x63) + [0xCC, 0xDF]
    private static let vexTwo: [UInt8] = Array(0x10...0x17) + Array(0x28...0x2F) + Array(0x50...0x7F) + [0xC2, 0xC4, 0xC5, 0xC6] + Array(0xD0...0xFE)
    private static let vex38: [UInt8] =
        Array(0x00...0x0F) + [0x13, 0x16, 0x17, 0x18, 0x19, 0x1A] + Array(0x1C...0x1E) + Array(0x20...0x25) + Array(0x28...0x2F) + Array(0x30...0x41)
        + Array(0x45...0x47) + [0x58, 0x59, 0x5A, 0x78, 0x79, 0x8C, 0x8E] + Array(0x90...0x9F) + Array(0xA6...0xAF) + Array(0xB6...0xBF) + Array(0xDB...0xDF) + Array(0xF2...0xF7)
    private static let vex3A: [UInt8] =
        Array(0x00...0x02) + Array(0x04...0x06) + Array(0x08...0x0F) + Array(0x14...0x1D) + Array(0x20...0x22) + [0x38, 0x39]
        + Array(0x40...0x42) + [0x44, 0x46, 0x4A, 0x4B, 0x4C] + Array(0x60...0x63) + [0xDF, 0xF0]

    /// Everything up to the ModRM byte.
    mutating func extendedOpcode(_ code: CodeSize) -> [UInt8] {
        let rex: [UInt8] = code == .bits64 && chance(2) ? [0x40 | UInt8(truncatingIfNeeded: next() & 15)] : []
        switch next() % 8 {
        case 0: return (chance(4) ? [0x66] : []) + [0xF3] + rex + [0x0F, pick([0xB8, 0xBC, 0xBD])]
        case 1, 2: return prefix() + rex + [0x0F, 0x38, chance(12) ? UInt8(truncatingIfNeeded: next()) : pick(Self.legacy38)]
        case 3: return prefix() + rex + [0x0F, 0x3A, chance(12) ? UInt8(truncatingIfNeeded: next()) : pick(Self.legacy3A)]
        case 4: return vex(1, pick([0, 1, 1, 2, 3]), pick(Self.vexTwo), code)
        case 5, 6: return vex(2, chance(4) ? UInt8(next() & 3) : 1, chance(16) ? UInt8(truncatingIfNeeded: next()) : pick(Self.vex38), code)
        default: return vex(3, chance(8) ? UInt8(next() & 3) : 1, chance(16) ? UInt8(truncatingIfNeeded: next()) : pick(Self.vex3A), code)
        }
    }
    private mutating func prefix() -> [UInt8] {
        switch next() % 10 {
        case 0: return [0xF2]
        case 1: return [0x66, 0xF2]
        case 2: return [0xF3]
        case 3, 4: return []
        default: return [0x66]
        }
    }
    private mutating func vex(_ map: UInt8, _ prefix: UInt8, _ opcode: UInt8, _ code: CodeSize) -> [UInt8] {
        // In 32-bit code it would be LDS or LES otherwise.
        let fixed: UInt8 = code == .bits64 ? 0 : 0xC0
        let vvvv: UInt8 = chance(3) ? 15 : UInt8(next() & 15)
        let long: UInt8 = chance(2) ? 4 : 0
        let random = UInt8(truncatingIfNeeded: next())
        if map == 1, chance(2) { return [0xC5, fixed | random & 0x80 | vvvv << 3 | long | prefix, opcode] }
        return [0xC4, fixed | random & 0xE0 | map, (chance(3) ? 0x80 : 0) | vvvv << 3 | long | prefix, opcode]
    }

    /// Instructions that some hosts have and our processor does not: AVX-512's mask registers, GFNI, VAES and the like.
    static func isForeign(_ i: Instruction) -> Bool {
        switch (i.map, i.opcode) {
        // Processors differ: an alignment check for SHA, W = 0 for VPERMQ and VPERMPD.
        case (.three38, 0xC8...0xCD), (.three3A, 0xCC): return i.isMemory
        case (.three3A, 0x00), (.three3A, 0x01): return i.isVEX && !i.rexW
        case (.three3A, 0x16), (.three3A, 0x22): return i.isVEX && i.code == .bits32
        case (.two, 0xAE), (.two, 0xF7): return i.isVEX
        case (.two, 0x41...0x4B), (.two, 0x90...0x93), (.two, 0x98), (.two, 0x99): return i.isVEX
        case (.three38, 0xDC...0xDF), (.three3A, 0x44): return i.vexL
        case (.three38, 0x48...0x4F), (.three38, 0x50...0x53), (.three38, 0x5C...0x5E), (.three38, 0x6C), (.three38, 0x72), (.three38, 0xB0...0xB5), (.three38, 0xCB...0xD7):
            return i.isVEX || i.opcode == 0xCF
        case (.three38, 0x80...0x82), (.three38, 0xCF), (.three38, 0xD8), (.three38, 0xF5...0xFF): return !i.isVEX || i.opcode > 0xF7
        case (.three38, 0xE0...0xEF): return true
        case (.three3A, 0x30...0x33), (.three3A, 0x48...0x49), (.three3A, 0x5C...0x5F), (.three3A, 0x68...0x7F), (.three3A, 0xC2), (.three3A, 0xCE), (.three3A, 0xCF),
            (.three3A, 0xDE),
            (.three3A, 0xF0):
            return !(i.isVEX && i.opcode == 0xF0)
        default: return false
        }
    }
}
