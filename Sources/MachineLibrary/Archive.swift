import Foundation

/// A cpio archive in the "newc" format that Linux unpacks as initial RAM disk. Linux Documentation/driver-api/early-userspace/buffer-format.rst.
struct CPIOArchive {
    private(set) var bytes: [UInt8] = []
    private var inode: UInt32 = 1

    mutating func directory(_ path: String) { entry(path, mode: 0o040755, content: []) }
    mutating func file(_ path: String, _ content: [UInt8], executable: Bool = false) {
        entry(path, mode: executable ? 0o100755 : 0o100644, content: content)
    }
    mutating func symbolicLink(_ path: String, to target: String) { entry(path, mode: 0o120777, content: Array(target.utf8)) }
    mutating func device(_ path: String, major: UInt32, minor: UInt32) { entry(path, mode: 0o020600, content: [], device: (major, minor)) }
    /// Ends the archive.
    mutating func finish() { entry("TRAILER!!!", mode: 0, content: []) }

    private mutating func entry(_ path: String, mode: UInt32, content: [UInt8], device: (UInt32, UInt32) = (0, 0)) {
        func hex(_ value: UInt32) -> [UInt8] {
            let text = String(value, radix: 16)
            return Array((String(repeating: "0", count: 8 - text.count) + text).utf8)
        }
        bytes += Array("070701".utf8)
        for field in [inode, mode, 0, 0, 1, 0, UInt32(content.count), 0, 0, device.0, device.1, UInt32(path.utf8.count + 1), 0] { bytes += hex(field) }
        bytes += Array(path.utf8) + [0]
        pad()
        bytes += content
        pad()
        inode += 1
    }
    private mutating func pad() { while bytes.count % 4 != 0 { bytes.append(0) } }
}
