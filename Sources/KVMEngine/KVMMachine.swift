import CLinux
import Glibc
import GuestMemory
import Hypervisor
import LinuxSystem

/// A KVM virtual machine with the interrupt controllers in the kernel.
final class KVMMachine: HypervisorMachine, @unchecked Sendable {  // descriptors are fixed; the kernel serialises ioctls
    let vm: KVMDescriptor
    private let memory: GuestMemory
    let processors: [KVMVCPU]
    /// What CPUID shows, word by word: a state of an early version fits where this is the same.
    let features: [String]
    /// What KVM on this host can show, by name: a state that has no more than this fits.
    let offered: Set<String>
    private let routes: KVMInterruptRoutes
    var vcpus: [any VirtualCPU] { processors }

    init(system: KVMDescriptor, memory: GuestMemory, vcpuCount: Int, baseline: ProcessorBaseline, bus: any AccessBus) throws {
        self.memory = memory
        vm = KVMDescriptor(Int32(try system.call(KVMRequest.createVM, 0, "create a KVM machine")))
        routes = KVMInterruptRoutes(vm: vm)
        // Pages below the end of the 32-bit space that Intel processors need for real mode.
        try vm.call(KVMRequest.setTSSAddress, 0xFFFB_D000, "set KVM's TSS address")
        var identity: UInt64 = 0xFFFB_C000
        try vm.exchange(KVMRequest.setIdentityMapAddress, &identity, "set KVM's identity map address")
        for (slot, region) in memory.regions.enumerated() {
            var description = kvm_userspace_memory_region(
                slot: UInt32(slot), flags: 0, guest_phys_addr: region.base, memory_size: region.size,
                userspace_addr: UInt64(UInt(bitPattern: region.host)))
            try vm.exchange(KVMRequest.setUserMemoryRegion, &description, "give KVM the guest's memory")
        }
        try vm.call(KVMRequest.createIRQChip, 0, "create KVM's interrupt controllers")
        let mapSize = try system.call(KVMRequest.getVCPUMapSize, 0, "ask for the size of KVM's run area")
        let cpuid = try KVMProcessorIdentity(system: system, baseline: baseline)
        features = cpuid.words
        offered = cpuid.offered
        var made: [KVMVCPU] = []
        for index in 0..<vcpuCount {
            made.append(try KVMVCPU(index: index, vm: vm, mapSize: mapSize, identity: cpuid.leaves(index: index, count: vcpuCount), bus: bus))
        }
        processors = made
    }

    func signal(_ message: MSIMessage) {
        var msi = kvm_msi()
        msi.address_lo = UInt32(truncatingIfNeeded: message.address)
        msi.address_hi = UInt32(truncatingIfNeeded: message.address >> 32)
        msi.data = message.data
        try? vm.exchange(KVMRequest.signalMSI, &msi, "signal an interrupt")
    }
    func makeMessageRoute() -> (any MessageRoute)? { routes.makeRoute() }
    func setLine(_ gsi: UInt32, level: Bool) {
        var line = kvm_irq_level()
        line.irq = gsi
        line.level = level ? 1 : 0
        try? vm.exchange(KVMRequest.irqLine, &line, "set an interrupt line")
    }
    func bindNotify(address: UInt64, eventFileDescriptor: Int32) -> Bool { ioEvent(address, eventFileDescriptor, flags: 0) }
    func unbindNotify(address: UInt64, eventFileDescriptor: Int32) { _ = ioEvent(address, eventFileDescriptor, flags: 4) }  // DEASSIGN
    private func ioEvent(_ address: UInt64, _ descriptor: Int32, flags: UInt32) -> Bool {
        var event = kvm_ioeventfd()
        event.addr = address
        event.len = 2  // drivers write the queue's number as 16 bits
        event.fd = descriptor
        event.flags = flags
        return (try? vm.exchange(KVMRequest.ioEventFD, &event, "bind a notification")) != nil
    }
}
