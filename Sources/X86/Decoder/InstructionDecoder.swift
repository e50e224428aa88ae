/// Decodes one instruction from bytes. Pure: the bytes are our own copy or code that a block was stamped for.
package struct InstructionDecoder {
    private let bytes: UnsafeBufferPointer<UInt8>
    /// How many of them are looked at.
    private let limit: Int
    private var position = 0
    private var result = Instruction()
    private var rexByte: UInt8 = 0
    private var overran = false

    private init(_ bytes: UnsafeBufferPointer<UInt8>, code: CodeSize) {
        self.bytes = bytes
        limit = min(bytes.count, 15)
        result.code = code
    }

    /// Decodes the instruction at the start of `bytes`; looks at no more than 15 of them.
    package static func decode(_ bytes: UnsafeBufferPointer<UInt8>, code: CodeSize) -> DecodeResult {
        var decoder = InstructionDecoder(bytes, code: code)
        let known = decoder.run()
        if decoder.overran { return bytes.count >= 15 ? .invalid(length: 15) : .truncated }
        if decoder.position > 15 || !known { return .invalid(length: min(decoder.position, 15)) }
        decoder.result.length = decoder.position
        return .instruction(decoder.result)
    }

    private mutating func byte() -> UInt8 {
        guard position < limit else {
            overran = true
            return 0
        }
        defer { position += 1 }
        return bytes[position]
    }

    private mutating func signed(_ count: Int) -> Int64 {
        if count == 1 { return Int64(Int8(bitPattern: byte())) }
        if count == 4, position + 4 <= limit, let start = bytes.baseAddress {
            defer { position += 4 }
            return Int64(Int32(littleEndian: UnsafeRawPointer(start + position).loadUnaligned(as: Int32.self)))
        }
        var value: UInt64 = 0
        for shift in 0..<count { value |= UInt64(byte()) << (8 * UInt64(shift)) }
        let unused = Int64(64 - 8 * count)
        return (Int64(bitPattern: value) << unused) >> unused
    }

    private mutating func run() -> Bool {
        let opcode = prefixes()
        if overran { return false }
        sizes()
        var shape: OpcodeShape
        result.opcode = opcode
        if isVEX(opcode) {
            guard let map = vex(opcode) else { return false }
            result.opcode = byte()
            if overran { return false }
            switch map {
            case 1:
                result.map = .two
                shape = OpcodeMaps.two[Int(result.opcode)]
            case 2:
                result.map = .three38
                shape = .modRM
            default:
                result.map = .three3A
                shape = [.modRM, .immediate8]
            }
            if result.code != .bits64, result.wideMeansGeneral { result.rexW = false }
        } else if opcode == 0x0F {
            let second = byte()
            if overran { return false }
            result.opcode = second
            if second == 0x38 || second == 0x3A {
                result.map = second == 0x38 ? .three38 : .three3A
                result.opcode = byte()
                if overran { return false }
                shape = second == 0x38 ? .modRM : [.modRM, .immediate8]
            } else {
                result.map = .two
                shape = OpcodeMaps.two[Int(second)]
            }
        } else {
            shape = OpcodeMaps.one[Int(opcode)]
        }
        if shape.contains(.invalid) { return false }
        if shape.contains(.invalidIn64), result.code == .bits64 { return false }
        if shape.contains(.modRM) { modRM() }
        immediates(shape)
        return true
    }

    private mutating func prefixes() -> UInt8 {
        while !overran {
            let value = byte()
            switch value {
            case 0x66: result.has66 = true
            case 0x67: addressOverride = true
            case 0xF0: result.hasLock = true
            case 0xF2, 0xF3: result.rep = value
            case 0x26, 0x2E, 0x36, 0x3E:
                // ES, CS, SS and DS overrides are ignored in 64-bit mode. SDM vol. 1 § 3.7.4.
                if result.code != .bits64 { result.segmentOverride = Int8((value >> 3) & 3) }
            case 0x64, 0x65: result.segmentOverride = Int8(value - 0x60)
            case 0x40...0x4F where result.code == .bits64:
                rexByte = value
                continue
            default:
                result.hasREX = rexByte != 0
                result.rexW = rexByte & 8 != 0
                result.opcodeRegisterExtension = (rexByte & 1) << 3
                return value
            }
            rexByte = 0  // a REX not directly before the opcode has no effect
        }
        return 0
    }

    /// C4 and C5 are LES and LDS outside 64-bit mode when what follows has the form of a memory operand. SDM vol. 2 § 2.3.5.
    private func isVEX(_ opcode: UInt8) -> Bool {
        guard opcode == 0xC4 || opcode == 0xC5, result.code != .bits16 else { return false }
        if result.code == .bits64 { return true }
        return position < limit && bytes[position] >= 0xC0
    }
    /// Takes in the rest of a VEX prefix; the opcode map (1…3), nil when it is undefined.
    private mutating func vex(_ opcode: UInt8) -> Int? {
        // LOCK, 66, F2, F3 and REX do not go with it.
        let forbidden = result.hasLock || result.has66 || result.rep != 0 || result.hasREX
        let first = byte()
        var map = 1
        var last = first
        rexByte = first & 0x80 == 0 ? 4 : 0
        if opcode == 0xC4 {
            last = byte()
            map = Int(first & 31)
            rexByte |= (first & 0x40 == 0 ? 2 : 0) | (first & 0x20 == 0 ? 1 : 0)
            result.rexW = last & 0x80 != 0
        }
        result.isVEX = true
        result.hasREX = true  // byte registers are the low ones
        result.vvvv = ~(last >> 3) & 15
        result.namesNoThird = result.vvvv == 0
        result.vexL = last & 4 != 0
        result.has66 = last & 3 == 1
        result.rep = last & 3 == 2 ? 0xF3 : (last & 3 == 3 ? 0xF2 : 0)
        if result.code != .bits64 {
            rexByte = 0
            result.vvvv &= 7
        }
        result.operandSize = result.rexW && result.code == .bits64 ? 8 : 4
        return forbidden || !(1...3).contains(map) ? nil : map
    }

    private var addressOverride = false

    private mutating func sizes() {
        switch result.code {
        case .bits64:
            result.addressSize = addressOverride ? 4 : 8
            result.operandSize = result.rexW ? 8 : (result.has66 ? 2 : 4)
        case .bits32:
            result.addressSize = addressOverride ? 2 : 4
            result.operandSize = result.has66 ? 2 : 4
        case .bits16:
            result.addressSize = addressOverride ? 4 : 2
            result.operandSize = result.has66 ? 4 : 2
        }
    }

    private mutating func modRM() {
        let value = byte()
        result.hasModRM = true
        result.mod = value >> 6
        result.reg = ((value >> 3) & 7) | ((rexByte & 4) << 1)
        result.rm = (value & 7) | ((rexByte & 1) << 3)
        // Moves to and from control and debug registers have register operands whatever mod says.
        if result.map == .two, (0x20...0x23).contains(result.opcode) { result.mod = 3 }
        guard result.mod != 3 else { return }
        if result.addressSize == 2 { return modRM16(value) }
        if value & 7 == 4 {
            let sib = byte()
            let index = ((sib >> 3) & 7) | ((rexByte & 2) << 2)
            let base = (sib & 7) | ((rexByte & 1) << 3)
            result.scale = sib >> 6
            result.index = index == 4 ? -1 : Int8(index)
            if sib & 7 == 5, result.mod == 0 {
                result.displacement = signed(4)
            } else {
                result.base = Int8(base)
            }
        } else if value & 7 == 5, result.mod == 0 {
            result.displacement = signed(4)
            result.isRIPRelative = result.code == .bits64
        } else {
            result.base = Int8(result.rm)
        }
        if result.mod == 1 { result.displacement = signed(1) }
        if result.mod == 2 { result.displacement = signed(4) }
    }

    private mutating func modRM16(_ value: UInt8) {
        let pairs: [(Int8, Int8)] = [(3, 6), (3, 7), (5, 6), (5, 7), (6, -1), (7, -1), (5, -1), (3, -1)]
        (result.base, result.index) = pairs[Int(value & 7)]
        if result.mod == 0, value & 7 == 6 {
            result.base = -1
            result.displacement = signed(2)
        }
        if result.mod == 1 { result.displacement = signed(1) }
        if result.mod == 2 { result.displacement = signed(2) }
    }

    private mutating func immediates(_ shape: OpcodeShape) {
        let z = result.operandSize == 2 ? 2 : 4
        if shape.contains(.immediate16) { result.immediate = signed(2) & 0xFFFF }
        if shape.contains(.immediateZ) { result.immediate = signed(z) }
        if shape.contains(.immediateV) { result.immediate = signed(Int(result.operandSize)) }
        if shape.contains(.memoryOffset) {
            result.displacement = signed(Int(result.addressSize))
        }
        if shape.contains(.branch) { result.immediate = signed(result.code == .bits64 ? 4 : z) }
        if shape.contains(.farPointer) {
            result.immediate = signed(z)
            result.immediate2 = UInt16(truncatingIfNeeded: signed(2))
        }
        if shape.contains(.group3), result.group < 2 { result.immediate = signed(result.opcode == 0xF6 ? 1 : z) }
        if shape.contains(.immediate8) {
            if shape.contains(.immediate16) {
                result.immediate2 = UInt16(truncatingIfNeeded: signed(1) & 0xFF)
            } else {
                result.immediate = signed(1)
                // The number of a fourth register: 32-bit code has eight.
                if result.isVEX, result.map == .three3A, (0x4A...0x4C).contains(result.opcode), result.code != .bits64 { result.immediate &= 0x7F }
            }
        }
    }
}
