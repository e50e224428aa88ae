/// Which instructions a guest is shown, so that a saved machine can go on somewhere else. x86-64 psABI, micro-architecture levels.
package enum ProcessorBaseline: String, Sendable, CaseIterable {
    /// All that the engine has on this host.
    case host
    case v1 = "x86-64-v1"
    case v2 = "x86-64-v2"
    case v3 = "x86-64-v3"
}
