import CLinux
import Glibc
import LinuxSystem

/// ioctl numbers of <linux/kvm.h>, which Swift does not import; computed as the macros do. Linux Documentation/virt/kvm/api.rst.
enum KVMRequest {
    private static func make(_ direction: UInt, _ number: UInt, _ size: Int) -> UInt { direction << 30 | UInt(size) << 16 | 0xAE << 8 | number }
    private static func none(_ number: UInt) -> UInt { make(0, number, 0) }
    private static func write<T>(_ number: UInt, _: T.Type) -> UInt { make(1, number, MemoryLayout<T>.size) }
    private static func read<T>(_ number: UInt, _: T.Type) -> UInt { make(2, number, MemoryLayout<T>.size) }

    static let getAPIVersion = none(0x00)
    static let createVM = none(0x01)
    static let checkExtension = none(0x03)
    static let getVCPUMapSize = none(0x04)
    static let getSupportedCPUID = make(3, 0x05, MemoryLayout<kvm_cpuid2>.size)
    static let createVCPU = none(0x41)
    static let setUserMemoryRegion = write(0x46, kvm_userspace_memory_region.self)
    static let setTSSAddress = none(0x47)
    static let setIdentityMapAddress = write(0x48, UInt64.self)
    static let createIRQChip = none(0x60)
    static let irqLine = write(0x61, kvm_irq_level.self)
    static let setGSIRouting = make(1, 0x6A, 8)  // the head of kvm_irq_routing
    static let irqFD = write(0x76, kvm_irqfd.self)
    static let ioEventFD = write(0x79, kvm_ioeventfd.self)
    static let run = none(0x80)
    static let getRegisters = read(0x81, kvm_regs.self)
    static let setRegisters = write(0x82, kvm_regs.self)
    static let getSpecialRegisters = read(0x83, kvm_sregs.self)
    static let setSpecialRegisters = write(0x84, kvm_sregs.self)
    static let setMSRs = write(0x89, kvm_msrs.self)
    static let setCPUID2 = write(0x90, kvm_cpuid2.self)
    static let signalMSI = write(0xA5, kvm_msi.self)
}

/// Capabilities we cannot do without, with their names for error messages.
enum KVMCapability {
    static let required: [(number: UInt, name: String)] = [
        (0, "KVM_CAP_IRQCHIP"), (3, "KVM_CAP_USER_MEMORY"), (7, "KVM_CAP_EXT_CPUID"), (25, "KVM_CAP_IRQ_ROUTING"), (32, "KVM_CAP_IRQFD"),
        (36, "KVM_CAP_IOEVENTFD"), (77, "KVM_CAP_SIGNAL_MSI"),
        (136, "KVM_CAP_IMMEDIATE_EXIT"),
    ]
    static let tscDeadlineTimer: UInt = 72
    static let maximumVCPUs: UInt = 66
}

/// A descriptor of KVM: closed with the object.
final class KVMDescriptor: Sendable {
    let fd: Int32
    init(_ fd: Int32) { self.fd = fd }
    deinit { close(fd) }

    @discardableResult func call(_ request: UInt, _ argument: UInt = 0, _ operation: @autoclosure () -> String) throws(SystemError) -> Int {
        try SystemError.check(operation()) { Int(clinux_ioctl(fd, request, argument)) }
    }
    @discardableResult func call(_ request: UInt, pointer: UnsafeMutableRawPointer, _ operation: @autoclosure () -> String) throws(SystemError) -> Int {
        try SystemError.check(operation()) { Int(clinux_ioctl_pointer(fd, request, pointer)) }
    }
    /// Passes `value` and takes back what the kernel made of it.
    func exchange<T>(_ request: UInt, _ value: inout T, _ operation: @autoclosure () -> String) throws(SystemError) {
        let result = withUnsafeMutablePointer(to: &value) { clinux_ioctl_pointer(fd, request, UnsafeMutableRawPointer($0)) }
        if result < 0 { throw SystemError(operation()) }
    }
}
