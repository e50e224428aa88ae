import DiskStorage
import Foundation

/// Beyond Apple's API: raw disk images as files.
public enum RawImage {
    /// Makes an image larger, with zeroes behind its old end; nothing may be using it. Overlays over it are of no use then.
    /// - Parameter size: in bytes, a multiple of 512, no less than it has.
    public static func grow(_ url: URL, to size: UInt64) throws {
        guard size <= UInt64(Int64.max) else { throw VZError(.invalidDiskImage, reason: "\(size) bytes are more than a file can have.") }
        do throws(DiskError) { try RawDisk.grow(url.path, to: size) } catch { throw VZError(.invalidDiskImage, reason: error.description.capitalizedFirst + ".") }
    }
}
