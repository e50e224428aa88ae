/// What a guest's flush does.
public enum VZDiskImageSynchronizationMode: Int, Hashable, Sendable {
    /// The data is on permanent storage afterwards (fdatasync).
    case full = 1
    /// The same on Linux, where fdatasync already flushes the drive.
    case fsync = 2
    /// Nothing: a crash of the host loses data.
    case none = 3
}
