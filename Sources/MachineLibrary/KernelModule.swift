import CCompression
import Foundation

/// A module of Linux as a distribution's package has it: plain or compressed.
enum KernelModule {
    private static let largest = 256 << 20

    /// The module, and its file's name without what says how it is compressed.
    static func read(_ file: URL) throws -> (name: String, bytes: [UInt8]) {
        let data = [UInt8](try Data(contentsOf: file))
        switch file.pathExtension {
        case "xz": return (file.deletingPathExtension().lastPathComponent, try unpack(data, file) { ccompression_unxz($0, $1, $2, $3) })
        case "zst": return (file.deletingPathExtension().lastPathComponent, try unpack(data, file) { ccompression_unzstd($0, $1, $2, $3) })
        default: return (file.lastPathComponent, data)
        }
    }

    private static func unpack(_ data: [UInt8], _ file: URL, _ decoder: (UnsafeRawPointer?, Int, UnsafeMutableRawPointer?, Int) -> Int) throws -> [UInt8] {
        // Nothing says how large it will be.
        var capacity = max(data.count * 8, 64 << 10)
        while capacity <= largest {
            let result = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
                count = max(data.withUnsafeBytes { decoder($0.baseAddress, $0.count, buffer.baseAddress, capacity) }, 0)
            }
            if !result.isEmpty { return result }
            capacity *= 2
        }
        throw LibraryError("\(file.path) is damaged: it cannot be decompressed")
    }
}
