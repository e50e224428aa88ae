import Foundation
import Hypervisor
import Monitor

/// Beyond Apple's API: what runs the guest's processors.
public enum MachineEngine: String, Sendable, CaseIterable {
    /// KVM where it works, else the software engine; `VZ_ENGINE` in the environment decides for it.
    case automatic = "auto"
    /// The host's processor, through /dev/kvm.
    case kvm
    /// Our own x86-64 processor.
    case software

    /// What this host offers, and why.
    public struct Report: Sendable {
        /// "kvm" or "software": what `.automatic` means here.
        public let chosen: String
        /// Why KVM is used or not, in a sentence.
        public let reason: String
    }
    /// Finds out once a process; a bounded self-test of KVM is part of it.
    public static var report: Report {
        let choice = EngineSelector.automatic
        return Report(chosen: choice.engine.name, reason: choice.reason)
    }

    func select() throws -> any HypervisorEngine {
        do {
            switch self {
            case .automatic: return try EngineSelector.fromEnvironment()
            case .kvm: return try EngineSelector.named("kvm")
            case .software: return try EngineSelector.named("software")
            }
        } catch {
            throw VZError(.notSupported, reason: "\(error)")
        }
    }
}

extension VZVirtualMachineConfiguration {
    /// Beyond Apple's API: which engine runs the machine.
    public var engine: MachineEngine {
        get { chosenEngine }
        set { chosenEngine = newValue }
    }
    /// Beyond Apple's API: where the output of the legacy serial port (ttyS0) goes; it works from the kernel's first line.
    public var legacySerialOutput: FileHandle? {
        get { chosenSerialOutput }
        set { chosenSerialOutput = newValue }
    }
}

extension VZVirtualMachine {
    /// Beyond Apple's API: tells the guest the size of the terminal behind its first console.
    public func setTerminalSize(columns: Int, rows: Int) {
        resizeFirstConsole(columns: UInt16(clamping: columns), rows: UInt16(clamping: rows))
    }
}
