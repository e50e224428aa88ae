import Foundation
import GuestMemory
import LinuxSystem
import Testing
import VirtioDevices

/// A multi-port console under a driver that keeps to the rules, and under one that does not. VIRTIO 1.2 § 5.3.
@Suite(.serialized) struct ConsoleControlTests {
    private static let buffer: UInt64 = 0x4_0000
    private static let control = 3
    private static let controlReceive = 2

    private func withConsole(_ body: (FakeDriver) throws -> Void) throws {
        let loop = try EventLoop(name: "test-loop")
        defer { loop.stop() }
        let endpoint = ConsoleEndpoint.disconnected
        let device = ConsoleDevice(
            ports: [0: .init(name: nil, isConsole: true, endpoint: endpoint), 5: .init(name: "five", isConsole: false, endpoint: endpoint)], maximumPorts: 8, multiPort: true,
            loop: loop)
        let driver = try FakeDriver(device, memory: try GuestMemory(layout: [(0, 1 << 20)]))
        try body(driver)
        driver.transport.reset()
    }
    private func message(_ driver: FakeDriver, _ port: UInt32, _ event: UInt16, _ value: UInt16, used: UInt16) throws {
        try driver.memory.store(port, at: Self.buffer)
        try driver.memory.store(event, at: Self.buffer + 4)
        try driver.memory.store(value, at: Self.buffer + 6)
        driver.publish([.readable(Self.buffer, 8)], queue: Self.control)
        #expect(driver.waitForUsed(used, queue: Self.control))
    }

    @Test func portsAreAnnouncedWithTheirNames() throws {
        try withConsole { driver in
            try message(driver, 0, 0, 1, used: 1)
            var seen: [[UInt8]] = []
            for index in 0..<2 {
                driver.publish([.writable(Self.buffer + 0x1000, 64)], queue: Self.controlReceive)
                #expect(driver.waitForUsed(UInt16(index + 1), queue: Self.controlReceive))
                seen.append(try driver.memory.read(Self.buffer + 0x1000, 8))
            }
            #expect(seen == [[0, 0, 0, 0, 1, 0, 1, 0], [5, 0, 0, 0, 1, 0, 1, 0]])
            try message(driver, 5, 3, 1, used: 2)
            driver.publish([.writable(Self.buffer + 0x1000, 64)], queue: Self.controlReceive)
            #expect(driver.waitForUsed(3, queue: Self.controlReceive))
            #expect(try driver.memory.read(Self.buffer + 0x1008, 4) == Array("five".utf8))
        }
    }
    @Test func unknownPortsEventsAndShortMessagesAreIgnored() throws {
        try withConsole { driver in
            var used: UInt16 = 0
            for (port, event, value) in [(0xFFFF_FFFF, 3, 1), (7, 3, 1), (5, 0xFFFF, 9), (1 << 31, 6, 1), (5, 6, 0xFFFF)] as [(UInt32, UInt16, UInt16)] {
                used += 1
                try message(driver, port, event, value, used: used)
            }
            for length in [0, 1, 5, 7] as [UInt32] {
                used += 1
                driver.publish([.readable(Self.buffer, length)], queue: Self.control)
                #expect(driver.waitForUsed(used, queue: Self.control))
            }
            #expect(!driver.needsReset)
        }
    }
    /// A driver that asks and asks, and never takes an answer.
    @Test func answersThatNobodyTakesAreBounded() throws {
        try withConsole { driver in
            for index in 1...3000 { try message(driver, 0, 0, 1, used: UInt16(index)) }
            #expect(!driver.needsReset)
        }
    }
    @Test(arguments: [0, 1, 2, 3, 12, 13]) func brokenChainsOnAnyQueueNeedReset(queue: Int) throws {
        try withConsole { driver in
            try message(driver, 0, 0, 1, used: 1)
            try message(driver, 0, 3, 1, used: 2)
            try message(driver, 5, 3, 1, used: 3)
            for port in [0, 5] as [UInt32] { try message(driver, port, 6, 1, used: port == 0 ? 4 : 5) }
            driver.publish([.readable(0xFFFF_0000_0000, 16)], queue: queue)
            // A receive queue is looked at when there is something to put into it.
            if queue == 0 || queue == 12 { return }
            #expect(driver.eventually { driver.needsReset })
            driver.initialise()
            #expect(!driver.needsReset)
            try message(driver, 0, 0, 1, used: 1)
        }
    }
}
