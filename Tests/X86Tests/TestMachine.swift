import CX86
import Foundation
import TestSupport
import Testing
import X86

/// A core over one piece of RAM, in 64-bit mode with paging off (linear = physical): for running short code.
final class TestMachine: X86Environment {
    static let base: UInt64 = 0x1357_9000  // no power of two: random values must not hit it
    let memory: PhysicalMemory
    let bytes: UnsafeMutableRawPointer
    let size: Int
    private(set) var core: X86Core!
    var ports: [(port: UInt16, value: UInt32)] = []

    init(base: UInt64 = TestMachine.base, size: Int = 1 << 20) {
        self.size = size
        bytes = .allocate(byteCount: size, alignment: 4096)
        bytes.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        memory = PhysicalMemory(regions: [(base, UInt64(size), bytes)])
        core = X86Core(memory: memory, environment: self)
    }
    deinit { bytes.deallocate() }

    /// 64-bit ring 0 with flat segments, interrupts off.
    static var flatState: X86State {
        var state = X86State()
        state.cr0 = 0x8000_0011 & ~0x8000_0000
        state.cr4 = 0x620
        state.efer = 0xD01
        state.segments = (0..<6).map { index in
            X86Segment(selector: index == 1 ? 8 : 16, base: 0, limit: .max, attributes: index == 1 ? 0xA9B : 0xC93)
        }
        state.x87[0] = 0x7F
        state.x87[1] = 0x03
        return state
    }

    func portWrite(_ port: UInt16, _ value: UInt32, size: Int) { ports.append((port, value)) }
    var taskPriority: UInt64 = 0
    var hypercalls: [[UInt64]] = []
    func hypercall(_ number: UInt64, _ arguments: (UInt64, UInt64, UInt64, UInt64)) -> UInt64 {
        hypercalls.append([number, arguments.0, arguments.1, arguments.2, arguments.3])
        return 0 &- 95
    }
}

extension TestMachine {
    func put(_ code: [UInt8], at offset: Int) { for (n, byte) in code.enumerated() { bytes.storeBytes(of: byte, toByteOffset: offset + n, as: UInt8.self) } }
    func put(_ value: UInt64, at offset: Int) { bytes.storeBytes(of: value, toByteOffset: offset, as: UInt64.self) }
    /// Descriptor tables, and a state that begins at 0x100 and has its stack below 0x8000.
    ///
    /// - Parameters:
    ///   - descriptors: behind those of the flat state's code and data.
    ///   - handlers: offsets of the handlers of exceptions.
    func withExceptions(_ handlers: [Int: Int], descriptors: [UInt64] = []) -> X86State {
        let all = [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF] + descriptors
        for (n, descriptor) in all.enumerated() { put(descriptor, at: 0x4000 + 8 * n) }
        for (vector, offset) in handlers {
            let address = Self.base + UInt64(offset)
            put(address & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (address >> 16 & 0xFFFF) << 48, at: 0x5000 + 16 * vector)
            put(address >> 32, at: 0x5008 + 16 * vector)
        }
        var state = Self.flatState
        state.gpr[4] = Self.base + 0x8000
        state.gdt = (Self.base + 0x4000, UInt32(8 * all.count - 1))
        (state.idtBase, state.idtLimit, state.rip) = (Self.base + 0x5000, 0xFFF, Self.base + 0x100)
        return state
    }
    /// Runs code until it halts, from a state with the given registers.
    func run(_ code: [UInt8], registers: [Int: UInt64] = [:]) -> X86Exit {
        put(code, at: 0x100)
        memory.noteDeviceWrite(TestMachine.base + 0x100, code.count)
        var state = Self.flatState
        for (n, value) in registers { state.gpr[n] = value }
        state.rip = TestMachine.base + 0x100
        core.architecturalState = state
        return core.run()
    }
}

/// Guest memory between 16 GiB that nobody may touch on either side: an access there ends the process, and with it the test.
final class GuardedMemory {
    private static let guardSize = 16 << 30
    let size: Int
    private let mapping: UnsafeMutableRawPointer
    var bytes: UnsafeMutableRawPointer { mapping + Self.guardSize }

    init(size: Int) throws {
        self.size = size
        let map = mmap(nil, size + 2 * Self.guardSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        mapping = try #require(map != MAP_FAILED ? map : nil)
        try #require(mprotect(bytes, size, PROT_READ | PROT_WRITE) == 0)
    }
    deinit { munmap(mapping, size + 2 * Self.guardSize) }
}

extension X86Core {
    /// Has `run` come back every so many microseconds, for as long as there is this core.
    func interruptRuns(every microseconds: UInt32) {
        Thread { [weak self] in
            while self != nil {
                self?.requestExit()
                usleep(microseconds)
            }
        }.start()
    }
}

/// A board with nothing on it.
extension X86Environment {
    func portRead(_ port: UInt16, size: Int) -> UInt32 { 0xFFFF_FFFF }
    func portWrite(_ port: UInt16, _ value: UInt32, size: Int) {}
    func memoryRead(_ address: UInt64, size: Int) -> UInt64 { .max }
    func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int) {}
    func readMSR(_ index: UInt32) -> UInt64? { nil }
    func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool { false }
    func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) { (0, 0, 0, 0) }
    func hypercall(_ number: UInt64, _ arguments: (UInt64, UInt64, UInt64, UInt64)) -> UInt64 { 0 &- 1000 }
    func acknowledgeInterrupt() -> UInt8? { nil }
    var taskPriority: UInt64 {
        get { 0 }
        set {}
    }
}

/// SplitMix64: the same cases on every machine.
typealias Generator = SeededGenerator
extension SeededGenerator {
    /// A value that arithmetic finds hard, or any.
    mutating func corner() -> UInt64 {
        switch next() % 8 {
        case 0: return 0
        case 1: return .max
        case 2: return 1 << (next() & 63)
        case 3: return (1 << (next() & 63)) &- 1
        case 4: return next() & 0xFF
        case 5: return UInt64(bitPattern: Int64(truncatingIfNeeded: next()) >> Int64(next() & 63))
        default: return next()
        }
    }
}
