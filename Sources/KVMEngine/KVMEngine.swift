import CLinux
import Glibc
import GuestMemory
import Hypervisor
import LinuxSystem
import Synchronization

/// Virtual machines on the host's processor, through /dev/kvm.
///
/// The one process-wide thing here is the handler of SIGRTMIN, which does nothing: the signal only ends KVM_RUN.
package struct KVMEngine: HypervisorEngine {
    private let system: KVMDescriptor

    /// Opens /dev/kvm and checks what we need of it; throws an `EngineError` with a sentence for the user.
    package init() throws {
        let fd = open("/dev/kvm", O_RDWR | O_CLOEXEC)
        guard fd >= 0 else {
            switch errno {
            case ENOENT: throw EngineError("there is no /dev/kvm: the kernel's KVM module is not loaded, or this host offers no virtualization")
            case EACCES, EPERM: throw EngineError("/dev/kvm may not be opened: add this user to the group kvm (usermod -aG kvm $USER) and log in again")
            default: throw EngineError("/dev/kvm cannot be opened: \(String(cString: strerror(errno)))")
            }
        }
        system = KVMDescriptor(fd)
        let version = try system.call(KVMRequest.getAPIVersion, 0, "ask KVM for its version")
        guard version == 12 else { throw EngineError("KVM has API version \(version), not 12") }
        for capability in KVMCapability.required where try system.call(KVMRequest.checkExtension, capability.number, "ask KVM for \(capability.name)") == 0 {
            throw EngineError("this KVM lacks \(capability.name)")
        }
        Self.ignoreKickSignal
    }
    /// Installed once; a handler other programs put there stays.
    private static let ignoreKickSignal: Void = {
        var old = sigaction()
        sigaction(clinux_sigrtmin(), nil, &old)
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { _ in }
        sigaction(clinux_sigrtmin(), &action, nil)
    }()

    /// Of the guests' time stamp counters where KVM does not scale them, in kHz; nil where there is no KVM to ask.
    package static func timeStampFrequency() -> UInt64? {
        guard let engine = try? KVMEngine(), let vm = try? engine.system.call(KVMRequest.createVM, 0, "create a KVM machine") else { return nil }
        let machine = KVMDescriptor(Int32(vm))
        guard let vcpu = try? machine.call(KVMRequest.createVCPU, 0, "create processor 0") else { return nil }
        let processor = KVMDescriptor(Int32(vcpu))
        let frequency = clinux_ioctl(processor.fd, KVMStructure.getFrequency, 0)
        return frequency > 0 ? UInt64(frequency) : nil
    }

    package var name: String { "kvm" }
    package var maximumVCPUCount: Int { 64 }

    package func makeMachine(memory: GuestMemory, vcpuCount: Int, baseline: ProcessorBaseline, bus: any AccessBus) throws -> any HypervisorMachine {
        try KVMMachine(system: system, memory: memory, vcpuCount: vcpuCount, baseline: baseline, bus: bus)
    }
}
