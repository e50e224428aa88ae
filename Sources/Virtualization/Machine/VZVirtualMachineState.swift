extension VZVirtualMachine {
    /// Where a machine is in its life. The raw values are Apple's.
    public enum State: Int, Hashable, Sendable {
        /// Initial and final state.
        case stopped = 0
        /// The guest executes.
        case running = 1
        case paused = 2
        /// An internal failure; only `start` is legal from here.
        case error = 3
        case starting = 4
        case pausing = 5
        case resuming = 6
        case stopping = 7
        case saving = 8
        case restoring = 9
    }
}

extension VZVirtualMachine.State {
    /// As error sentences name it.
    var name: String { "\(self)" }
}
