import CLinux
import Glibc
import Hypervisor
import LinuxSystem

/// The kernel's own structures, as bytes, in the order in which a processor takes them back.
/// Linux Documentation/virt/kvm/api.rst § 4.
enum KVMStructure: CaseIterable {
    case activity, registers, specialRegisters, extendedState, extendedControl, debugRegisters, interruptController, events

    private static func make(_ direction: UInt, _ number: UInt, _ size: Int) -> UInt { direction << 30 | UInt(size) << 16 | 0xAE << 8 | number }
    var size: Int {
        switch self {
        case .activity: 4
        case .registers: MemoryLayout<kvm_regs>.size
        case .specialRegisters: MemoryLayout<kvm_sregs>.size
        case .extendedState: 4096
        case .extendedControl: 392
        case .debugRegisters: 128
        case .interruptController: 1024
        case .events: 64
        }
    }
    private var numbers: (get: UInt, set: UInt) {
        switch self {
        case .activity: (0x98, 0x99)
        case .registers: (0x81, 0x82)
        case .specialRegisters: (0x83, 0x84)
        case .extendedState: (0xA4, 0xA5)
        case .extendedControl: (0xA6, 0xA7)
        case .debugRegisters: (0xA1, 0xA2)
        case .interruptController: (0x8E, 0x8F)
        case .events: (0x9F, 0xA0)
        }
    }
    var get: UInt { Self.make(2, numbers.get, size) }
    var set: UInt { Self.make(1, numbers.set, size) }
    static let total = allCases.reduce(0) { $0 + $1.size }

    // Of the machine.
    static let irqChipSize = 520
    static let getIRQChip = make(3, 0x62, irqChipSize)
    static let setIRQChip = make(2, 0x63, irqChipSize)
    static let clockSize = 48
    static let setClock = make(1, 0x7B, clockSize)
    static let getClock = make(2, 0x7C, clockSize)
    static let getMSRs = make(3, 0x88, 8)
    static let setFrequency = make(0, 0xA2, 0)
    static let getFrequency = make(0, 0xA3, 0)
    /// KVM_KVMCLOCK_CTRL: the guest did not run for a while.
    static let noteStop = make(0, 0xAD, 0)
}

/// Model-specific registers that the structures above do not hold.
enum KVMRegister {
    static let timeStampCounter: UInt32 = 0x10
    static let deadline: UInt32 = 0x6E0
    static let sysenter: [UInt32] = [0x174, 0x175, 0x176]
    static let star: UInt32 = 0xC000_0081
    static let lstar: UInt32 = 0xC000_0082
    static let cstar: UInt32 = 0xC000_0083
    static let sfmask: UInt32 = 0xC000_0084
    static let kernelGSBase: UInt32 = 0xC000_0102
    static let saved: [UInt32] =
        [timeStampCounter] + sysenter + [star, lstar, cstar, sfmask, kernelGSBase] + [
            // SPEC_CTRL ARCH_CAPABILITIES MISC_ENABLE PAT MTRRdefType XSS TSC_AUX VIRT_SPEC_CTRL DE_CFG
            0x48, 0x10A, 0x1A0, 0x277, 0x2FF, 0xDA0, 0xC000_0103, 0xC001_011F, 0xC001_1029,
            0x4B56_4D00, 0x4B56_4D01, 0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D04, deadline,
        ]
}

extension KVMDescriptor {
    func bytes(_ request: UInt, _ size: Int, beginning head: [UInt8] = [], _ operation: @autoclosure () -> String) throws(SystemError) -> [UInt8] {
        var buffer = head + [UInt8](repeating: 0, count: size - head.count)
        let result = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, request, $0.baseAddress) }
        if result < 0 { throw SystemError(operation()) }
        return buffer
    }
    func give(_ request: UInt, _ bytes: [UInt8], _ operation: @autoclosure () -> String) throws(SystemError) {
        var buffer = bytes
        let result = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, request, $0.baseAddress) }
        if result < 0 { throw SystemError(operation()) }
    }
    /// nil when this KVM does not have the register.
    func register(_ number: UInt32) -> UInt64? {
        var buffer: [UInt64] = [1, UInt64(number), 0]  // kvm_msrs{nmsrs, pad}, kvm_msr_entry{index, reserved, data}
        let result = buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, KVMStructure.getMSRs, $0.baseAddress) }
        return result == 1 ? buffer[2] : nil
    }
    @discardableResult func setRegister(_ number: UInt32, _ value: UInt64) -> Bool {
        var buffer: [UInt64] = [1, UInt64(number), value]
        return buffer.withUnsafeMutableBytes { clinux_ioctl_pointer(fd, KVMRequest.setMSRs, $0.baseAddress) } == 1
    }
}
