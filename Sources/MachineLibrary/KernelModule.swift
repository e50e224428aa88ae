import CCompression
import Foundation

/// A module of Linux as Debian's packages have it: plain, or since Debian 13 in XZ.
enum KernelModule {
    private static let largest = 256 << 20

    /// The module, and its file's name without what says how it is compressed.
    static func read(_ file: URL) throws -> (name: String, bytes: [UInt8]) {
        let data = [UInt8](try Data(contentsOf: file))
        guard file.pathExtension == "xz" else { return (file.lastPathComponent, data) }
        guard let bytes = unpack(data) else { throw LibraryError("\(file.path) is damaged: it cannot be decompressed") }
        return (file.deletingPathExtension().lastPathComponent, bytes)
    }

    private static func unpack(_ data: [UInt8]) -> [UInt8]? {
        // Nothing says how large it will be.
        var capacity = max(data.count * 8, 64 << 10)
        while capacity <= largest {
            let result = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
                count = max(data.withUnsafeBytes { ccompression_unxz($0.baseAddress, $0.count, buffer.baseAddress, capacity) }, 0)
            }
            if !result.isEmpty { return result }
            capacity *= 2
        }
        return nil
    }
}
