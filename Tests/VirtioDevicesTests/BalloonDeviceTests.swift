import Foundation
import GuestMemory
import Testing
import VirtioDevices

/// A balloon whose driver says what it likes.
@Suite(.serialized) struct BalloonDeviceTests {
    private func balloon() throws -> (FakeDriver, BalloonDevice) {
        let memory = try GuestMemory(layout: [(0, 1 << 20)])
        let device = try BalloonDevice(memory: memory)
        return (try FakeDriver(device, memory: memory), device)
    }
    private func fill(_ driver: FakeDriver, _ pages: ClosedRange<UInt64>) throws {
        for page in pages { try driver.memory.write([UInt8](repeating: 0xAA, count: 4096), at: page * 4096) }
    }
    private func isZero(_ driver: FakeDriver, _ page: UInt64) throws -> Bool { try driver.memory.read(page * 4096, 4096).allSatisfy { $0 == 0 } }
    private func numbers(_ pages: [UInt32]) -> [UInt8] { pages.flatMap { page in (0..<4).map { UInt8(truncatingIfNeeded: page >> UInt32($0 * 8)) } } }

    @Test func pagesThatAreGivenAreEmptyAndNoOthers() throws {
        let (driver, _) = try balloon()
        try fill(driver, 0x40...0x48)
        try driver.memory.write(numbers([0x43, 0x42, 0x41, 0x46]), at: 0x4000)
        driver.publish([.readable(0x4000, 7, next: 1), .readable(0x4007, 9)])
        #expect(driver.waitForUsed(1))
        for page in [0x41, 0x42, 0x43, 0x46] as [UInt64] { #expect(try isZero(driver, page)) }
        for page in [0x40, 0x44, 0x45, 0x47, 0x48] as [UInt64] { #expect(try !isZero(driver, page)) }
    }
    @Test func pagesOutsideMemoryDoNoHarm() throws {
        let (driver, _) = try balloon()
        try fill(driver, 0x40...0x41)
        try driver.memory.write(numbers([0xFFFF_FFFF, 0x100, 0xFF, 0x8000_0000, 0xFFFF_FFFE, 0x101]), at: 0x4000)
        driver.publish([.readable(0x4000, 24)])
        #expect(driver.waitForUsed(1))
        #expect(try !isZero(driver, 0x40))
        #expect(!driver.needsReset)
    }
    @Test func reportedRangesLoseTheirWholePagesOnly() throws {
        let (driver, _) = try balloon()
        try fill(driver, 0x40...0x45)
        driver.publish([.writable(0x4_0800, 0x1800, next: 1), .writable(0x4_3000, 0x1000, next: 2), .writable(0x4_5100, 0x100)], queue: 3)
        #expect(driver.waitForUsed(1, queue: 3))
        for page in [0x41, 0x43] as [UInt64] { #expect(try isZero(driver, page)) }
        for page in [0x40, 0x42, 0x44, 0x45] as [UInt64] { #expect(try !isZero(driver, page)) }
    }
    /// A driver has one buffer of statistics; one that gives more keeps nobody busy.
    @Test func manyBuffersOfStatisticsDoNoHarm() throws {
        let (driver, device) = try balloon()
        for _ in 0..<4 { driver.publish([.readable(0x4000, 20)], queue: 2) }
        func isAsleep() -> Bool {
            let tasks = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")) ?? []
            return tasks.contains { (try? String(contentsOfFile: "/proc/self/task/\($0)/stat", encoding: .utf8))?.contains("(vz-balloon) S") == true }
        }
        #expect(driver.eventually { (0..<5).allSatisfy { _ in isAsleep() } })
        _ = device
        #expect(!driver.needsReset)
    }
    @Test func targetIsShownAndTheAnswerRead() throws {
        let (driver, device) = try balloon()
        device.setTarget(pages: 0x1_2345)
        #expect(device.configRead(0, size: 4) == 0x1_2345)
        device.configWrite(4, 0x77, size: 4)
        #expect(device.actualPages == 0x77)
        device.configWrite(3, .max, size: 8)
        #expect(device.actualPages == 0x77)
        _ = driver
    }
    /// What was just freed is asked for, and given back to the guest when it has come.
    @Test func muchThatIsFreeIsTakenAtOnce() throws {
        let memory = try GuestMemory(layout: [(0, 512 << 20)])
        let device = try BalloonDevice(memory: memory)
        let driver = try FakeDriver(device, memory: memory)
        device.setTarget(pages: 100)
        device.configWrite(4, 100, size: 4)
        driver.publish([.readable(0x4000, 20)], queue: 2)
        // The host holds 300 MiB; the guest says that it uses 100 of its 512.
        let block = [UInt8](repeating: 0xAA, count: 1 << 20)
        for part in 1...300 as ClosedRange<UInt64> { try memory.write(block, at: part << 20) }
        try memory.store(UInt16(GuestMemoryStatistics.Tag.free), at: 0x4000)
        try memory.store(UInt64(412 << 20), at: 0x4002)
        driver.publish([.writable(200 << 20, 1 << 20)], queue: 3)
        #expect(driver.waitForUsed(1, queue: 3))
        #expect(driver.waitForUsed(1, queue: 2))
        #expect(device.configRead(0, size: 4) == 100)
        driver.publish([.readable(0x4000, 20)], queue: 2)
        #expect(driver.eventually { device.configRead(0, size: 4) != 100 })
        // Somewhat more than 200 MiB, and never what the guest needs to go on.
        let asked = ((device.configRead(0, size: 4) - 100) * 4096) >> 20
        #expect((195...230).contains(asked), "\(asked) MiB")
        device.configWrite(4, 10_000, size: 4)
        #expect(device.configRead(0, size: 4) != 100)
        device.configWrite(4, device.configRead(0, size: 4), size: 4)
        #expect(driver.eventually { device.configRead(0, size: 4) == 100 })
    }
    /// A guest may say anything of its memory.
    @Test func whatAGuestSaysOfItsMemoryIsDoubted() throws {
        let memory = try GuestMemory(layout: [(0, 512 << 20)])
        let block = [UInt8](repeating: 0xAA, count: 1 << 20)
        for part in 1...300 as ClosedRange<UInt64> { try memory.write(block, at: part << 20) }
        for (free, given) in [(.max, 0), (0, 0), (512 << 20, .max), (513 << 20, 0), (100 << 20, 0), (300 << 20, 0)] as [(UInt64, UInt32)] {
            let device = try BalloonDevice(memory: memory)
            let driver = try FakeDriver(device, memory: memory)
            device.configWrite(4, UInt64(given), size: 4)
            driver.publish([.readable(0x4000, 20)], queue: 2)
            try memory.store(UInt16(GuestMemoryStatistics.Tag.free), at: 0x4000)
            try memory.store(free, at: 0x4002)
            driver.publish([.writable(400 << 20, 1 << 20)], queue: 3)
            #expect(driver.waitForUsed(1, queue: 2))
            driver.publish([.readable(0x4000, 20)], queue: 2)
            driver.publish([.writable(400 << 20, 1 << 20)], queue: 3)
            #expect(driver.waitForUsed(2, queue: 3))
            usleep(20_000)
            #expect(device.configRead(0, size: 4) == 0, "free \(free), given \(given)")
        }
    }
    @Test func brokenChainsNeedAReset() throws {
        let (driver, _) = try balloon()
        for queue in 0..<3 {
            driver.publish([.readable(0xFFFF_FFFF_0000, 64)], queue: queue)
            #expect(driver.eventually { driver.needsReset })
            driver.initialise()
        }
        driver.publish([.readable(0x4000, 4)])
        #expect(driver.waitForUsed(1))
    }
}
