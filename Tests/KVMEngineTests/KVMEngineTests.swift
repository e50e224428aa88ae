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

    /// What another engine saved, in every field.
    private func foreignImage(_ machine: any HypervisorMachine) throws -> MachineImage {
        var image = try machine.makeImage()
        image.engine = "software"
        image.engineState = []
        image.savedAt = .max  // as if no time had passed
        image.ioapic.entries[4] = 0x0100_0000_0000_0044
        image.ioapic.entries[9] = 0x0000_0000_0000_8049
        image.ioapic.asserted = 1 << 9
        image.ioapic.pending = 0
        image.ioapic.entries[9] |= 1 << 16  // masked: stays asserted
        image.processors = image.processors.map { processor in
            var processor = processor
            processor.engineState = []
            processor.state.gpr = (0..<16).map { 0x1111_2222_3333_0000 + $0 }
            (processor.state.rip, processor.state.rflags) = (0xFFFF_FFFF_8100_1234, 0x246)
            (processor.state.cr0, processor.state.cr2, processor.state.cr3, processor.state.cr4) = (0x8005_0033, 0xDEAD_0000, 0x10_0000, 0x6B0)
            processor.state.efer = 0xD01
            let code = SegmentState(selector: 0x33, base: 0, limit: .max, attributes: 0xAFB)
            let data = SegmentState(selector: 0x2B, base: 0, limit: .max, attributes: 0xCF3)
            let none = SegmentState(selector: 0, base: 0x7F00_1234_5000, limit: 0, attributes: 0)
            processor.state.segments = [data, code, data, data, none, none]
            processor.state.cpl = 3
            processor.state.tr = SegmentState(selector: 0x40, base: 0xFFFF_FE00_0000_3000, limit: 0x4087, attributes: 0x8B)
            (processor.state.gdtBase, processor.state.gdtLimit) = (0xFFFF_FE00_0000_1000, 0x7F)
            (processor.state.idtBase, processor.state.idtLimit) = (0xFFFF_FE00_0000_0000, 0xFFF)
            processor.state.star = 0x0023_0010_0000_0000
            processor.state.lstar = 0xFFFF_FFFF_8100_0080
            processor.state.sfmask = 0x4_7700
            processor.state.kernelGSBase = 0xFFFF_8880_0000_0000
            processor.state.xmm = (0..<256).map { UInt8($0 & 0xFF) }
            processor.state.x87 =
                [0x7F, 0x02, 0, 0x38, 0xFF, 0] + [UInt8](repeating: 0, count: 18) + [0x80, 0x1F, 0, 0, 0, 0, 0, 0] + (0..<128).map { $0 % 16 < 10 ? UInt8($0) : 0 }
            processor.state.x87Control = 0x27F
            processor.state.mxcsr = 0x1F80
            processor.state.dr[0] = 0x1000
            processor.apic.base = 0xFEE0_0D00
            processor.apic.registers[0x08] = 0x20
            processor.apic.registers[0x0F] = 0x1FF
            processor.apic.registers[0x11] = 1 << 5
            processor.apic.registers[0x22] = 1 << 7
            processor.apic.registers[0x32] = 0x4_00EC
            processor.apic.timeStampDeadline = 0
            return processor
        }
        return image
    }
    /// A state of another engine is in KVM, register by register, what it was.
    @Test func statesOfOtherEnginesAreTakenWhole() throws {
        guard let engine = engine() else { return }
        func make() throws -> any HypervisorMachine {
            try engine.makeMachine(memory: try GuestMemory(layout: [(0, 2 << 20)]), vcpuCount: 1, baseline: .v1, bus: Bus())
        }
        let foreign = try foreignImage(make())
        let machine = try make()
        try machine.restore(foreign)
        let image = try machine.makeImage()
        let (was, now) = (foreign.processors[0], image.processors[0])
        #expect(image.engine == "kvm" && image.ioapic == foreign.ioapic)
        var (expected, state) = (was.state, now.state)
        // KVM keeps of a debug register what it has and of an image's unused bytes nothing.
        expected.dr = []
        state.dr = []
        #expect(Array(state.x87[..<6]) == Array(expected.x87[..<6]) && Array(state.x87[32...]) == Array(expected.x87[32...]))
        (expected.x87, state.x87) = ([], [])
        (expected.ymmHigh, state.ymmHigh) = ([], [])
        expected.xcr0 = state.xcr0
        #expect(state == expected)
        for register in [0x08, 0x0F, 0x11, 0x22, 0x32] { #expect(now.apic.registers[register] == was.apic.registers[register], "register \(register)") }
        #expect(now.apic.base == was.apic.base && now.activity == was.activity)
        #expect(image.systemTime.map { $0 >= foreign.systemTime ?? .max } == true)
        // And of KVM's own.
        let third = try make()
        try third.restore(image)
        #expect(try third.makeImage().processors[0].state.gpr == expected.gpr)
    }
    @Test func whatTheProcessorLacksIsNamed() throws {
        guard let engine = engine() else { return }
        let machine = try engine.makeMachine(memory: try GuestMemory(layout: [(0, 2 << 20)]), vcpuCount: 1, baseline: .v1, bus: Bus())
        var image = try foreignImage(machine)
        image.processors[0].identity = image.processors[0].identity?.map { leaf in
            var leaf = leaf
            if leaf.leaf == 7, leaf.subleaf == 0 { leaf.ecx |= 1 << 17 }  // a bit that no processor has
            if leaf.leaf == 1 { leaf.ecx |= 1 << 5 }  // VMX
            return leaf
        }
        do {
            try machine.restore(image)
            Issue.record("restored")
        } catch let error as EngineError { #expect(error.description.contains("vmx") && error.description.contains("--cpu"), "\(error)") }
        image = try foreignImage(machine)
        image.timeStampFrequency = 0
        #expect(throws: EngineError.self) { try machine.restore(image) }
    }
}
