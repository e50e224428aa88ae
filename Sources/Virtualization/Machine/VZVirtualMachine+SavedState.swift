import Foundation

// Saved states are not there yet: these check what Apple's do and then say so.

extension VZVirtualMachineConfiguration {
    /// Throws: no machine can be saved yet.
    public func validateSaveRestoreSupport() throws {
        try validate()
        throw VZError(.notSupported, reason: "Saving and restoring virtual machines is not supported yet.")
    }
}

extension VZVirtualMachine {
    /// Only from `.paused`; fails with `VZError.save`, for it is not supported yet, and leaves the machine as it is.
    public func saveMachineStateTo(url saveFileURL: URL, completionHandler: @escaping ((any Error)?) -> Void) {
        let error =
            state == .paused
            ? VZError(.save, reason: "Saving virtual machines is not supported yet.")
            : VZError(.invalidVirtualMachineState, reason: "The virtual machine is \(state.name), not paused.")
        fail(error, completionHandler)
    }
    /// Only from `.stopped`; fails with `VZError.restore`, for it is not supported yet.
    public func restoreMachineStateFrom(url saveFileURL: URL, completionHandler: @escaping ((any Error)?) -> Void) {
        let error =
            state == .stopped
            ? VZError(.restore, reason: "Restoring virtual machines is not supported yet.")
            : VZError(
                .invalidVirtualMachineStateTransition,
                reason: "Transition from state \"\(state.name)\" to state \"\(State.restoring.name)\" is invalid.")
        fail(error, completionHandler)
    }
    private func fail(_ error: VZError, _ completionHandler: @escaping ((any Error)?) -> Void) {
        let handler = Unchecked(completionHandler)
        queue.async { handler.value(error) }
    }

    public nonisolated(nonsending) func saveMachineStateTo(url saveFileURL: URL) async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            onQueue { self.saveMachineStateTo(url: saveFileURL) { continuation.resume(with: $0.map { .failure($0) } ?? .success(())) } }
        }
    }
    public nonisolated(nonsending) func restoreMachineStateFrom(url saveFileURL: URL) async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            onQueue { self.restoreMachineStateFrom(url: saveFileURL) { continuation.resume(with: $0.map { .failure($0) } ?? .success(())) } }
        }
    }
}
