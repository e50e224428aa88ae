import Testing
import X86

/// Instructions that the host runs itself, in 16-bit code, where prefix 66 means the opposite of what it means to the host.
@Suite struct SixteenBitTests {
    /// `place`: where the operand lies, up to the end of memory.
    @Test(
        arguments: [
            ("lzcnt ax, [si]", [0xF3, 0x0F, 0xBD, 0x04], 0xFFFE, 0x0130, 0xAAAA_0007),
            ("lzcnt eax, [si]", [0x66, 0xF3, 0x0F, 0xBD, 0x04], 0xFFFC, 0x0130, 23),
            ("tzcnt ax, [si]", [0xF3, 0x0F, 0xBC, 0x04], 0xFFFE, 0x0130, 0xAAAA_0004),
            ("tzcnt eax, [si]", [0x66, 0xF3, 0x0F, 0xBC, 0x04], 0xFFFC, 0x0130_0000, 20),
            ("popcnt ax, [si]", [0xF3, 0x0F, 0xB8, 0x04], 0xFFFE, 0x0130, 0xAAAA_0003),
            ("popcnt eax, [si]", [0x66, 0xF3, 0x0F, 0xB8, 0x04], 0xFFFC, 0x0130_0130, 6),
            ("movbe ax, [si]", [0x0F, 0x38, 0xF0, 0x04], 0xFFFE, 0x0130, 0xAAAA_3001),
            ("movbe eax, [si]", [0x66, 0x0F, 0x38, 0xF0, 0x04], 0xFFFC, 0x0102_0304, 0x0403_0201),
            ("crc32 eax, word [si]", [0xF2, 0x0F, 0x38, 0xF1, 0x04], 0xFFFE, 0x0130, 0),
            ("crc32 eax, dword [si]", [0x66, 0xF2, 0x0F, 0x38, 0xF1, 0x04], 0xFFFC, 0x0130_0130, 0),
        ] as [(String, [UInt8], Int, UInt32, UInt64)]) func operandsAreAsWideAsTheGuestSays(name: String, code: [UInt8], place: Int, value: UInt32, result: UInt64) throws
    {
        let machine = try EdgeOfMemory(.bits16)
        let size = 0x1_0000 - place
        for n in 0..<size { machine.guarded.bytes.storeBytes(of: UInt8(truncatingIfNeeded: value >> UInt32(8 * n)), toByteOffset: place + n, as: UInt8.self) }
        #expect(machine.run(code, distance: UInt64(size), rax: 0xAAAA_5555) == .halt)
        let expected = name.hasPrefix("crc32") ? UInt64(Self.crc(0xAAAA_5555, value, bytes: size)) : result
        #expect(machine.core.architecturalState.gpr[0] == expected, "\(name)")
    }
    @Test func whatIsStoredIsAsWide() throws {
        let machine = try EdgeOfMemory(.bits16)
        #expect(machine.run([0x0F, 0x38, 0xF1, 0x04], distance: 2, rax: 0xAAAA_5501) == .halt)  // movbe [si], ax
        #expect(machine.guarded.bytes.loadUnaligned(fromByteOffset: 0xFFFC, as: UInt32.self) == 0x0155_0000)
    }
    private static func crc(_ start: UInt32, _ value: UInt32, bytes: Int) -> UInt32 {
        (0..<bytes * 8).reduce(start) { crc, bit in crc >> 1 ^ ((crc ^ value >> UInt32(bit)) & 1 == 1 ? 0x82F6_3B78 : 0) }
    }
}
