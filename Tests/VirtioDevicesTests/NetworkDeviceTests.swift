import Foundation
import GuestMemory
import HostNetwork
import Testing
import VirtioDevices

/// A network card with a socket pair behind it: this test is the driver and the other end.
@Suite(.serialized) struct NetworkDeviceTests {
    private final class Wire {
        let driver: FakeDriver
        let peer: Int32
        private(set) var device: NetworkDevice
        nonisolated(unsafe) static var failures = 0

        init(mtu: Int = 1500) throws {
            var ends: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &ends) == 0)
            peer = ends[1]
            let backend = try DatagramSocket(ends[0], maximumTransmissionUnit: mtu)
            close(ends[0])
            Self.failures = 0
            device = try NetworkDevice(address: [2, 0, 0, 0, 0, 1], backend: backend) { _, _ in Self.failures += 1 }
            driver = try FakeDriver(device, memory: try GuestMemory(layout: [(0, 1 << 20)]))
        }
        deinit { close(peer) }
        func receive() -> [UInt8]? {
            var bytes = [UInt8](repeating: 0, count: 70000)
            var entry = pollfd(fd: peer, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, 2000) == 1 else { return nil }
            let count = recv(peer, &bytes, bytes.count, 0)
            return count < 0 ? nil : Array(bytes.prefix(count))
        }
        func send(_ bytes: [UInt8]) -> Bool { Glibc.send(peer, bytes, bytes.count, 0) == bytes.count }
    }
    private func frame(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) } }

    @Test func frameGoesOutWithoutItsHeader() throws {
        let wire = try Wire()
        let bytes = frame(1000)
        try wire.driver.memory.write([UInt8](repeating: 0, count: 12) + bytes, at: 0x4000)
        wire.driver.publish([.readable(0x4000, 5, next: 1), .readable(0x4005, 107, next: 2), .readable(0x4070, 900)], queue: 1)
        #expect(wire.receive() == bytes)
        #expect(wire.driver.waitForUsed(1, queue: 1))
    }
    @Test func frameComesInBehindAHeaderOfOneBuffer() throws {
        let wire = try Wire()
        wire.driver.publish([.writable(0x4000, 12, next: 1), .writable(0x5000, 1600)])
        let bytes = frame(1514)
        #expect(wire.send(bytes))
        #expect(wire.driver.waitForUsed(1))
        #expect(wire.driver.usedLength(0) == 1526)
        #expect(try wire.driver.memory.read(0x4000, 12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
        #expect(try wire.driver.memory.read(0x5000, 1514) == bytes)
    }
    @Test func longFrameIsSpreadOverBuffersAndWaitsForThem() throws {
        let wire = try Wire(mtu: 9000)
        let bytes = frame(9014)
        #expect(wire.send(bytes))
        let buffers = (0..<5).map { FakeDriver.Descriptor.writable(0x2_0000 + UInt64($0) * 0x1000, 2000) }
        for index in 0..<4 as Range<UInt16> { wire.driver.publish(buffers, head: index) }
        usleep(50_000)
        #expect(wire.driver.usedIndex() == 0)
        wire.driver.publish(buffers, head: 4)
        #expect(wire.driver.waitForUsed(5))
        var got: [UInt8] = []
        for index in 0..<5 { got += try wire.driver.memory.read(0x2_0000 + UInt64(index) * 0x1000, Int(wire.driver.usedLength(index))) }
        #expect(got[10] == 5)
        #expect(Array(got.dropFirst(12)) == bytes)
    }
    @Test func frameLongerThanTheLinkAllowsIsDropped() throws {
        let wire = try Wire()
        wire.driver.publish([.writable(0x4000, 1600)])
        #expect(wire.send(frame(5000)))
        #expect(wire.send(frame(60)))
        #expect(wire.driver.waitForUsed(1))
        #expect(wire.driver.usedLength(0) == 72)
    }
    @Test func peerThatGoesPullsTheCableOut() throws {
        var wire: Wire? = try Wire()
        #expect(wire?.driver.transport.barRead(0x2006, size: 2) == 1)
        let driver = try #require(wire?.driver)
        let device = try #require(wire?.device)
        wire = nil  // closes the peer
        try driver.memory.write([UInt8](repeating: 0, count: 12) + frame(88), at: 0x4000)
        driver.publish([.readable(0x4000, 100)], queue: 1)
        #expect(driver.eventually { Wire.failures == 1 })
        #expect(device.configRead(6, size: 2) == 0)
        // Frames go nowhere, and come back.
        #expect(driver.waitForUsed(1, queue: 1))
    }
    @Test func shortHugeAndBrokenFramesDoNoHarm() throws {
        let wire = try Wire()
        wire.driver.publish([.readable(0x4000, 3)], queue: 1)
        #expect(wire.driver.waitForUsed(1, queue: 1))
        wire.driver.publish([.readable(0x1_0000, 0xE_0000)], queue: 1)
        #expect(wire.driver.waitForUsed(2, queue: 1))
        wire.driver.publish([.readable(0xFFFF_FFFF_0000, 64)], queue: 1)
        #expect(wire.driver.eventually { wire.driver.needsReset })
        wire.driver.initialise()
        try wire.driver.memory.write([UInt8](repeating: 0, count: 12) + [UInt8](repeating: 9, count: 60), at: 0x4000)
        wire.driver.publish([.readable(0x4000, 72)], queue: 1)
        #expect(wire.receive() == [UInt8](repeating: 9, count: 60))
    }
    @Test func buffersOfNothingDoNoHarm() throws {
        let wire = try Wire()
        #expect(wire.send(frame(60)))
        // Chains without room for anything are taken, and never enough.
        for _ in 0..<20 { wire.driver.publish([.readable(0x4000, 16)]) }
        usleep(20_000)
        wire.driver.initialise()
        // What waited for room may be lost with the reset; the next frame comes.
        wire.driver.publish([.writable(0x4000, 1600)])
        #expect(wire.send(frame(61)))
        #expect(wire.driver.waitForUsed(1))
    }

    // MARK: frames that are not finished

    /// Ethernet, IPv4 and TCP headers, then `payload` bytes; checksums as a driver with offloads leaves them.
    private func segment(_ payload: Int) -> [UInt8] {
        var bytes: [UInt8] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]
        let total = 40 + payload
        bytes += [0x45, 0, UInt8(total >> 8), UInt8(total & 255), 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
        bytes += [0x10, 0, 0, 80, 0, 0, 0, 100, 0, 0, 0, 1, 0x50, 0x19, 1, 0, 0, 0, 0, 0]
        bytes += (0..<payload).map { UInt8(truncatingIfNeeded: $0 &* 3) }
        // The pseudo header's sum.
        var sum = 0x0A00 + 0x0001 + 0x0A00 + 0x0002 + 6 + 20 + payload
        while sum >> 16 != 0 { sum = sum & 0xFFFF + sum >> 16 }
        (bytes[50], bytes[51]) = (UInt8(sum >> 8), UInt8(sum & 255))
        return bytes
    }
    private func onesComplementSum(_ bytes: ArraySlice<UInt8>) -> Int {
        var sum = 0
        for (index, byte) in bytes.enumerated() { sum += index & 1 == 0 ? Int(byte) << 8 : Int(byte) }
        while sum >> 16 != 0 { sum = sum & 0xFFFF + sum >> 16 }
        return sum
    }
    private func checkTCP(_ frame: [UInt8]) {
        #expect(onesComplementSum(frame[14..<34]) == 0xFFFF || frame[24..<26].allSatisfy { $0 == 0 })
        let pseudo = frame[26..<34] + [0, 6, UInt8((frame.count - 34) >> 8), UInt8((frame.count - 34) & 255)]
        #expect(onesComplementSum(pseudo + frame[34...]) == 0xFFFF)
    }
    @Test func checksumIsFilledInForAWire() throws {
        let wire = try Wire()
        let bytes = segment(101)
        try wire.driver.memory.write([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0] + bytes, at: 0x4000)
        wire.driver.publish([.readable(0x4000, 12, next: 1), .readable(0x400C, UInt32(bytes.count))], queue: 1)
        let got = try #require(wire.receive())
        #expect(got.count == bytes.count)
        checkTCP(got)
    }
    @Test func largeSegmentIsCutForAWire() throws {
        let wire = try Wire()
        let bytes = segment(3001)
        try wire.driver.memory.write([1, 1, 54, 0, 0xE8, 3, 34, 0, 16, 0, 0, 0] + bytes, at: 0x4000)
        wire.driver.publish([.readable(0x4000, UInt32(12 + bytes.count))], queue: 1)
        var payload: [UInt8] = []
        for index in 0..<4 {
            let got = try #require(wire.receive())
            checkTCP(got)
            #expect(got[38..<42] == [0, 0, UInt8((100 + payload.count) >> 8), UInt8((100 + payload.count) & 255)])
            #expect(got[19] == 0x34 + UInt8(index))
            // FIN and PSH only on the last one.
            #expect(got[47] == (index == 3 ? 0x19 : 0x10))
            payload += got[54...]
        }
        #expect(payload == Array(bytes[54...]))
    }
    @Test func headersThatMakeNoSenseAreDropped() throws {
        let wire = try Wire()
        var generator = SystemRandomNumberGenerator()
        for index in 0..<200 as Range<UInt16> {
            var header = (0..<12).map { _ in UInt8.random(in: 0...255, using: &generator) }
            header[0] = UInt8.random(in: 0...1)
            header[1] = [0, 1, 3, 4, 0x81].randomElement() ?? 0
            // Beyond the frame, or segments of nothing, or what is no TCP.
            if index & 1 == 0 { (header[6], header[7]) = (0xFF, 0xFF) } else { (header[4], header[5]) = (0, 0) }
            header[0] = header[1] == 0 || index & 1 == 0 ? 1 : header[0]
            if index & 1 != 0, header[1] == 0 { (header[6], header[7]) = (0xFF, 0) }
            try wire.driver.memory.write(header + [UInt8](repeating: 7, count: 100), at: 0x4000)
            wire.driver.publish([.readable(0x4000, 112)], queue: 1)
            #expect(wire.driver.waitForUsed(index + 1, queue: 1))
        }
        try wire.driver.memory.write([UInt8](repeating: 0, count: 12) + [UInt8](repeating: 9, count: 60), at: 0x4000)
        wire.driver.publish([.readable(0x4000, 72)], queue: 1)
        #expect(wire.receive() == [UInt8](repeating: 9, count: 60))
    }
}
