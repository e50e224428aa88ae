import CLinux
import Glibc
import Hypervisor
import LinuxSystem
import Synchronization

/// One KVM vCPU.
final class KVMVCPU: VirtualCPU, @unchecked Sendable {  // `run` area and registers belong to the running thread
    let index: Int
    let fd: KVMDescriptor
    private let area: UnsafeMutablePointer<kvm_run>
    private let mapSize: Int
    /// What CPUID shows. Changed only before it runs.
    private(set) var identity: [CPUIDLeaf]
    private unowned let bus: any AccessBus
    private struct Kick {
        var cancelled = false
        var thread: pthread_t?
    }
    private let kick = Mutex(Kick())

    init(index: Int, vm: KVMDescriptor, mapSize: Int, identity: [CPUIDLeaf], bus: any AccessBus) throws {
        self.index = index
        self.bus = bus
        self.mapSize = mapSize
        self.identity = identity
        fd = KVMDescriptor(Int32(try vm.call(KVMRequest.createVCPU, UInt(index), "create processor \(index)")))
        let map = mmap(nil, mapSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd.fd, 0)
        guard let map, map != MAP_FAILED else { throw SystemError("map processor \(index)") }
        area = map.assumingMemoryBound(to: kvm_run.self)
        try KVMProcessorIdentity.show(identity, on: fd)
        setInitialMSRs()
    }
    deinit { munmap(area, mapSize) }

    /// Fast strings on, and write-back as default memory type; a host without one of them refuses it, and that is fine.
    private func setInitialMSRs() {
        for (number, value) in [(0x1A0, 1), (0x2FF, 1 << 11 | 6)] as [(UInt32, UInt64)] {
            var buffer: [UInt64] = [1, UInt64(number), value]  // kvm_msrs{nmsrs, pad}, kvm_msr_entry{index, reserved, data}
            _ = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd.fd, KVMRequest.setMSRs, $0.baseAddress) }
        }
    }

    func cancel() {
        kick.withLock { state in
            state.cancelled = true
            area.pointee.immediate_exit = 1
            if let thread = state.thread { pthread_kill(thread, clinux_sigrtmin()) }
        }
    }

    func run() -> VCPUExit {
        kick.withLock { $0.thread = pthread_self() }
        // Threads that descend from a dispatch worker have every signal blocked.
        var signals = sigset_t()
        sigemptyset(&signals)
        sigaddset(&signals, clinux_sigrtmin())
        pthread_sigmask(SIG_UNBLOCK, &signals, nil)
        defer { kick.withLock { $0.thread = nil } }
        while true {
            let result = clinux_ioctl(fd.fd, KVMRequest.run, 0)
            if result < 0 {
                if errno == EINTR || errno == EAGAIN {
                    let cancelled = kick.withLock { state -> Bool in
                        defer { state.cancelled = false }
                        area.pointee.immediate_exit = 0
                        return state.cancelled
                    }
                    if cancelled { return .cancelled }
                    continue
                }
                return .internalError("KVM cannot run processor \(index): \(String(cString: strerror(errno)))")
            }
            if let exit = handleExit() { return exit }
        }
    }

    private func handleExit() -> VCPUExit? {
        switch Int32(area.pointee.exit_reason) {
        case KVM_EXIT_IO: handlePort()
        case KVM_EXIT_MMIO: handleMemory()
        case KVM_EXIT_SHUTDOWN: return .shutdown
        case KVM_EXIT_INTR, KVM_EXIT_HLT: break
        case KVM_EXIT_FAIL_ENTRY:
            return .internalError("KVM refused to enter the guest (reason 0x\(String(area.pointee.fail_entry.hardware_entry_failure_reason, radix: 16)))")
        case KVM_EXIT_INTERNAL_ERROR: return .internalError("KVM reported an internal error (\(area.pointee.internal.suberror))")
        case let reason: return .internalError("KVM stopped with the unknown reason \(reason)")
        }
        return nil
    }
    private func handlePort() {
        let io = area.pointee.io
        let size = Int(io.size)
        var data = UnsafeMutableRawPointer(area) + Int(io.data_offset)
        for _ in 0..<io.count {
            if io.direction == 0 {
                let value = bus.portRead(io.port, size: size)
                withUnsafeBytes(of: value.littleEndian) { data.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: min(size, 4)) }
            } else {
                var value: UInt32 = 0
                withUnsafeMutableBytes(of: &value) { $0.baseAddress.unsafelyUnwrapped.copyMemory(from: data, byteCount: min(size, 4)) }
                bus.portWrite(io.port, value, size: size)
            }
            data += size
        }
    }
    private func handleMemory() {
        let address = area.pointee.mmio.phys_addr
        let size = min(Int(area.pointee.mmio.len), 8)
        if area.pointee.mmio.is_write != 0 {
            var value: UInt64 = 0
            withUnsafeMutableBytes(of: &value) { target in
                withUnsafeBytes(of: &area.pointee.mmio.data) { target.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0.prefix(size))) }
            }
            bus.memoryWrite(address, value, size: size)
        } else {
            let value = bus.memoryRead(address, size: size)
            withUnsafeMutableBytes(of: &area.pointee.mmio.data) { target in
                withUnsafeBytes(of: value) { target.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0.prefix(size))) }
            }
        }
    }

    // MARK: state

    /// Before it runs.
    func show(_ leaves: [CPUIDLeaf]) throws {
        try KVMProcessorIdentity.show(leaves, on: fd)
        identity = leaves
    }

    func setState(_ state: VCPUState) throws {
        var special = kvm_sregs()
        try fd.exchange(KVMRequest.getSpecialRegisters, &special, "read processor \(index)")
        special.set(state)
        try fd.exchange(KVMRequest.setSpecialRegisters, &special, "set up processor \(index)")
        var registers = kvm_regs()
        registers.set(state)
        try fd.exchange(KVMRequest.setRegisters, &registers, "set up processor \(index)")
    }
    func getState() throws -> VCPUState { try makeImage().state }
}
