import Foundation
import GuestMemory
import Synchronization
import Testing
import VirtioDevices

/// A socket device: this test is the guest's driver and the program of the host.
@Suite(.serialized) struct VsockDeviceTests {
    private enum Operation {
        static let request: UInt16 = 1
        static let response: UInt16 = 2
        static let data: UInt16 = 5
        static let creditUpdate: UInt16 = 6
        static let creditRequest: UInt16 = 7
    }
    private static let buffers: UInt64 = 0x2_0000
    private static let bufferSize: UInt32 = 1044

    private func packet(_ operation: UInt16, room: UInt32, forwarded: UInt32) -> [UInt8] {
        func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
        let ports = little(UInt64(3)) + little(UInt64(2)) + little(UInt32(1000)) + little(UInt32(7))
        return ports + little(UInt32(0)) + little(UInt16(1)) + little(operation) + little(UInt32(0)) + little(room) + little(forwarded)
    }
    private func operations(_ driver: FakeDriver) throws -> [UInt16] {
        try (0..<Int(driver.usedIndex())).map { try driver.memory.load(Self.buffers + UInt64($0) * 0x1000 + 30) }
    }
    /// VIRTIO 1.2 § 5.10.6.3: a driver need not tell of room by itself.
    @Test func guestThatSaysNothingOfItsRoomIsAsked() throws {
        let stream = Mutex<Int32>(-1)
        let host = VsockHost { offered, answer in
            stream.withLock { $0 = offered.descriptor }
            answer(true)
        }
        host.setListening(7, true)
        let driver = try FakeDriver(try VsockDevice(host: host), memory: try GuestMemory(layout: [(0, 1 << 20)]))
        let room = (0..<8).map { FakeDriver.Descriptor.writable(Self.buffers + UInt64($0) * 0x1000, Self.bufferSize) }
        for index in 0..<8 as Range<UInt16> { driver.publish(room, head: index) }
        func say(_ operation: UInt16, room: UInt32, forwarded: UInt32, _ count: UInt16) throws {
            try driver.memory.write(packet(operation, room: room, forwarded: forwarded), at: 0x4000)
            driver.publish([.readable(0x4000, 44)], queue: 1)
            #expect(driver.waitForUsed(count, queue: 1))
        }
        try say(Operation.request, room: 1500, forwarded: 0, 1)
        try #require(driver.waitForUsed(1))
        let fd = stream.withLock { $0 }
        defer { close(fd) }
        // More than the guest has room for: two packets, and a question.
        #expect(send(fd, [UInt8](repeating: 1, count: 3000), 3000, 0) == 3000)
        try #require(driver.waitForUsed(4))
        #expect(try operations(driver) == [Operation.response, Operation.data, Operation.data, Operation.creditRequest])
        // It has none yet, and is not asked without end.
        try say(Operation.creditUpdate, room: 1500, forwarded: 0, 2)
        usleep(50_000)
        #expect(driver.usedIndex() == 4)
        try say(Operation.creditUpdate, room: 1500, forwarded: 1500, 3)
        try #require(driver.waitForUsed(6))
        #expect(try operations(driver).suffix(2) == [Operation.data, Operation.data])
        #expect(driver.usedLength(4) + driver.usedLength(5) == 1500 + 88)
    }
}
