import DiskStorage
import Foundation
import GuestMemory
import Hypervisor
import LinuxSystem
import NVMe
import TestSupport
import Testing

/// A driver that writes what it likes into registers, doorbells, queues and page lists.
@Suite struct HostileNVMeTests {
    private final class Machine: HypervisorMachine, @unchecked Sendable {  // nothing in it
        var vcpus: [any VirtualCPU] { [] }
        func signal(_ message: MSIMessage) {}
        func makeMessageRoute() -> (any MessageRoute)? { nil }
        func setLine(_ gsi: UInt32, level: Bool) {}
        func bindNotify(address: UInt64, eventFileDescriptor: Int32) -> Bool { false }
        func unbindNotify(address: UInt64, eventFileDescriptor: Int32) {}
        func makeImage() throws -> MachineImage { throw EngineError("There is nothing behind this machine.") }
        func restore(_ image: MachineImage) throws {}
    }
    private final class Drive {
        let memory: GuestMemory
        let controller: NVMeController
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("nvme-\(UUID().uuidString)")
        let machine = Machine()
        private var tails: [Int: Int] = [:]
        /// Where the doorbells in memory are, if there are any.
        var shadows: UInt64?

        init() throws {
            memory = try GuestMemory(layout: [(0, 1 << 20)])
            try Data(count: 1 << 20).write(to: url)
            controller = NVMeController(
                backend: try RawDisk(path: url.path, readOnly: false), serial: "x", queuePairs: 2, memory: memory, machine: machine, gate: try DeviceGate())
        }
        deinit {
            controller.shutDown()
            try? FileManager.default.removeItem(at: url)
        }
        func write(_ offset: UInt64, _ value: UInt64, size: Int = 4) { controller.barWrite(offset, value, size: size) }
        func read(_ offset: UInt64) -> UInt64 { controller.barRead(offset, size: 4) }
        /// Admin queues of 16 entries at 0x1000 and 0x2000.
        func enable() {
            write(0x14, 0)
            write(0x24, 15 | 15 << 16)
            write(0x28, 0x1000, size: 8)
            write(0x30, 0x2000, size: 8)
            write(0x14, 1)
            tails = [:]
        }
        /// Puts a command on a queue of 16 entries; returns whether its completion came, and its status.
        func submit(_ queue: Int, _ words: [UInt32]) throws -> UInt16? {
            let base = queue == 0 ? 0x1000 : UInt64(0x3000 + queue * 0x2000)
            let tail = tails[queue] ?? 0
            var command = [UInt32](repeating: 0, count: 16)
            for (index, word) in words.enumerated() { command[index] = word }
            for (index, word) in command.enumerated() { try memory.store(word, at: base + UInt64(tail * 64 + index * 4)) }
            let next = (tail + 1) % 16
            tails[queue] = next
            let entry = base + 0x1000 + UInt64(tail * 16)
            let before: UInt16 = try memory.load(entry + 14)
            if let shadows, queue != 0 { try memory.store(UInt32(next), at: shadows + UInt64(queue * 8)) }
            write(0x1000 + UInt64(queue * 8), UInt64(next))
            for _ in 0..<2000 {
                let status: UInt16 = try memory.load(entry + 14)
                if status & 1 != before & 1 {
                    if let shadows, queue != 0 { try memory.store(UInt32(next), at: shadows + UInt64(queue * 8 + 4)) }
                    write(0x1004 + UInt64(queue * 8), UInt64(next))
                    return status >> 1 & 0x7FF
                }
                if queue == 0 { return nil }
                usleep(500)
            }
            return nil
        }
        func makeQueues() throws {
            #expect(try submit(0, [0x05, 0, 0, 0, 0, 0, 0x6000, 0, 0, 0, 1 | 15 << 16, 3 | 1 << 16]) == 0)
            #expect(try submit(0, [0x01, 0, 0, 0, 0, 0, 0x5000, 0, 0, 0, 1 | 15 << 16, 1 | 1 << 16]) == 0)
        }
    }

    @Test func readsAndWritesAreChecked() throws {
        let drive = try Drive()
        drive.enable()
        #expect(drive.read(0x1C) == 1)
        try drive.makeQueues()
        try drive.memory.write([UInt8](repeating: 0x5A, count: 8192), at: 0x1_0000)
        func io(_ opcode: UInt32, _ first: UInt64, _ second: UInt64, block: UInt64, count: UInt32, namespace: UInt32 = 1) throws -> UInt16? {
            try drive.submit(
                1,
                [
                    opcode, namespace, 0, 0, 0, 0, UInt32(truncatingIfNeeded: first), UInt32(first >> 32), UInt32(truncatingIfNeeded: second), UInt32(second >> 32),
                    UInt32(truncatingIfNeeded: block), UInt32(block >> 32), count - 1,
                ])
        }
        #expect(try io(1, 0x1_0000, 0x1_1000, block: 8, count: 16) == 0)
        #expect(try io(2, 0x2_0200, 0x2_1000, block: 8, count: 14) == 0)
        #expect(try drive.memory.read(0x2_0200, 7168).allSatisfy { $0 == 0x5A })
        #expect(try drive.memory.read(0x2_1E00, 16).allSatisfy { $0 == 0 })
        #expect(try io(2, 0x2_0000, 0, block: 2048, count: 1) == 0x80)
        #expect(try io(2, 0x2_0000, 0, block: .max, count: 1) == 0x80)
        #expect(try io(2, 0x2_0000, 0, block: 2041, count: 8) == 0x80)
        #expect(try io(2, 0x2_0000, 0, block: 0, count: 1, namespace: 2) == 0x0B)
        #expect(try io(2, 0xFFFF_FFFF_F000, 0, block: 0, count: 1) == 0x02)
        #expect(try io(2, 0x2_0001, 0, block: 0, count: 1) == 0x02)
        #expect(try io(2, 0x2_0000, 0x2_1001, block: 0, count: 16) == 0x13)
        #expect(try io(2, 0x2_0000, 0x2_1004, block: 0, count: 64) == 0x13)
        #expect(try io(2, 0x2_0000, 0x10_0000, block: 0, count: 64) == 0x02)
        #expect(try io(2, 0x2_0000, 0x3_0000, block: 0, count: 0x8000) == 0x80)
        #expect(try io(0x7F, 0, 0, block: 0, count: 1) == 0x01)
        // A page list that leads to itself, at a page's last entry.
        try drive.memory.store(UInt64(0x4_0000), at: 0x4_0FF8)
        for index in 0..<511 { try drive.memory.store(UInt64(0x4_0000), at: 0x4_0000 + UInt64(index * 8)) }
        #expect(try io(2, 0x2_0000, 0x4_0FF8, block: 0, count: 1024) == 0)
    }
    @Test func administrationIsChecked() throws {
        let drive = try Drive()
        drive.enable()
        #expect(try drive.submit(0, [0x06, 0, 0, 0, 0, 0, 0x8000, 0, 0, 0, 1]) == 0)
        #expect(try drive.memory.read(0x8000 + 512, 2) == [0x66, 0x44])
        #expect(try drive.submit(0, [0x06, 9, 0, 0, 0, 0, 0x8000, 0, 0, 0, 0]) == 0x0B)
        #expect(try drive.submit(0, [0x06, 1, 0, 0, 0, 0, 0xFFFF_F000, 0, 0, 0, 0]) == 0x02)
        #expect(try drive.submit(0, [0x05, 0, 0, 0, 0, 0, 0x6000, 0, 0, 0, 3 | 15 << 16, 1]) == 0x101)
        #expect(try drive.submit(0, [0x05, 0, 0, 0, 0, 0, 0x6000, 0, 0, 0, 1 | 0xFFFF << 16, 1]) == 0x102)
        #expect(try drive.submit(0, [0x05, 0, 0, 0, 0, 0, 0x6000, 0, 0, 0, 1 | 15 << 16, 3 | 9 << 16]) == 0x108)
        #expect(try drive.submit(0, [0x05, 0, 0, 0, 0, 0, 0x6001, 0, 0, 0, 1 | 15 << 16, 1]) == 0x02)
        #expect(try drive.submit(0, [0x01, 0, 0, 0, 0, 0, 0x5000, 0, 0, 0, 1 | 15 << 16, 1 | 1 << 16]) == 0x100)
        try drive.makeQueues()
        #expect(try drive.submit(0, [0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == 0x10C)
        #expect(try drive.submit(0, [0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == 0)
        #expect(try drive.submit(0, [0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == 0)
        #expect(try drive.submit(0, [0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == 0x101)
        // Event requests stay open; one too many does not.
        for _ in 0..<4 { #expect(try drive.submit(0, [0x0C]) == nil) }
    }
    @Test func doorbellsInMemoryAreChecked() throws {
        let drive = try Drive()
        drive.enable()
        try drive.makeQueues()
        func share(_ doorbells: UInt32, _ events: UInt32) throws -> UInt16? { try drive.submit(0, [0x7C, 0, 0, 0, 0, 0, doorbells, 0, events, 0]) }
        #expect(try share(0x9004, 0xA000) == 0x02)
        #expect(try share(0x9000, 0x10_0000) == 0x02)
        #expect(try share(0xFFFF_F000, 0xA000) == 0x02)
        func read() throws -> UInt16? { try drive.submit(1, [2, 1, 0, 0, 0, 0, 0x2_0000, 0, 0, 0, 0, 0, 0]) }
        #expect(try read() == 0)
        // The queues that are there go on from where they are.
        #expect(try share(0x9000, 0xA000) == 0)
        #expect(try drive.memory.load(0x9008) as UInt32 == 1)
        drive.shadows = 0x9000
        for _ in 0..<40 { #expect(try read() == 0) }
        // Places that are none, in both; then as if nothing had been.
        let (tail, head): (UInt32, UInt32) = (try drive.memory.load(0x9008), try drive.memory.load(0x900C))
        for value in [16, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, .max] as [UInt32] {
            try drive.memory.store(value, at: 0x9008)
            try drive.memory.store(value, at: 0x900C)
            drive.write(0x1008, 0)
            drive.write(0x100C, 0)
        }
        usleep(20_000)
        try drive.memory.store(tail, at: 0x9008)
        try drive.memory.store(head, at: 0x900C)
        for _ in 0..<40 { #expect(try read() == 0) }
        #expect(try share(0x9000, 0xA000) == 0)
        for _ in 0..<20 { #expect(try read() == 0) }
    }
    @Test func randomAccessesDoNoHarm() throws {
        var random = SeededGenerator(state: 99)
        for _ in 0..<40 {
            let drive = try Drive()
            drive.enable()
            _ = try? drive.makeQueues()
            for _ in 0..<400 {
                let address = UInt64.random(in: 0..<(1 << 20) / 8, using: &random) * 8
                try drive.memory.store(Bool.random(using: &random) ? UInt64.random(in: 0..<1 << 20, using: &random) : random.next(), at: address)
                switch Int.random(in: 0..<10, using: &random) {
                case 0: drive.write(UInt64.random(in: 0..<0x40, using: &random) & ~3, random.next(), size: [4, 8].randomElement(using: &random) ?? 4)
                case 1: drive.write(0x14, UInt64(Bool.random(using: &random) ? 1 : 0))
                case 2: _ = drive.controller.barRead(UInt64.random(in: 0..<0x8000, using: &random), size: [1, 2, 4, 8].randomElement(using: &random) ?? 4)
                case 3..<7: drive.write(0x1000 + UInt64.random(in: 0..<8, using: &random) * 4, UInt64.random(in: 0..<20, using: &random))
                default:
                    let opcode = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7C, 0x80].randomElement(using: &random) ?? 0 as UInt32
                    let mask = Bool.random(using: &random) ? .max : ~0xFFF as UInt32
                    _ = try drive.submit(0, [opcode] + (0..<15).map { _ in UInt32.random(in: 0..<1 << 20, using: &random) & mask })
                }
            }
        }
    }
}
