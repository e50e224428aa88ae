import CAllocationCounter
import DiskStorage
import Foundation
import GuestMemory
import Hypervisor
import LinuxSystem
import PlatformDevices
import Testing
import VirtioDevices

/// VIRTIO 1.2 § 5.2 through a fake driver.
@Suite(.serialized) struct BlockDeviceTests {
    private static let header: UInt64 = 0x4000
    private static let data: UInt64 = 0x5000
    private static let statusByte: UInt64 = 0x4800

    private func withDevice(readOnly: Bool = false, _ body: (FakeDriver, URL) throws -> Void) throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("block-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: url) }
        try Data(repeating: 0x5A, count: 64 * 512).write(to: url)
        let disk = try RawDisk(path: url.path, readOnly: readOnly)
        try body(try FakeDriver(try BlockDevice(storage: disk, identifier: "id", queueCount: 1), memory: try GuestMemory(layout: [(0, 1 << 20)])), url)
    }
    /// Runs one request; returns the status byte.
    private func request(_ driver: FakeDriver, kind: UInt32, sector: UInt64, _ middle: [FakeDriver.Descriptor], used: UInt16) throws -> UInt8 {
        try driver.memory.store(kind, at: Self.header)
        try driver.memory.store(sector, at: Self.header + 8)
        try driver.memory.store(UInt8(0xEE), at: Self.statusByte)
        var chain: [FakeDriver.Descriptor] = [.readable(Self.header, 16, next: 1)]
        for (index, descriptor) in middle.enumerated() {
            var descriptor = descriptor
            descriptor.flags |= 1
            descriptor.next = UInt16(index + 2)
            chain.append(descriptor)
        }
        chain.append(.writable(Self.statusByte, 1))
        driver.publish(chain)
        #expect(driver.waitForUsed(used))
        return try driver.memory.load(Self.statusByte)
    }

    private func check(_ holds: Bool, at location: SourceLocation = #_sourceLocation) throws { #expect(holds, sourceLocation: location) }

    @Test func readFillsTheBuffer() throws {
        try withDevice { driver, _ in
            try check(request(driver, kind: 0, sector: 3, [.writable(Self.data, 1024)], used: 1) == 0)
            try check(driver.memory.read(Self.data, 1024) == [UInt8](repeating: 0x5A, count: 1024))
        }
    }
    @Test func writeReachesTheFile() throws {
        try withDevice { driver, url in
            try driver.memory.write([UInt8](repeating: 7, count: 512), at: Self.data)
            try check(request(driver, kind: 1, sector: 5, [.readable(Self.data, 512)], used: 1) == 0)
            try check(request(driver, kind: 4, sector: 0, [], used: 2) == 0)
            try check(Data(contentsOf: url)[2560..<3072] == Data(repeating: 7, count: 512))
        }
    }
    @Test(arguments: [64, 63, UInt64.max, 1 << 55] as [UInt64]) func requestsBeyondTheEndFail(sector: UInt64) throws {
        try withDevice { driver, url in
            try check(request(driver, kind: 0, sector: sector, [.writable(Self.data, 1024)], used: 1) == 1)
            try check(request(driver, kind: 1, sector: sector, [.readable(Self.data, 1024)], used: 2) == 1)
            try check(Data(contentsOf: url) == Data(repeating: 0x5A, count: 64 * 512))
        }
    }
    @Test func requestOfPartOfASectorFails() throws { try withDevice { driver, _ in try check(request(driver, kind: 0, sector: 0, [.writable(Self.data, 100)], used: 1) == 1) } }
    @Test func unknownRequestIsUnsupported() throws { try withDevice { driver, _ in try check(request(driver, kind: 99, sector: 0, [], used: 1) == 2) } }
    @Test func writeToReadOnlyDiskFails() throws {
        try withDevice(readOnly: true) { driver, _ in try check(request(driver, kind: 1, sector: 0, [.readable(Self.data, 512)], used: 1) == 1) }
    }
    @Test func identifierIsAnswered() throws {
        try withDevice { driver, _ in
            try check(request(driver, kind: 8, sector: 0, [.writable(Self.data, 20)], used: 1) == 0)
            try check(driver.memory.read(Self.data, 3) == Array("id".utf8) + [0])
        }
    }
    @Test func writeZeroesClearsItsRange() throws {
        try withDevice { driver, url in
            try driver.memory.store(UInt64(2), at: Self.data)
            try driver.memory.store(UInt32(4), at: Self.data + 8)
            try driver.memory.store(UInt32(0), at: Self.data + 12)
            try check(request(driver, kind: 13, sector: 0, [.readable(Self.data, 16)], used: 1) == 0)
            let file = try Data(contentsOf: url)
            #expect(file[1024..<3072].allSatisfy { $0 == 0 })
            #expect(file[3072] == 0x5A)
        }
    }
    @Test func discardBeyondTheEndFails() throws {
        try withDevice { driver, _ in
            try driver.memory.store(UInt64(60), at: Self.data)
            try driver.memory.store(UInt32(100), at: Self.data + 8)
            try driver.memory.store(UInt32(0), at: Self.data + 12)
            try check(request(driver, kind: 11, sector: 0, [.readable(Self.data, 16)], used: 1) == 1)
        }
    }
    @Test func headerSplitOverDescriptorsIsRead() throws {
        try withDevice { driver, _ in
            try driver.memory.store(UInt32(0), at: Self.header)
            try driver.memory.store(UInt64(1), at: Self.header + 8)
            driver.publish([
                .readable(Self.header, 5, next: 1), .readable(Self.header + 5, 11, next: 2), .writable(Self.data, 200, next: 3),
                .writable(Self.data + 200, 312, next: 4), .writable(Self.statusByte, 1),
            ])
            #expect(driver.waitForUsed(1))
            let status: UInt8 = try driver.memory.load(Self.statusByte)
            #expect(status == 0)
            #expect(driver.usedLength(0) == 513)
        }
    }
    @Test func chainWithoutRoomForAStatusIsGivenBack() throws {
        try withDevice { driver, _ in
            driver.publish([.readable(Self.header, 16)])
            #expect(driver.waitForUsed(1))
            #expect(driver.usedLength(0) == 0)
        }
    }

    /// Popping, reading or writing, completing, MSI-X and the software interrupt controller: nothing of it allocates.
    @Test func requestsAllocateNothingInSteadyState() throws {
        try withDevice { driver, _ in
            let controller = try SoftwareInterruptController(cpuCount: 2, clock: GuestClock { 1_000_000 })
            defer { controller.stop() }
            controller.connect(0) { _ in }
            _ = controller.memoryWrite(0, 0xFEE0_00F0, 0x1FF)
            driver.machine.controller = controller
            driver.enableMSIX()
            var used: UInt16 = 0
            func run(_ count: Int) throws {
                for index in 0..<count {
                    used &+= 1
                    let middle: FakeDriver.Descriptor = index % 2 == 0 ? .writable(Self.data, 4096) : .readable(Self.data, 4096)
                    try check(request(driver, kind: UInt32(index % 2), sector: UInt64(index % 8), [middle], used: used) == 0)
                }
            }
            try run(50)
            try #require(try countsAllocations())
            let before = driver.machine.interrupts
            allocation_count_begin("vz-block")
            try run(500)
            let allocations = allocation_count_end()
            #expect(driver.machine.interrupts > before)
            #expect(allocations == 0)
        }
    }
    /// The counter sees what a thread of that name allocates.
    private func countsAllocations() throws -> Bool {
        allocation_count_begin("vz-block")
        try HostThread(name: "vz-block-probe") { _ = [UInt8](repeating: 1, count: Int.random(in: 1000...2000)) }.join()
        return allocation_count_end() > 0
    }
}
