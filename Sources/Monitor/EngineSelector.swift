import Glibc
import Hypervisor
import PlatformDevices
import SoftwareEngine

/// Which engine to use here. Found out once a process, at first use.
package enum EngineSelector {
    package struct Choice: Sendable {
        package let engine: any HypervisorEngine
        package let reason: String
    }
    package static let software: any HypervisorEngine = SoftwareEngine { try SoftwareInterruptController(cpuCount: $0, clockBase: $1) }
    package static let automatic: Choice = Choice(engine: software, reason: "KVM is not built in yet")

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
        case "kvm": throw EngineError("The KVM engine cannot be used: \(automatic.reason).")
        default: throw EngineError("There is no engine \"\(name)\"; VZ_ENGINE takes auto, kvm or software.")
        }
    }
}
