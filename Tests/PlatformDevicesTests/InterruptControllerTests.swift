import Hypervisor
import LinuxSystem
import PlatformDevices
import Synchronization
import Testing

/// Local and I/O interrupt controllers, driven through their registers. Intel SDM vol. 3 chapter 10, 82093AA.
@Suite(.serialized) struct InterruptControllerTests {
    private final class Log: Sendable {
        let events = Mutex<[String]>([])
        func take() -> [String] {
            events.withLock { events in
                defer { events = [] }
                return events
            }
        }
    }
    private static let base: UInt64 = 0xFEE0_0000
    private static let io: UInt64 = 0xFEC0_0000

    private func make(cpus: Int = 2, clock: GuestClock = GuestClock { 1_000_000 }) throws -> (SoftwareInterruptController, Log) {
        let controller = try SoftwareInterruptController(cpuCount: cpus, clock: clock)
        let log = Log()
        for cpu in 0..<cpus {
            controller.connect(cpu) { event in
                switch event {
                case .interrupt: log.events.withLock { $0.append("int\(cpu)") }
                case .initialize: log.events.withLock { $0.append("init\(cpu)") }
                case .startup(let page): log.events.withLock { $0.append("sipi\(cpu):\(page)") }
                }
            }
            #expect(controller.memoryWrite(cpu, Self.base + 0xF0, 0x1FF))
        }
        return (controller, log)
    }
    private func message(_ vector: UInt32, to cpu: UInt64 = 0, mode: UInt32 = 0) -> MSIMessage { MSIMessage(address: Self.base | cpu << 12, data: vector | mode << 8) }

    @Test func highestVectorComesFirstAndMasksLowerOnes() throws {
        let (controller, log) = try make()
        defer { controller.stop() }
        controller.signal(message(0x41))
        controller.signal(message(0x82))
        #expect(log.take().contains("int0"))
        #expect(controller.acknowledge(0) == 0x82)
        #expect(controller.acknowledge(0) == nil)
        #expect(!controller.hasDeliverable(1))
        #expect(controller.memoryWrite(0, Self.base + 0xB0, 0))
        #expect(controller.acknowledge(0) == 0x41)
    }
    @Test func taskPriorityHoldsBack() throws {
        let (controller, _) = try make()
        defer { controller.stop() }
        controller.setTaskPriority(0, 5)
        controller.signal(message(0x51))
        #expect(!controller.hasDeliverable(0))
        controller.setTaskPriority(0, 4)
        #expect(controller.acknowledge(0) == 0x51)
    }
    @Test func reservedVectorsAndForeignAddressesAreDropped() throws {
        let (controller, _) = try make()
        defer { controller.stop() }
        controller.signal(message(0x0F))
        controller.signal(MSIMessage(address: 0x1234_5678, data: 0x50))
        controller.signal(MSIMessage(address: .max, data: .max))
        controller.signal(message(0x50, to: 77))
        for cpu in 0..<2 { #expect(!controller.hasDeliverable(cpu)) }
    }
    @Test func interruptCommandsReachTheirTargets() throws {
        let (controller, log) = try make(cpus: 4)
        defer { controller.stop() }
        func command(_ high: UInt32, _ low: UInt32) {
            _ = controller.memoryWrite(0, Self.base + 0x310, high)
            _ = controller.memoryWrite(0, Self.base + 0x300, low)
        }
        command(2 << 24, 0x0000_4500)
        #expect(log.take() == ["init2"])
        command(2 << 24, 0x0000_0699)
        #expect(log.take() == ["sipi2:153"])
        command(0, 3 << 18 | 0x61)  // all but itself
        #expect(Set(log.take()) == ["int1", "int2", "int3"])
        command(0, 2 << 18 | 0x62)  // all
        #expect(log.take().contains("int0"))
        command(0, 1 << 18 | 0x63)  // itself
        #expect(controller.acknowledge(0) == 0x63)
    }
    @Test func x2APICRegistersAreModelSpecific() throws {
        let (controller, log) = try make()
        defer { controller.stop() }
        #expect(controller.readMSR(1, 0x802) == nil)
        #expect(controller.writeMSR(1, 0x1B, 0xFEE0_0000 | 0xC00))
        #expect(controller.readMSR(1, 0x802) == 1)
        #expect(controller.memoryRead(1, Self.base + 0x20) == .max)
        #expect(controller.writeMSR(1, 0x83F, 0x77))
        #expect(log.take() == ["int1"])
        #expect(controller.acknowledge(1) == 0x77)
        #expect(!controller.writeMSR(1, 0x1B, 0x400))
    }
    @Test(arguments: [1_000_000, 2_496_321]) func timersFireInTheirModes(frequency: UInt64) throws {
        let clock = GuestClock { frequency }
        let (controller, _) = try make(clock: clock)
        defer { controller.stop() }
        func wait(_ cpu: Int) -> UInt8? {
            for _ in 0..<2000 {
                if let vector = controller.acknowledge(cpu) {
                    _ = controller.memoryWrite(cpu, Self.base + 0xB0, 0)
                    return vector
                }
                usleepMilliseconds(1)
            }
            return nil
        }
        _ = controller.memoryWrite(0, Self.base + 0x3E0, 0xB)
        _ = controller.memoryWrite(0, Self.base + 0x320, 0x70)
        _ = controller.memoryWrite(0, Self.base + 0x380, 1_000_000)
        #expect(wait(0) == 0x70)
        _ = controller.memoryWrite(0, Self.base + 0x320, 0x2_0071)
        _ = controller.memoryWrite(0, Self.base + 0x380, 1_000_000)
        for _ in 0..<3 { #expect(wait(0) == 0x71) }
        _ = controller.memoryWrite(0, Self.base + 0x380, 0)
        _ = controller.memoryWrite(1, Self.base + 0x320, 0x4_0072)
        let deadline = clock.counter + 2 * frequency
        #expect(controller.writeMSR(1, 0x6E0, deadline))
        #expect(wait(1) == 0x72)
        #expect(clock.counter >= deadline && clock.counter < deadline + 1000 * frequency)
        #expect(controller.readMSR(1, 0x6E0) == 0)
    }
    @Test func ioapicEdgeAndLevelLines() throws {
        let (controller, _) = try make()
        defer { controller.stop() }
        func entry(_ pin: UInt32, _ low: UInt32) {
            for (index, value) in [(0x11 + pin * 2, 0), (0x10 + pin * 2, low)] as [(UInt32, UInt32)] {
                _ = controller.memoryWrite(0, Self.io, index)
                _ = controller.memoryWrite(0, Self.io + 0x10, value)
            }
        }
        entry(4, 0x44)
        controller.setLine(4, level: true)
        #expect(controller.acknowledge(0) == 0x44)
        _ = controller.memoryWrite(0, Self.base + 0xB0, 0)
        controller.setLine(4, level: true)
        #expect(!controller.hasDeliverable(0))  // no new edge
        // Level: again after each end of interrupt while the line is up.
        entry(5, 0x8055)
        controller.setLine(5, level: true)
        for _ in 0..<2 {
            #expect(controller.acknowledge(0) == 0x55)
            _ = controller.memoryWrite(0, Self.base + 0xB0, 0)
        }
        controller.setLine(5, level: false)
        #expect(controller.acknowledge(0) == 0x55)
        _ = controller.memoryWrite(0, Self.base + 0xB0, 0)
        #expect(!controller.hasDeliverable(0))
        controller.setLine(4000, level: true)
    }
    @Test func randomRegisterAccessesDoNoHarm() throws {
        let (controller, _) = try make(cpus: 3)
        defer { controller.stop() }
        var random = SystemRandomNumberGenerator()
        for _ in 0..<100_000 {
            let value = random.next()
            let cpu = Int(value % 3)
            let word = UInt32(truncatingIfNeeded: value >> 8)
            switch value >> 60 {
            case 0...4: _ = controller.memoryWrite(cpu, Self.base + UInt64(word & 0xFFF), UInt32(truncatingIfNeeded: value >> 20))
            case 5...6: _ = controller.memoryWrite(cpu, Self.io + UInt64(word & 0x1FF), UInt32(truncatingIfNeeded: value >> 20))
            case 7...8: _ = controller.writeMSR(cpu, [0x1B, 0x6E0, 0x800 + word & 0xFF][Int(word % 3)], value)
            case 9: controller.signal(MSIMessage(address: Self.base | value & 0xFFFFF, data: word))
            case 10: controller.setLine(word & 63, level: value & 4 != 0)
            case 11: _ = controller.acknowledge(cpu)
            case 12: _ = controller.readMSR(cpu, 0x800 + word & 0xFF)
            default: _ = controller.memoryRead(cpu, Self.base + UInt64(word & 0xFFF))
            }
        }
    }
}
