import CHostRunner
import Foundation
import Testing
import X86

/// Every instruction form the decoder accepts that a program may execute, against the host processor itself.
@Suite(.serialized) struct DifferentialTests {
    static let dataSize = 0x6000

    /// Cases in one run: 10 million for CI, more with VZ_DIFFERENTIAL_CASES, seed by VZ_SEED.
    static var caseCount: Int { ProcessInfo.processInfo.environment["VZ_DIFFERENTIAL_CASES"].flatMap { Int($0) } ?? 10_000_000 }
    static var seed: UInt64 { ProcessInfo.processInfo.environment["VZ_SEED"].flatMap { UInt64($0) } ?? 20_261_121 }

    @Test func randomInstructionsAgreeWithHost() throws {
        try #require(host_runner_init(TestMachine.base, UInt64(Self.dataSize)) == 0)
        var harness = DifferentialHarness(seed: Self.seed)
        let report = harness.run(cases: Self.caseCount)
        for line in report.mismatches.prefix(20) { print(line) }
        print("differential: \(report.compared) compared, \(report.faulted) faulted alike, \(report.forms) opcodes, \(report.mismatches.count) mismatches")
        #expect(report.mismatches.count == 0)
        let compared = report.compared
        #expect(compared > Self.caseCount / 2)
    }
}

struct DifferentialHarness {
    struct Report {
        var compared = 0
        var faulted = 0
        var forms = 0
        var mismatches: [String] = []
    }

    private var random: Generator
    private let machine = TestMachine(base: TestMachine.base, size: 0x8000)
    private let hostData: UnsafeMutableRawPointer
    private var guestData: UnsafeMutableRawPointer { machine.bytes + 0x2000 }
    private let dataBase = TestMachine.base + 0x2000
    private let codeBase = TestMachine.base + 0x100
    private var codeOffset = 0

    init(seed: UInt64) {
        random = Generator(state: seed)
        hostData = host_runner_data()
    }

    private mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: random.next()) }
    private mutating func chance(_ n: UInt64) -> Bool { random.next() % n == 0 }

    private mutating func value() -> UInt64 { random.corner() }

    static let excludedOne: Set<UInt8> = [
        0x6C, 0x6D, 0x6E, 0x6F, 0x8C, 0x8E, 0x9A, 0x9B, 0x9C, 0x9D, 0xC2, 0xC3, 0xC4, 0xC5, 0xC8, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD,
        0xCF, 0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEB, 0xEC, 0xED, 0xEE, 0xEF, 0xF1, 0xF4, 0xFA, 0xFB,
        0xA0, 0xA1, 0xA2, 0xA3, 0x62, 0xD7,
    ]
    static let excludedTwo: Set<UInt8> = [
        0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35,
        0x37, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA, 0xAE, 0xB2, 0xB4, 0xB5, 0xB8, 0xB9, 0xC7, 0xFF, 0x78, 0x79, 0xF7, 0x1E, 0x1A, 0x1B, 0x0D,
        0x1C, 0x18, 0x19, 0x1D, 0x1F, 0x77,
    ]

    /// One instruction whose memory operand, if any, is [base + index*1 + disp32] with a base we choose.
    private mutating func instruction() -> [UInt8] {
        var code: [UInt8] = []
        let two = chance(2)
        let opcode = byte()
        if two ? Self.excludedTwo.contains(opcode) : Self.excludedOne.contains(opcode) { return [] }
        if !two {
            if (0x70...0x7F).contains(opcode) || (0x50...0x5F).contains(opcode) && opcode & 7 == 4 { return [] }
            if (0x40...0x4F).contains(opcode) { return [] }
            if (0xD8...0xDF).contains(opcode) { return [] }
            if opcode & 0xC7 == 0x06 || opcode & 0xC7 == 0x07 || opcode & 0xE7 == 0x26 { return [] }
            if opcode == 0x0F || (0x64...0x67).contains(opcode) || opcode == 0xF0 || opcode == 0xF2 || opcode == 0xF3 { return [] }
        } else if (0x80...0x8F).contains(opcode) || opcode == 0x38 || opcode == 0x3A {
            return []
        }
        let string = !two && ((0xA4...0xA7).contains(opcode) || (0xAA...0xAF).contains(opcode))
        if chance(3) { return extended() }
        if chance(3) { code.append(0x66) }
        var rep: UInt8 = 0
        if two || string, chance(2) { rep = chance(2) ? 0xF2 : 0xF3 }
        if rep != 0 {
            // The host has LZCNT, TZCNT and POPCNT where these prefixes are ignored by our x86-64-v1.
            if two, opcode == 0xBC || opcode == 0xBD { rep = 0 }
            if rep != 0 { code.append(rep) }
        }
        let lock = chance(6)
        if lock { code.append(0xF0) }
        if chance(2) { code.append(0x40 | byte() & 15) }
        if two { code.append(0x0F) }
        code.append(opcode)
        addOperands(&code)
        return code
    }
    private mutating func extended() -> [UInt8] {
        var code = random.extendedOpcode(.bits64)
        addOperands(&code)
        return code
    }
    /// ModRM and what follows: enough random bytes; the decoder says how many count.
    private mutating func addOperands(_ code: inout [UInt8]) {
        var modRM = byte()
        if modRM >> 6 != 3 { modRM = (modRM & 0x3F) | 0x80 }  // disp32
        code.append(modRM)
        if modRM >> 6 == 2, modRM & 7 == 4 {
            code.append(byte() & 0x3F)
        }
        let displacement = UInt32(truncatingIfNeeded: random.next() & 0x3F)
        if modRM >> 6 == 2 { for shift in [0, 8, 16, 24] { code.append(UInt8(truncatingIfNeeded: displacement >> UInt32(shift))) } }
        while code.count < 15 { code.append(byte()) }
    }

    mutating func run(cases: Int) -> Report {
        var report = Report()
        var seen: Set<UInt16> = []
        var done = 0
        var host = host_registers()
        while done < cases {
            var code = instruction()
            if code.isEmpty { continue }
            let decoded = code.withUnsafeBufferPointer { InstructionDecoder.decode($0, code: .bits64) }
            guard case .instruction(let i) = decoded else { continue }
            code = Array(code.prefix(i.length))
            if i.map == .one, i.opcode == 0xFF, i.group >= 2 && i.group != 6 { continue }
            if i.map == .one, i.opcode == 0x8F, i.isMemory || i.rm == 4 { continue }
            if i.isRIPRelative || (i.isMemory && i.index == i.base) { continue }
            if i.isMemory, isRegisterBitIndex(i), Int8(i.reg) == i.base || Int8(i.reg) == i.index { continue }
            // MOVNTSS and MOVNTSD are AMD's SSE4a, which we do not offer.
            if i.map == .two, i.opcode == 0x2B, i.rep != 0 { continue }
            if Generator.isForeign(i) { continue }
            done += 1

            var state = TestMachine.flatState
            if host_has_avx() != 0 {
                state.cr4 |= 1 << 18
                state.xcr0 = 7
            }
            for n in 0..<16 { state.gpr[n] = value() }
            state.gpr[4] = dataBase + 0x2000 + (random.next() & 0x1F8)
            if i.isMemory {
                if i.index >= 0, i.index != 4 { state.gpr[Int(i.index)] = random.next() & 0x3F }
                if i.base >= 0 {
                    // Mostly inside a page, often across its end, sometimes unaligned.
                    let place: UInt64 = chance(4) ? 0xFC0 + (random.next() & 0x3F) : (random.next() & 0x7F0)
                    state.gpr[Int(i.base)] = dataBase + 0x1000 + place
                    if i.base == 4 { state.gpr[4] &= ~7 }
                } else {
                    continue
                }
                if isRegisterBitIndex(i) { state.gpr[Int(i.reg)] = random.next() & 0x1FF }
            }
            if isString(i) {
                state.gpr[1] = random.next() % 40
                state.gpr[6] = dataBase + 0x1800 + (random.next() & 0xFFF)
                state.gpr[7] = chance(4) ? state.gpr[6] &+ (random.next() & 15) : dataBase + 0x1800 + (random.next() & 0xFFF)
            }
            state.rflags = 2 | (random.next() & 0x8D5) | (isString(i) && chance(4) ? 0x400 : 0)
            for n in 0..<32 {
                let v = value()
                for b in 0..<8 { state.xmm[n * 8 + b] = UInt8(truncatingIfNeeded: v >> UInt64(8 * b)) }
            }
            for n in 0..<32 {
                let v = value()
                for b in 0..<8 { state.ymmHigh[n * 8 + b] = UInt8(truncatingIfNeeded: v >> UInt64(8 * b)) }
            }
            if isGather(i) { makeIndices(i, &state) }
            for n in stride(from: 0x1000, to: 0x3000, by: 8) where done % 64 == 0 || n % 512 == 0 {
                hostData.storeBytes(of: value(), toByteOffset: n, as: UInt64.self)
            }
            (guestData + 0x800).copyMemory(from: hostData + 0x800, byteCount: 0x2800)

            withUnsafeMutableBytes(of: &host.gpr) { raw in
                for n in 0..<16 { raw.storeBytes(of: state.gpr[n], toByteOffset: n * 8, as: UInt64.self) }
            }
            withUnsafeMutableBytes(of: &host.vectors) { raw in
                for n in 0..<256 {
                    raw[n / 16 * 32 + n % 16] = state.xmm[n]
                    raw[n / 16 * 32 + 16 + n % 16] = state.ymmHigh[n]
                }
            }
            host.rflags = state.rflags
            let before = state

            // Guest: the instruction, then HLT, at a fresh place so that blocks are decoded anew.
            codeOffset = (codeOffset + 16) % 0xE00
            for (n, b) in code.enumerated() { (machine.bytes + 0x100 + codeOffset + n).storeBytes(of: b, as: UInt8.self) }
            (machine.bytes + 0x100 + codeOffset + code.count).storeBytes(of: 0xF4, as: UInt8.self)
            machine.memory.noteDeviceWrite(codeBase + UInt64(codeOffset), 16)
            state.rip = codeBase + UInt64(codeOffset)
            var vector: UInt8?
            machine.core.trace = { v, _, _ in if vector == nil { vector = v } }
            machine.core.architecturalState = state
            let exit = machine.core.run()
            let signal = code.withUnsafeBufferPointer { host_runner_run($0.baseAddress, Int32($0.count), &host) }

            func name() -> String {
                "\(code.map { String($0, radix: 16) }.joined(separator: " ")) exit \(exit) vector \(vector.map { String($0) } ?? "-") signal \(signal)"
            }
            if vector != nil || signal != 0 {
                let expected: Int32 = vector.map { $0 == 0 ? 8 : ($0 == 6 ? 4 : 11) } ?? 0
                if signal == expected { report.faulted += 1 } else { report.mismatches.append("fault: " + name()) }
                hostData.copyMemory(from: guestData, byteCount: Self.compareSize)
                continue
            }
            guard exit == .halt else {
                report.mismatches.append("exit: " + name())
                continue
            }
            seen.insert(UInt16(i.map.rawValue) << 8 | UInt16(i.opcode))
            report.compared += 1
            let after = machine.core.architecturalState
            if let difference = compare(i, before, after, host) {
                report.mismatches.append(difference + ": " + name() + " before \(describe(before))")
                if report.mismatches.count > 200 { break }
            }
        }
        report.forms = seen.count
        return report
    }
    static let compareSize = 0x5000

    private func describe(_ s: X86State) -> String {
        s.gpr.enumerated().map { "r\($0)=\(String($1, radix: 16))" }.joined(separator: " ") + " f=\(String(s.rflags, radix: 16))"
    }
    private func isString(_ i: Instruction) -> Bool {
        i.map == .one && ((0xA4...0xA7).contains(i.opcode) || (0xAA...0xAF).contains(i.opcode))
    }
    private func isGather(_ i: Instruction) -> Bool { i.isVEX && i.map == .three38 && (0x90...0x93).contains(i.opcode) && i.isMemory }
    /// Small indices in all of the index register's elements.
    private mutating func makeIndices(_ i: Instruction, _ state: inout X86State) {
        let index = i.index < 0 ? 4 : Int(i.index)
        let wide = i.opcode & 1 == 1
        for b in 0..<16 {
            let lowest = wide ? b % 8 == 0 : b % 4 == 0
            state.xmm[index * 16 + b] = lowest ? byte() & 0x3F : 0
            state.ymmHigh[index * 16 + b] = lowest ? byte() & 0x3F : 0
        }
    }
    private func isRegisterBitIndex(_ i: Instruction) -> Bool {
        i.map == .two && [0xA3, 0xAB, 0xB3, 0xBB].contains(i.opcode)
    }

    /// Flags that the manual leaves undefined after an instruction. SDM vol. 2.
    private func undefinedFlags(_ i: Instruction, _ before: X86State) -> UInt64 {
        let (cf, pf, af, zf, sf, of): (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (1, 4, 0x10, 0x40, 0x80, 0x800)
        let logic = af
        let width = UInt64(i.opcode & 1 == 0 ? 8 : Int(i.operandSize) * 8)
        switch (i.map, i.opcode) {
        case (.one, 0x00...0x3F):
            return [1, 4, 6].contains(i.opcode >> 3) ? logic : 0
        case (.one, 0x80...0x83): return [1, 4, 6].contains(i.group) ? logic : 0
        case (.one, 0x84), (.one, 0x85), (.one, 0xA8), (.one, 0xA9): return logic
        case (.one, 0x69), (.one, 0x6B), (.two, 0xAF): return sf | zf | af | pf
        case (.one, 0xF6), (.one, 0xF7):
            switch i.group {
            case 0, 1: return logic
            case 4, 5: return sf | zf | af | pf
            case 6, 7: return cf | of | sf | zf | af | pf
            default: return 0
            }
        case (.one, 0xC0), (.one, 0xC1), (.one, 0xD0...0xD3):
            var count: UInt64
            switch i.opcode {
            case 0xC0, 0xC1: count = UInt64(bitPattern: i.immediate)
            case 0xD0, 0xD1: count = 1
            default: count = before.gpr[1]
            }
            count &= i.opcode & 1 == 1 && i.operandSize == 8 ? 63 : 31
            if count == 0 { return 0 }
            let over = count == 1 ? 0 : of
            if i.group < 4 { return over }
            return over | af | (count >= width && i.group != 7 ? cf : 0)
        case (.two, 0xA4), (.two, 0xA5), (.two, 0xAC), (.two, 0xAD):
            let count = (i.opcode & 1 == 0 ? UInt64(bitPattern: i.immediate) : before.gpr[1]) & (i.operandSize == 8 ? 63 : 31)
            if count == 0 { return 0 }
            return count > UInt64(i.operandSize) * 8 ? 0x8D5 : af | (count == 1 ? 0 : of)
        case (.two, 0xBC) where i.rep == 0xF3, (.two, 0xBD) where i.rep == 0xF3: return of | sf | af | pf
        case (.two, 0xBC), (.two, 0xBD): return cf | of | sf | af | pf
        case (.three38, 0xF2...0xF7): return i.isVEX ? sf | af | pf : 0
        case (.two, 0xA3), (.two, 0xAB), (.two, 0xB3), (.two, 0xBB), (.two, 0xBA): return of | sf | af | pf
        default: return 0
        }
    }
    private func hasUndefinedResult(_ i: Instruction, _ before: X86State) -> Bool {
        if i.map == .two, (0xC8...0xCF).contains(i.opcode), i.operandSize == 2 { return true }
        if i.map == .two, [0xA4, 0xA5, 0xAC, 0xAD].contains(i.opcode), i.operandSize == 2 {
            let count = (i.opcode & 1 == 0 ? UInt64(bitPattern: i.immediate) : before.gpr[1]) & 31
            return count > 16
        }
        return false
    }

    private func compare(_ i: Instruction, _ before: X86State, _ after: X86State, _ host: host_registers) -> String? {
        if hasUndefinedResult(i, before) {
            hostData.copyMemory(from: guestData, byteCount: Self.compareSize)
            return nil
        }
        var host = host
        let gpr = withUnsafeBytes(of: &host.gpr) { Array($0.bindMemory(to: UInt64.self)) }
        for n in 0..<16 where gpr[n] != after.gpr[n] {
            return "r\(n) guest \(String(after.gpr[n], radix: 16)) host \(String(gpr[n], radix: 16))"
        }
        let mask = 0xCD5 & ~undefinedFlags(i, before)
        if after.rflags & mask != host.rflags & mask {
            return "flags guest \(String(after.rflags & mask, radix: 16)) host \(String(host.rflags & mask, radix: 16))"
        }
        let vectors = withUnsafeBytes(of: &host.vectors) { Array($0) }
        for n in 0..<256 where vectors[n / 16 * 32 + n % 16] != after.xmm[n] { return "xmm\(n / 16)" }
        if host_has_avx() != 0 { for n in 0..<256 where vectors[n / 16 * 32 + 16 + n % 16] != after.ymmHigh[n] { return "upper half of ymm\(n / 16)" } }
        if memcmp(hostData + 0x800, guestData + 0x800, 0x2800) != 0 {
            hostData.copyMemory(from: guestData, byteCount: Self.compareSize)
            return "memory"
        }
        return nil
    }
}
