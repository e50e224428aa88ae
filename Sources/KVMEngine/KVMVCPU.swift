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
    private unowned let bus: any AccessBus
    private struct Kick {
        var cancelled = false
        var thread: pthread_t?
    }
    private let kick = Mutex(Kick())

    init(index: Int, count: Int, vm: KVMDescriptor, mapSize: Int, cpuid: KVMProcessorIdentity, bus: any AccessBus) throws {
        self.index = index
        self.bus = bus
        self.mapSize = mapSize
        fd = KVMDescriptor(Int32(try vm.call(KVMRequest.createVCPU, UInt(index), "create processor \(index)")))
        let map = mmap(nil, mapSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd.fd, 0)
        guard let map, map != MAP_FAILED else { throw SystemError("map processor \(index)") }
        area = map.assumingMemoryBound(to: kvm_run.self)
        try cpuid.apply(to: fd, index: index, count: count)
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

    func setState(_ state: VCPUState) throws {
        var special = kvm_sregs()
        try fd.exchange(KVMRequest.getSpecialRegisters, &special, "read processor \(index)")
        special.cr0 = state.cr0
        special.cr3 = state.cr3
        special.cr4 = state.cr4
        special.efer = state.efer
        if state.segments.count == 6 {
            special.es = Self.segment(state.segments[0])
            special.cs = Self.segment(state.segments[1])
            special.ss = Self.segment(state.segments[2])
            special.ds = Self.segment(state.segments[3])
            special.fs = Self.segment(state.segments[4])
            special.gs = Self.segment(state.segments[5])
        }
        special.tr = Self.segment(state.tr)
        special.ldt = Self.segment(state.ldtr)
        special.gdt.base = state.gdtBase
        special.gdt.limit = UInt16(truncatingIfNeeded: state.gdtLimit)
        special.idt.base = state.idtBase
        special.idt.limit = UInt16(truncatingIfNeeded: state.idtLimit)
        try fd.exchange(KVMRequest.setSpecialRegisters, &special, "set up processor \(index)")
        var registers = kvm_regs()
        let g = state.gpr
        (registers.rax, registers.rcx, registers.rdx, registers.rbx) = (g[0], g[1], g[2], g[3])
        (registers.rsp, registers.rbp, registers.rsi, registers.rdi) = (g[4], g[5], g[6], g[7])
        (registers.r8, registers.r9, registers.r10, registers.r11) = (g[8], g[9], g[10], g[11])
        (registers.r12, registers.r13, registers.r14, registers.r15) = (g[12], g[13], g[14], g[15])
        registers.rip = state.rip
        registers.rflags = state.rflags
        try fd.exchange(KVMRequest.setRegisters, &registers, "set up processor \(index)")
    }
    func getState() throws -> VCPUState {
        var registers = kvm_regs()
        var special = kvm_sregs()
        try fd.exchange(KVMRequest.getRegisters, &registers, "read processor \(index)")
        try fd.exchange(KVMRequest.getSpecialRegisters, &special, "read processor \(index)")
        var state = VCPUState()
        state.gpr = [
            registers.rax, registers.rcx, registers.rdx, registers.rbx, registers.rsp, registers.rbp, registers.rsi, registers.rdi, registers.r8,
            registers.r9, registers.r10, registers.r11, registers.r12, registers.r13, registers.r14, registers.r15,
        ]
        state.rip = registers.rip
        state.rflags = registers.rflags
        (state.cr0, state.cr3, state.cr4, state.efer) = (special.cr0, special.cr3, special.cr4, special.efer)
        return state
    }
    private static func segment(_ s: SegmentState) -> kvm_segment {
        var out = kvm_segment()
        out.base = s.base
        out.limit = s.limit
        out.selector = s.selector
        out.type = UInt8(s.attributes & 15)
        out.s = UInt8(s.attributes >> 4 & 1)
        out.dpl = UInt8(s.attributes >> 5 & 3)
        out.present = UInt8(s.attributes >> 7 & 1)
        out.avl = UInt8(s.attributes >> 8 & 1)
        out.l = UInt8(s.attributes >> 9 & 1)
        out.db = UInt8(s.attributes >> 10 & 1)
        out.g = UInt8(s.attributes >> 11 & 1)
        return out
    }
}
