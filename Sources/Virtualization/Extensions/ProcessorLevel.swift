import Hypervisor

/// Beyond Apple's API: the instruction set that a guest is shown, by the levels of the x86-64 psABI. A machine saved with one
/// level can go on wherever a host has that level, under either engine: but for `host`, a level shows what both engines have, so
/// that on KVM, too, there is no PCID, SMEP, SMAP or FSGSBASE.
public enum ProcessorLevel: String, Sendable, CaseIterable {
    /// All that the engine has on this host.
    case host
    /// SSE2, and SSE3 and CMPXCHG16B, which 64-bit kernels expect.
    case v1 = "x86-64-v1"
    /// SSSE3, SSE4.1, SSE4.2, POPCNT.
    case v2 = "x86-64-v2"
    /// AVX, AVX2, BMI, F16C, FMA, LZCNT, MOVBE.
    case v3 = "x86-64-v3"

    var baseline: ProcessorBaseline {
        switch self {
        case .host: return .host
        case .v1: return .v1
        case .v2: return .v2
        case .v3: return .v3
        }
    }
}

extension VZVirtualMachineConfiguration {
    /// Beyond Apple's API: the instruction set that the guest is shown. `start` fails where the host does not have it.
    public var processorLevel: ProcessorLevel {
        get { chosenProcessorLevel }
        set { chosenProcessorLevel = newValue }
    }
}
