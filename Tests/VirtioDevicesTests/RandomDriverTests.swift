import DiskStorage
import Foundation
import GuestMemory
import HostNetwork
import LinuxSystem
import TestSupport
import Testing
import VirtioDevices

/// Drivers that write anything: rings, descriptors, and what those lead to, while the device reads them. Whatever comes, the device goes on or needs a
/// reset, and after that it works.
@Suite(.serialized) struct RandomDriverTests {
    enum Kind: CaseIterable { case entropy, block, network, vsock, balloon, console }

    @Test(arguments: Kind.allCases) func anythingDoesNoHarm(kind: Kind) throws {
        try withDriver(of: kind) { driver, queues in
            var broken = 0
            for seed in Fuzzing.seeds(60) {
                var random = SeededGenerator(state: UInt64(seed))
                driver.initialise()
                for _ in 0..<60 where try disturb(driver, Int(random.next() % UInt64(queues)), &random) { broken += 1 }
            }
            driver.initialise()
            #expect(!driver.needsReset)
            #expect(broken > 0)
            print("random drivers, \(kind): \(broken) times a device needed a reset")
        }
    }
    private func withDriver(of kind: Kind, _ body: (FakeDriver, _ queues: Int) throws -> Void) throws {
        let memory = try GuestMemory(layout: [(0, 1 << 20)])
        func run(_ device: any VirtioDevice) throws {
            let driver = try FakeDriver(device, memory: memory)
            try body(driver, device.queueSizes.count)
            driver.transport.reset()
        }
        switch kind {
        case .entropy: try run(try EntropyDevice())
        case .balloon: try run(try BalloonDevice(memory: memory))
        case .block:
            let url = FileManager.default.temporaryDirectory.appendingPathComponent("random-\(UUID().uuidString)")
            defer { try? FileManager.default.removeItem(at: url) }
            try Data(repeating: 0x5A, count: 1 << 20).write(to: url)
            try run(try BlockDevice(storage: try RawDisk(path: url.path, readOnly: false), identifier: "id", queueCount: 2))
        case .network:
            var ends: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &ends) == 0)
            let backend = try DatagramSocket(ends[0], maximumTransmissionUnit: 1500)
            close(ends[0])
            defer { close(ends[1]) }
            // Something to receive, as long as there is room for it.
            _ = fcntl(ends[1], F_SETFL, O_NONBLOCK)
            for n in 0..<16 { _ = send(ends[1], [UInt8](repeating: UInt8(n), count: 60 + n * 90), 60 + n * 90, 0) }
            try run(try NetworkDevice(address: [2, 0, 0, 0, 0, 1], backend: backend) { _, _ in })
        case .vsock:
            let host = VsockHost { offered, answer in
                close(offered.descriptor)
                answer(true)
            }
            host.setListening(7, true)
            try run(try VsockDevice(host: host))
        case .console:
            let loop = try EventLoop(name: "test-loop")
            defer { loop.stop() }
            let endpoint = ConsoleEndpoint.disconnected
            try run(
                ConsoleDevice(
                    ports: [0: .init(name: nil, isConsole: true, endpoint: endpoint), 5: .init(name: "five", isConsole: false, endpoint: endpoint)], maximumPorts: 8,
                    multiPort: true, loop: loop))
        }
    }

    /// One thing that drivers should not do, or that they might. Whether the device needs a reset behind it.
    private func disturb(_ driver: FakeDriver, _ queue: Int, _ random: inout SeededGenerator) throws -> Bool {
        func chance(_ n: UInt64) -> Bool { random.next() % n == 0 }
        func descriptors(_ count: Int) -> [FakeDriver.Descriptor] {
            (0..<count).map { index in
                var address = 0x4000 + random.next() % 0x4000
                if chance(20) { address = chance(2) ? random.next() : (1 << 20) - random.next() % 64 }
                let size = chance(20) ? UInt32(truncatingIfNeeded: random.next()) : [1, 8, 16, 44, 512, 4096][Int(random.next() % 6)]
                let next = chance(16) ? UInt16(truncatingIfNeeded: random.next()) : UInt16(index + 1) % FakeDriver.size
                // Readable ones come before writable ones, mostly.
                let flags = UInt16(chance(3) ? 0 : 1) | (index > 1 + Int(random.next() % 3) ? 2 : 0)
                if chance(24) { return FakeDriver.Descriptor(address: 0x9000 + random.next() % 2 * 8, count: UInt32(random.next() % 20) * 16, flags: 4 | flags, next: next) }
                return FakeDriver.Descriptor(address: address, count: size, flags: flags, next: next)
            }
        }
        // What requests of all devices look like: small numbers at their beginning.
        for _ in 0..<8 {
            let place = 0x4000 + random.next() % 0x800 * 8
            try driver.memory.store(chance(4) ? random.next() : random.next() % 16 | (chance(2) ? random.next() % 16 << 32 : 0), at: place)
        }
        driver.describe(descriptors(20), at: 0x9000)
        if chance(8) { _ = driver.transport.barRead(0x2000 + random.next() % 64, size: 4) }
        if chance(8) { driver.transport.barWrite(0x2000 + random.next() % 64, random.next(), size: 4) }
        let skip = chance(24) ? UInt16(truncatingIfNeeded: random.next()) : UInt16(random.next() % 4)
        let head = chance(24) ? UInt16(truncatingIfNeeded: random.next()) : UInt16(random.next() % 16)
        driver.publish(descriptors(Int(FakeDriver.size)), queue: queue, head: head, skip: skip)
        if chance(4) { usleepMilliseconds(1) }
        guard driver.needsReset else { return false }
        if chance(2) { driver.initialise() }
        return true
    }
}
