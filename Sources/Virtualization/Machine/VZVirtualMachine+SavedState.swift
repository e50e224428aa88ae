import Foundation
import Monitor

extension VZVirtualMachineConfiguration {
    /// Throws when a machine of this configuration cannot be saved: `VZError.invalidVirtualMachineConfiguration` for what is no
    /// valid configuration; every device there is can be saved. Passing is necessary, not sufficient.
    public func validateSaveRestoreSupport() throws { try validate() }
}

extension VZVirtualMachine {
    /// Writes the paused machine's state to a file that takes its name when it is complete; the machine stays paused. Disks are not
    /// part of it. `VZError.save` for what cannot be saved or written.
    public func saveMachineStateTo(url saveFileURL: URL, completionHandler: @escaping ((any Error)?) -> Void) {
        saveMachineState(to: saveFileURL, progress: nil, completionHandler)
    }
    /// Takes the place of the machine that the file was saved of; the machine is paused then. It must be one of the same
    /// configuration, and the file must stay as it is while the machine runs: its memory is mapped, not read. `VZError.restore` for
    /// what cannot be restored.
    public func restoreMachineStateFrom(url saveFileURL: URL, completionHandler: @escaping ((any Error)?) -> Void) {
        restoreMachineState(from: saveFileURL, completionHandler)
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

/// The description in a saved state.
enum SavedDescription {
    static let machineIdentifier = "machineIdentifier"

    @Sendable static func encode(_ state: MachineState) throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        return [UInt8](try encoder.encode(state))
    }
    static func decode(_ bytes: [UInt8]) throws -> MachineState {
        do { return try JSONDecoder().decode(MachineState.self, from: Data(bytes)) } catch {
            throw SavedStateError(.damaged, "the description in it cannot be read")
        }
    }
}

extension VZError {
    /// A failure to save or to restore, with the documented reasons.
    static func state(_ code: Code, _ url: URL, _ error: any Error) -> VZError {
        if let error = error as? VZError { return error }
        let text = "\(error)"
        let reason = (error as? SavedStateError)?.kind == .mismatch ? "The saved state does not fit this machine: \(text)." : text.capitalizedFirst + "."
        return VZError(code, reason: reason, underlying: error)
    }
}
