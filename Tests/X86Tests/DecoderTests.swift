import CZydisOracle
import Foundation
import Testing
import X86

/// Our decoder's lengths and fields against Zydis.
struct DecoderTests {
    /// nil when both agree on the instruction at the start of `bytes`.
    private func difference(_ bytes: UnsafeBufferPointer<UInt8>, _ code: CodeSize) -> String? {
        var oracle = oracle_instruction()
        oracle_decode(bytes.baseAddress, Int32(bytes.count), Int32(code.rawValue), &oracle)
        func text(_ what: String) -> String { "\(what): " + bytes.prefix(15).map { String($0, radix: 16) }.joined(separator: " ") }
        switch InstructionDecoder.decode(bytes, code: code) {
        case .instruction(let i):
            guard oracle.length > 0, oracle.legacy != 0 else { return nil }  // we accept shapes; the selector refuses meanings
            if Int(oracle.length) != i.length { return text("length \(i.length), Zydis \(oracle.length)") }
            if oracle.has_modrm != 0, i.hasModRM {
                if UInt8(oracle.reg) != i.reg & 7 { return text("reg") }
                if oracle.mod != 3, Int(oracle.address_width) != Int(i.addressSize) * 8 { return text("address size") }
                if oracle.mod != 3, i.mod != 3, oracle.displacement != i.displacement { return text("displacement \(i.displacement), Zydis \(oracle.displacement)") }
            }
            return nil
        case .invalid: return oracle.length > 0 && oracle.legacy != 0 && !isLeftOut(oracle) ? text("Zydis knows opcode \(oracle.map)/\(String(oracle.opcode, radix: 16))") : nil
        case .truncated: return oracle.length > 0 ? text("truncated") : nil
        }
    }
    /// Instructions that our processor does not have, by map and opcode: VMX, SVM, GETSEC, MPX, undocumented ones.
    private func isLeftOut(_ oracle: oracle_instruction) -> Bool {
        oracle.map == 1
            && [0x04, 0x0A, 0x0C, 0x0E, 0x0F, 0x24, 0x25, 0x26, 0x27, 0x36, 0x37, 0x39, 0x3B, 0x3C, 0x3D, 0x3E, 0x3F, 0x7A, 0x7B, 0xA6, 0xA7].contains(Int(oracle.opcode))
    }

    @Test(arguments: [CodeSize.bits64, .bits32, .bits16]) func randomBytesDecodeAlike(code: CodeSize) {
        var random = Generator(state: 42 + UInt64(code.rawValue))
        var differences: [String] = []
        var known = 0
        for _ in 0..<1_000_000 {
            let bytes = [random.next(), random.next()].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(8 * $0)) } }
            var oracle = oracle_instruction()
            oracle_decode(bytes, 16, Int32(code.rawValue), &oracle)
            if oracle.length > 0, oracle.legacy != 0 { known += 1 }
            if let difference = bytes.withUnsafeBufferPointer({ difference($0, code) }) { differences.append(difference) }
        }
        for line in differences.prefix(20) { print("\(code): \(line)") }
        #expect(differences.count == 0)
        #expect(known > 500_000, "Zydis knows too few of the cases for this to say much")
    }

    @Test func instructionsOfARealProgramDecodeAlike() throws {
        let program = try [UInt8](Data(contentsOf: URL(fileURLWithPath: "/bin/busybox")))
        var differences: [String] = []
        program.withUnsafeBufferPointer { whole in
            var offset = 0x1000
            let end = min(whole.count - 16, 0x1000 + 1_200_000)
            while offset < end {
                let rest = UnsafeBufferPointer(rebasing: whole[offset..<offset + 16])
                if let difference = difference(rest, .bits64) { differences.append(difference) }
                var oracle = oracle_instruction()
                oracle_decode(rest.baseAddress, 16, 2, &oracle)
                offset += max(Int(oracle.length), 1)
            }
        }
        for line in differences.prefix(20) { print(line) }
        #expect(differences.count == 0)
    }
}
