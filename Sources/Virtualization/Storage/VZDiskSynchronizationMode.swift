/// What a guest's flush does to a block device or a network block device.
public enum VZDiskSynchronizationMode: Int, Hashable, Sendable {
    /// It is passed through.
    case full = 0
    /// It is ignored: a crash of the host or the server loses data.
    case none = 1
}
