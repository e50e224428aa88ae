/// Whether the host's page cache is used for a disk image.
public enum VZDiskImageCachingMode: Int, Hashable, Sendable {
    /// Cached.
    case automatic = 0
    /// Around the host's cache where alignment allows (O_DIRECT).
    case uncached = 1
    case cached = 2
}
