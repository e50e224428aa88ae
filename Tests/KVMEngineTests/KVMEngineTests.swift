import GuestMemory
import Hypervisor
import KVMEngine
import Testing

/// What can be seen of KVM without a stock guest: on any /dev/kvm, in the lab on a real one.
struct KVMEngineTests {
    private final class Bus: AccessBus {
        func portRead(_ port: UInt16, size: Int) -> UInt32 { .max }
        func portWrite(_ port: UInt16, _ value: UInt32, size: Int) {}
        func memoryRead(_ address: UInt64, size: Int) -> UInt64 { .max }
        func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int) {}
    }
    /// nil, after a look at the reason, on a machine without /dev/kvm.
    private func engine() -> KVMEngine? {
        do { return try KVMEngine() } catch {
            #expect("\(error)".contains("kvm") || "\(error)".contains("KVM"))
            return nil
        }
    }

    @Test func messageRoutesAreTakenChangedAndGivenBack() throws {
        guard let engine = engine() else { return }
        let machine = try engine.makeMachine(memory: try GuestMemory(layout: [(0, 2 << 20)]), vcpuCount: 1, baseline: .host, bus: Bus())
        for round in 0..<3 {
            var routes: [any MessageRoute] = []
            for vector in 0..<20 {
                let route = try #require(machine.makeMessageRoute())
                #expect(route.set(MSIMessage(address: 0xFEE0_0000, data: UInt32(0x40 + vector))))
                #expect(route.set(MSIMessage(address: 0xFEE0_1000, data: UInt32(0x40 + vector + round))))
                route.signal()
                routes.append(route)
            }
        }
    }
}
