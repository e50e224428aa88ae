import DiskStorage
import Foundation
import GuestMemory
import Testing
import VirtioDevices

/// Drivers that break the rules of VIRTIO 1.2 § 2.7 get a device that needs a reset, and works again after it.
@Suite(.serialized) struct HostileDriverTests {
    private func entropy() throws -> FakeDriver {
        try FakeDriver(try EntropyDevice(), memory: try GuestMemory(layout: [(0, 1 << 20)]))
    }
    private func expectBroken(_ publish: (FakeDriver) -> Void) throws {
        let driver = try entropy()
        publish(driver)
        #expect(driver.eventually { driver.needsReset })
        driver.initialise()
        #expect(!driver.needsReset)
        driver.publish([.writable(0x4000, 64)])
        #expect(driver.waitForUsed(1))
        #expect(driver.usedLength(0) == 64)
    }

    @Test func wellFormedRequestIsServed() throws {
        let driver = try entropy()
        driver.publish([.writable(0x4000, 64)])
        #expect(driver.waitForUsed(1))
        #expect(try driver.memory.read(0x4000, 64).contains { $0 != 0 })
    }
    @Test func headBeyondTheTableNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16)], head: 16) } }
    @Test func headOfAllOnesNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16)], head: 0xFFFF) } }
    @Test func chainLoopingOnItselfNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16, next: 0)]) } }
    @Test func twoDescriptorLoopNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16, next: 1), .writable(0x5000, 16, next: 0)]) } }
    @Test func nextBeyondTheTableNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16, next: 900)]) } }
    @Test func addressOutsideMemoryNeedsReset() throws { try expectBroken { $0.publish([.writable(0x1_0000_0000, 16)]) } }
    @Test func addressThatWrapsNeedsReset() throws { try expectBroken { $0.publish([.writable(.max - 8, 16)]) } }
    @Test func bufferAcrossTheEndOfMemoryNeedsReset() throws { try expectBroken { $0.publish([.writable((1 << 20) - 8, 16)]) } }
    @Test func oversizedBufferNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, .max)]) } }
    @Test func readableAfterWritableNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16, next: 1), .readable(0x5000, 16)]) } }
    @Test func availableIndexTooFarAheadNeedsReset() throws { try expectBroken { $0.publish([.writable(0x4000, 16)], skip: 17) } }
    @Test func indirectTableOutsideMemoryNeedsReset() throws { try expectBroken { $0.publish([.indirect(0xFFFF_0000_0000, 32)]) } }
    @Test func indirectTableOfOddLengthNeedsReset() throws { try expectBroken { $0.publish([.indirect(0x4000, 17)]) } }
    @Test func emptyIndirectTableNeedsReset() throws { try expectBroken { $0.publish([.indirect(0x4000, 0)]) } }
    @Test func nestedIndirectTableNeedsReset() throws {
        try expectBroken { driver in
            driver.describe([.indirect(0x5000, 16)], at: 0x4000)
            driver.publish([.indirect(0x4000, 16)])
        }
    }
    @Test func zeroLengthChainIsCompletedWithNothing() throws {
        let driver = try entropy()
        driver.publish([.writable(0x4000, 0)])
        #expect(driver.waitForUsed(1))
        #expect(driver.usedLength(0) == 0)
    }
    @Test func hugeRequestIsCutShort() throws {
        let driver = try entropy()
        driver.publish([.writable(0x2_0000, 0x8_0000)])
        #expect(driver.waitForUsed(1))
        #expect(driver.usedLength(0) == 64 * 1024)
    }
    @Test func queueOutsideMemoryNeedsReset() throws {
        let driver = try entropy()
        driver.common(0x14, 0, size: 1)
        driver.common(0x14, 3, size: 1)
        driver.common(0x08, 1)
        driver.common(0x0C, 1)
        driver.common(0x14, 11, size: 1)
        driver.common(0x16, 0, size: 2)
        driver.common(0x20, 0xFFFF_FFFF_FFFF_F000, size: 8)
        driver.common(0x1C, 1, size: 2)
        driver.common(0x14, 15, size: 1)
        #expect(driver.needsReset)
    }
    @Test func randomRegisterAccessesDoNoHarm() throws {
        let driver = try entropy()
        var random = SystemRandomNumberGenerator()
        for _ in 0..<200_000 {
            let offset = random.next() % 0x8000
            let size = [1, 2, 4, 8][Int(random.next() % 4)]
            if random.next() & 1 == 0 { _ = driver.transport.barRead(offset, size: size) } else { driver.transport.barWrite(offset, random.next(), size: size) }
        }
        driver.initialise()
        driver.publish([.writable(0x4000, 64)])
        #expect(driver.waitForUsed(1))
    }
}
