/// What the guest's processors offer: levels of the x86-64 psABI. Whoever wants saved states to move, to other hosts or to
/// another engine, chooses one that is there everywhere: but for `host`, a baseline shows only what every engine of ours has.
package enum ProcessorBaseline: String, Sendable, CaseIterable {
    /// All that the engine has on this host.
    case host
    case v1 = "x86-64-v1"
    case v2 = "x86-64-v2"
    case v3 = "x86-64-v3"

    /// What the level adds to the first one, by the names of `ProcessorFeatures`.
    package var levelFeatures: Set<String> {
        switch self {
        case .host, .v1: []
        case .v2: ["ssse3", "sse4.1", "sse4.2", "popcnt"]
        case .v3: Self.v2.levelFeatures.union(["movbe", "xsave", "avx", "avx2", "f16c", "fma", "bmi1", "bmi2", "lzcnt"])
        }
    }
    /// All that a processor of the level may show, how speculation is held back included. nil: all that there is.
    package var features: Set<String>? {
        self == .host ? nil : Self.everywhere.union(levelFeatures).union(ProcessorFeatures.speculationControls)
    }
    private static let everywhere: Set<String> = [
        "fpu", "pse", "tsc", "msr", "pae", "cx8", "apic", "sep", "pge", "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "sse3", "cx16",
        "x2apic", "tsc_deadline_timer", "erms", "fsrm", "lahf_lm", "syscall", "nx", "lm", "kvm_nopiodelay", "kvm_clock2",
    ]
}
