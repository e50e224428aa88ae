import Foundation

extension VZVirtualMachine {
    /// Beyond Apple's API: as `saveMachineStateTo(url:completionHandler:)`, telling on the machine's queue how much of the memory is
    /// written, from 0 to 1.
    public func saveMachineState(to url: URL, progress: @escaping (Double) -> Void, completionHandler: @escaping ((any Error)?) -> Void) {
        saveMachineState(to: url, progress: progress, completionHandler)
    }
}
