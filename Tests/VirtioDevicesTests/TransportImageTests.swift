import GuestMemory
import Testing
import VirtioDevices

/// What a device takes of the state of another one.
@Suite struct TransportImageTests {
    @Test func smallerQueuesAreTakenAndOthersAreNot() throws {
        func entropy() throws -> FakeDriver { try FakeDriver(try EntropyDevice(), memory: try GuestMemory(layout: [(0, 1 << 20)])) }
        let (saved, other) = (try entropy(), try entropy())
        let image = saved.transport.makeImage()
        func difference(_ sizes: [UInt16]) -> String? {
            var changed = image
            changed.queueSizes = sizes
            return other.transport.difference(to: changed)
        }
        #expect(difference(image.queueSizes) == nil)
        #expect(difference(image.queueSizes.map { $0 / 2 }) == nil)
        #expect(difference(image.queueSizes.map { $0 * 2 })?.contains("other queues") == true)
        #expect(difference([])?.contains("other queues") == true)
        #expect(difference(image.queueSizes + [16])?.contains("other queues") == true)
    }
    /// States of before 2026-12 have sockets with a receive queue of 256.
    @Test func largerQueuesOfBeforeAreTaken() throws {
        let device = try FakeDriver(try VsockDevice(host: VsockHost { _, answer in answer(false) }), memory: try GuestMemory(layout: [(0, 1 << 20)]))
        var image = device.transport.makeImage()
        #expect(image.queueSizes == [128, 256, 16])
        image.queueSizes = [256, 256, 16]
        #expect(device.transport.difference(to: image) == nil)
        image.queueSizes = [512, 256, 16]
        #expect(device.transport.difference(to: image)?.contains("other queues") == true)
    }
}
