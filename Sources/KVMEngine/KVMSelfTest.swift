import GuestMemory
import Hypervisor
import LinuxSystem
import Synchronization

/// A tiny guest that shows whether KVM here runs real guests: long mode with paging, four million counted instructions, one
/// device access and one timer interrupt, within half a second. A /dev/kvm that only emulates fails it.
package enum KVMSelfTest {
    /// nil when KVM is fit for use, else the reason.
    package static func run(_ engine: KVMEngine) -> String? {
        do { return try attempt(engine) } catch { return "\(error)" }
    }
    private static let limit: UInt64 = 500_000_000
    private static let deviceAddress: UInt64 = 0xD000_0000
    private static let donePort: UInt16 = 0x80

    private final class Bus: AccessBus {
        let state = Mutex((device: false, done: false))
        nonisolated(unsafe) weak var vcpu: (any VirtualCPU)?  // set before the guest runs
        func portRead(_ port: UInt16, size: Int) -> UInt32 { .max }
        func portWrite(_ port: UInt16, _ value: UInt32, size: Int) {
            guard port == KVMSelfTest.donePort else { return }
            state.withLock { $0.done = true }
            vcpu?.cancel()
        }
        func memoryRead(_ address: UInt64, size: Int) -> UInt64 {
            if address == KVMSelfTest.deviceAddress { state.withLock { $0.device = true } }
            return 0
        }
        func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int) {}
    }

    private static func attempt(_ engine: KVMEngine) throws -> String? {
        let memory = try GuestMemory(layout: [(0, 2 << 20)])
        try prepare(memory)
        let bus = Bus()
        let machine = try engine.makeMachine(memory: memory, vcpuCount: 1, baseline: .host, bus: bus)
        let vcpu = machine.vcpus[0]
        bus.vcpu = vcpu
        try vcpu.setState(startState())
        let begin = monotonicNanoseconds()
        let finished = try EventFD()
        let watchdog = try HostThread(name: "vz-kvm-test") {
            while monotonicNanoseconds() - begin < limit, !finished.drain() { usleepMilliseconds(5) }
            vcpu.cancel()
        }
        let exit = vcpu.run()
        finished.signal()
        watchdog.join()
        let (device, done) = bus.state.withLock { $0 }
        if done, device { return nil }
        switch exit {
        case .internalError(let reason): return reason
        case .shutdown: return "its self-test guest crashed"
        case .cancelled:
            return "it is too slow or takes no timer interrupts: the self-test of four million instructions did not end within 0.5 s (an emulated or nested KVM)"
        }
    }

    private static func prepare(_ memory: GuestMemory) throws {
        // Identity map of 4 GiB: PML4 0x1000, PDPT 0x2000, directories from 0x3000.
        try memory.store(UInt64(0x2003), at: 0x1000)
        for directory in 0..<UInt64(4) {
            try memory.store(0x3003 + directory * 0x1000, at: 0x2000 + directory * 8)
            for entry in 0..<UInt64(512) { try memory.store((directory << 30 + entry << 21) | 0x83, at: 0x3000 + directory * 0x1000 + entry * 8) }
        }
        // IDT 0x7000: vector 0x40 at 0xA000, selector 0x10.
        try memory.store(UInt64(0x0000_8E00_0010_A000), at: 0x7000 + 0x40 * 16)
        try memory.store(UInt64(0), at: 0x7000 + 0x40 * 16 + 8)
        for (index, descriptor) in [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF].enumerated() {
            try memory.store(UInt64(descriptor), at: 0x8000 + UInt64(index) * 8)
        }
        try memory.write(
            [
                0xB9, 0x80, 0x84, 0x1E, 0x00,  // mov ecx, 2000000
                0xFF, 0xC9, 0x75, 0xFC,  // 1: dec ecx; jnz 1b
                0xBB, 0x00, 0x00, 0x00, 0xD0, 0x8B, 0x03,  // mov ebx, 0xd0000000; mov eax, [rbx]
                0xBB, 0x00, 0x00, 0xE0, 0xFE,  // mov ebx, local APIC
                0xC7, 0x83, 0xF0, 0x00, 0x00, 0x00, 0xFF, 0x01, 0x00, 0x00,  // spurious vector, enable
                0xC7, 0x83, 0x20, 0x03, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00,  // timer: one-shot, vector 0x40
                0xC7, 0x83, 0xE0, 0x03, 0x00, 0x00, 0x0B, 0x00, 0x00, 0x00,  // divide by 1
                0xC7, 0x83, 0x80, 0x03, 0x00, 0x00, 0x10, 0x27, 0x00, 0x00,  // count 10000
                0xFB, 0xF4, 0xEB, 0xFD,  // sti; 2: hlt; jmp 2b
            ], at: 0x9000)
        try memory.write([0xB0, 0x01, 0xE6, 0x80, 0xF4], at: 0xA000)  // mov al, 1; out 0x80, al; hlt
    }
    private static func startState() -> VCPUState {
        var state = VCPUState()
        state.rip = 0x9000
        state.gpr[4] = 0xC000
        state.cr0 = 0x8000_0011
        state.cr3 = 0x1000
        state.cr4 = 0x20
        state.efer = 0x500
        (state.gdtBase, state.gdtLimit) = (0x8000, 0x1F)
        (state.idtBase, state.idtLimit) = (0x7000, 0xFFF)
        let code = SegmentState(selector: 0x10, base: 0, limit: .max, attributes: 0xA9B)
        let data = SegmentState(selector: 0x18, base: 0, limit: .max, attributes: 0xC93)
        state.segments = [data, code, data, data, data, data]
        return state
    }
}
