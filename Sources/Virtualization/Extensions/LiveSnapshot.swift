import Foundation

extension VZVirtualMachine {
    /// Beyond Apple's API: keeps what the machine is at one instant, its memory, devices and disks together, while it goes on. From
    /// `.running` or `.paused`, where it stays; the guest does not run for some milliseconds.
    ///
    /// The state is one for `restoreMachineStateFrom(url:completionHandler:)`, with the disks' contents of the same instant. Every disk
    /// that can be written must be an `OverlayDiskAttachment`; its file goes on as a new overlay over what `disks` names. That may
    /// have happened even when the snapshot fails later, for example because the state cannot be written.
    /// - Parameters:
    ///   - stateURL: the saved state, which takes its name when it is complete.
    ///   - disks: for each overlay that can be written, in the order of the configuration's storage devices, the name of what it has at
    ///     that instant; on the file system of the overlay, and not there yet.
    ///   - progress: how much is written, from 0 to 1, on the machine's queue.
    ///   - completionHandler: called once all is on permanent storage, with the time in which the guest did not run, in seconds; or with
    ///     `VZError.save`.
    public func takeSnapshot(
        to stateURL: URL, disks: [URL], progress: @escaping (Double) -> Void = { _ in }, completionHandler: @escaping (Result<TimeInterval, any Error>) -> Void
    ) { saveSnapshot(to: stateURL, disks: disks, progress, completionHandler) }
}
