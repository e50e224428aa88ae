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
        static let shutdown: UInt16 = 4
        static let data: UInt16 = 5
        static let creditUpdate: UInt16 = 6
        static let creditRequest: UInt16 = 7
    }
    private static let buffers: UInt64 = 0x2_0000

    /// A guest whose program has connected to the host's, which has the descriptor.
    private final class Guest {
        let driver: FakeDriver
        let descriptor: Int32
        private let stride: UInt64
        private var said: UInt16 = 0

        init(room: UInt32, buffers: Int, of size: UInt32) throws {
            stride = UInt64(size + 4095) & ~4095
            let stream = Mutex<Int32>(-1)
            let host = VsockHost { offered, answer in
                stream.withLock { $0 = offered.descriptor }
                answer(true)
            }
            host.setListening(7, true)
            driver = try FakeDriver(try VsockDevice(host: host), memory: try GuestMemory(layout: [(0, 1 << 20)]))
            let stride = stride
            let places = (0..<buffers).map { FakeDriver.Descriptor.writable(VsockDeviceTests.buffers + UInt64($0) * stride, size) }
            for index in places.indices { driver.publish(places, head: UInt16(index)) }
            try Self.say(driver, Self.packet(Operation.request, room: room, forwarded: 0), 1)
            try #require(driver.waitForUsed(1))
            (descriptor, said) = (stream.withLock { $0 }, 1)
        }
        deinit { close(descriptor) }

        private static func packet(_ operation: UInt16, room: UInt32, forwarded: UInt32) -> [UInt8] {
            func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
            let ports = little(UInt64(3)) + little(UInt64(2)) + little(UInt32(1000)) + little(UInt32(7))
            return ports + little(UInt32(0)) + little(UInt16(1)) + little(operation) + little(UInt32(0)) + little(room) + little(forwarded)
        }
        private static func say(_ driver: FakeDriver, _ packet: [UInt8], _ count: UInt16) throws {
            try driver.memory.write(packet, at: 0x4000)
            driver.publish([.readable(0x4000, 44)], queue: 1)
            #expect(driver.waitForUsed(count, queue: 1))
        }
        func say(_ operation: UInt16, room: UInt32, forwarded: UInt32) throws {
            said += 1
            try Self.say(driver, Self.packet(operation, room: room, forwarded: forwarded), said)
        }
        func operations() throws -> [UInt16] { try (0..<Int(driver.usedIndex())).map { try driver.memory.load(place($0) + 30) } }
        func data(_ index: Int) throws -> [UInt8] { try driver.memory.read(place(index) + 44, Int(driver.usedLength(index)) - 44) }
        private func place(_ index: Int) -> UInt64 { VsockDeviceTests.buffers + UInt64(index) * stride }
    }

    /// VIRTIO 1.2 § 5.10.6.3: a driver need not tell of room by itself.
    @Test func guestThatSaysNothingOfItsRoomIsAsked() throws {
        let guest = try Guest(room: 1500, buffers: 8, of: 1044)
        // More than the guest has room for: two packets, and a question.
        #expect(send(guest.descriptor, [UInt8](repeating: 1, count: 3000), 3000, 0) == 3000)
        try #require(guest.driver.waitForUsed(4))
        #expect(try guest.operations() == [Operation.response, Operation.data, Operation.data, Operation.creditRequest])
        // It has none yet, and is not asked without end.
        try guest.say(Operation.creditUpdate, room: 1500, forwarded: 0)
        usleep(50_000)
        #expect(guest.driver.usedIndex() == 4)
        try guest.say(Operation.creditUpdate, room: 1500, forwarded: 1500)
        try #require(guest.driver.waitForUsed(6))
        #expect(try guest.operations().suffix(2) == [Operation.data, Operation.data])
        #expect(guest.driver.usedLength(4) + guest.driver.usedLength(5) == 1500 + 88)
    }
    /// A socket of the host's holds 208 KiB; the device reads ahead so that the host's program goes on while the guest has no room.
    @Test func hostWritesAheadOfAGuestWithoutRoom() throws {
        let guest = try Guest(room: 0, buffers: 8, of: 65536)
        var patience = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(guest.descriptor, SOL_SOCKET, Int32(SO_SNDTIMEO), &patience, UInt32(MemoryLayout<timeval>.size))
        let data = (0..<280_000).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
        #expect(data.withUnsafeBytes { send(guest.descriptor, $0.baseAddress, $0.count, 0) } == data.count)
        shutdown(guest.descriptor, Int32(SHUT_WR))
        try guest.say(Operation.creditUpdate, room: 400_000, forwarded: 0)
        try #require(guest.driver.eventually { (try? guest.operations().last == Operation.shutdown) == true })
        let operations = try guest.operations()
        let packets = operations.indices.filter { operations[$0] == Operation.data }
        #expect(try packets.flatMap { try guest.data($0) } == data)
    }
}
