import Glibc
import Hypervisor
import KVMEngine
import LinuxSystem
import PlatformDevices
import SoftwareEngine

/// Which engine to use here. Found out once a process, at first use.
package enum EngineSelector {
    package struct Choice: Sendable {
        package let engine: any HypervisorEngine
        package let reason: String
    }
    package static let software: any HypervisorEngine = {
        HostTimeStamp.begin()
        return SoftwareEngine(frequency: { timeStampFrequency }) { try SoftwareInterruptController(cpuCount: $0, clock: $1) }
    }()
    /// The host's own where that is known, so that a saved state can go on under a KVM that cannot scale.
    private static let timeStampFrequency: UInt64 = KVMEngine.timeStampFrequency() ?? HostTimeStamp.frequency ?? 1_000_000

    /// KVM if it passes its self-test, else the software engine with the reason.
    package static let automatic: Choice = {
        do {
            let kvm = try KVMEngine()
            if let reason = KVMSelfTest.run(kvm) { return Choice(engine: software, reason: "KVM is not usable: \(reason)") }
            return Choice(engine: kvm, reason: "KVM passed its self-test")
        } catch {
            return Choice(engine: software, reason: "KVM is not usable: \(error)")
        }
    }()

    /// `VZ_ENGINE`, or the automatic choice.
    package static func fromEnvironment() throws -> any HypervisorEngine {
        guard let value = getenv("VZ_ENGINE") else { return automatic.engine }
        let name = String(cString: value)
        return name.isEmpty || name == "auto" ? automatic.engine : try named(name)
    }
    /// A forced engine; an error when it cannot be used.
    package static func named(_ name: String) throws -> any HypervisorEngine {
        switch name {
        case "software": return software
        case "kvm":
            guard automatic.engine.name == "kvm" else { throw EngineError("The KVM engine cannot be used. \(automatic.reason).") }
            return automatic.engine
        default: throw EngineError("There is no engine \"\(name)\"; VZ_ENGINE takes auto, kvm or software.")
        }
    }
}
