import Foundation
import TestSupport
import Testing
import X86

/// No instruction touches more of its operand than was found to be in memory: each one, of each map, with each prefix, on operands that end where memory
/// does. Behind that nobody may touch anything (`GuardedMemory`), so one that does ends the test.
@Suite(.serialized) struct OperandWidthTests {
    enum Mode: CaseIterable { case bits16, bits32, bits64, translated }
    private static let maps: [[UInt8]] = [[], [0x0F], [0x0F, 0x38], [0x0F, 0x3A]]
    private static let prefixes: [[UInt8]] = [[], [0x66], [0xF3], [0xF2], [0x66, 0xF3], [0x66, 0xF2]]

    private static let sizes: [UInt64] = [1, 2, 4, 8, 10, 16, 28, 32, 64, 94, 108, 512]

    @Test(arguments: Mode.allCases) func nothingIsTouchedBehindMemory(mode: Mode) throws {
        let machine = try EdgeOfMemory(mode, isInterrupted: true)
        var ends: [String: Int] = [:]
        var random = SeededGenerator(state: DifferentialTests.seed)
        func run(_ code: [UInt8]) {
            let distance = Self.sizes[Int(random.next() % UInt64(Self.sizes.count))]
            switch machine.run(code, distance: distance) {
            case .internalError: ends["astray", default: 0] += 1
            case let end: ends["\(end)", default: 0] += 1
            }
        }
        for map in Self.maps {
            for prefix in Self.prefixes {
                for opcode in UInt8.min...UInt8.max {
                    for register in UInt8(0)..<8 {
                        let wide = random.next() & 1 == 0 && mode.isLong
                        run(prefix + (wide ? [0x48] : []) + map + [opcode, register << 3 | mode.address, UInt8(truncatingIfNeeded: random.next())])
                    }
                }
            }
        }
        // VEX: any W, L and vvvv.
        for map in UInt8(1)...3 {
            for _ in 0..<4 * 256 * 8 {
                let bits = random.next()
                let (opcode, register) = (UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8) & 7)
                run([0xC4, 0xE0 | map, UInt8(truncatingIfNeeded: bits >> 16), opcode, register << 3 | mode.address, UInt8(truncatingIfNeeded: bits >> 24)])
            }
        }
        print("operands at the end of memory, \(mode): \(ends.sorted { $0.key < $1.key })")
        #expect(ends["halt", default: 0] > 1000)
    }
}
extension OperandWidthTests.Mode {
    var isLong: Bool { self == .bits64 || self == .translated }
    /// [si], or [rsi].
    var address: UInt8 { self == .bits16 ? 4 : 6 }
}

/// 64 KiB that nothing follows, and all segments from 0.
final class EdgeOfMemory: X86Environment {
    private static let size = 0x1_0000
    let guarded: GuardedMemory
    private let memory: PhysicalMemory
    private(set) var core: X86Core!
    private let start: X86State
    /// mov [si], dl, or mov [rsi], dl: from then on the TLB has the page, and operands there are the host's own.
    private let touch: [UInt8]

    /// - Parameter isInterrupted: runs end after a while.
    init(_ mode: OperandWidthTests.Mode, isInterrupted: Bool = false) throws {
        guarded = try GuardedMemory(size: Self.size)
        memory = PhysicalMemory(regions: [(0, UInt64(Self.size), guarded.bytes)])
        var state = mode.isLong ? TestMachine.flatState : X86State()
        if !mode.isLong {
            let (code, data): (UInt16, UInt16) = mode == .bits32 ? (0xC9B, 0xC93) : (0x09B, 0x093)
            state.cr0 = mode == .bits32 ? 0x11 : 0x10
            state.segments = (0..<6).map { X86Segment(selector: 0, base: 0, limit: .max, attributes: $0 == 1 ? code : data) }
            (state.x87[0], state.x87[1]) = (0x7F, 0x03)
        }
        // SSE, and AVX as far as the core has it.
        state.cr4 |= 0x4_0600
        state.xcr0 = 7
        start = state
        touch = [0x88, 0x10 | mode.address]
        core = X86Core(memory: memory, environment: self)
        core.translationThreshold = mode == .translated ? 1 : 0
        if isInterrupted { core.interruptRuns(every: 300) }
    }
    /// - Parameter distance: from the operand to the end of memory.
    func run(_ code: [UInt8], distance: UInt64, rax: UInt64 = 0x0102_0304) -> X86Exit {
        let all = touch + code + [UInt8](repeating: 0xF4, count: 8)
        guarded.bytes.copyMemory(from: all, byteCount: all.count)
        memory.noteDeviceWrite(0, all.count)
        var state = start
        (state.gpr[0], state.gpr[2], state.gpr[4], state.gpr[6]) = (
            rax, UInt64(guarded.bytes.load(fromByteOffset: Self.size - Int(distance), as: UInt8.self)), 0x8000, UInt64(Self.size) - distance
        )
        core.architecturalState = state
        return core.run()
    }
}
