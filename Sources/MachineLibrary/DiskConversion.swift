import Foundation

/// Disk images of other programs' formats, by QEMU's qemu-img.
public struct DiskConversion: Sendable {
    public enum Format: String, CaseIterable, Sendable {
        case raw, qcow2, vmdk, vdi, vhd, vhdx
        /// By a file's name. A format is never guessed from a file's bytes: a guest could have written them.
        public init?(of file: URL) {
            switch file.pathExtension.lowercased() {
            case "img", "raw", "iso": self = .raw
            case "vpc": self = .vhd
            case let other: self.init(rawValue: other)
            }
        }
        /// qemu-img's name.
        var driver: String { self == .vhd ? "vpc" : rawValue }
    }
    private let tool: String
    public init() throws { tool = try Tool.qemuImg.require() }

    /// What a target is called until it is complete.
    public static func temporary(for target: URL) -> URL { URL(fileURLWithPath: target.path + ".partial-\(getpid())") }
    /// Makes a new image of another format. The target takes its name when it is complete.
    /// - Parameter progress: from 0 to 1, on a thread of its own.
    public func convert(_ source: URL, _ format: Format, to target: URL, _ targetFormat: Format, progress: @escaping @Sendable (Double) -> Void) throws {
        guard access(target.path, F_OK) != 0 else { throw LibraryError("\(target.path) exists already") }
        guard access(source.path, R_OK) == 0 else { throw LibraryError("cannot open \(source.path): \(String(cString: strerror(errno)).lowercased())") }
        if format != .raw { try checkReferences(source, format) }
        let temporary = Self.temporary(for: target).path
        defer { unlink(temporary) }
        // Without this, a VHD's size is rounded up to whole cylinders.
        let options = targetFormat == .vhd ? ["-o", "force_size=on"] : []
        let arguments = ["convert", "-p", "-f", format.driver, "-O", targetFormat.driver] + options + [source.path, temporary]
        try run(arguments, what: "convert \(source.lastPathComponent)") { line in
            // "    (12.34/100%)"
            guard let open = line.firstIndex(of: "("), let slash = line.firstIndex(of: "/"), open < slash, let part = Double(line[line.index(after: open)..<slash]) else { return }
            progress(part / 100)
        }
        let fd = open(temporary, O_RDONLY | O_CLOEXEC)
        if fd >= 0 {
            fsync(fd)
            close(fd)
        }
        guard link(temporary, target.path) == 0 else { throw LibraryError("cannot make \(target.path): \(String(cString: strerror(errno)).lowercased())") }
    }
    /// An image can name other files, whose contents would come along: those of a stranger's image could be any of the user's.
    private func checkReferences(_ source: URL, _ format: Format) throws {
        var text = ""
        try run(["info", "-f", format.driver, "--output=json", source.path], what: "read \(source.lastPathComponent)") { text += $0 + "\n" }
        guard let object = try? JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any] else { throw LibraryError("qemu-img says nothing of \(source.path)") }
        if let base = object["backing-filename"] as? String {
            throw LibraryError("\(source.path) stands on another image, \(base); join them first (qemu-img convert -O qcow2)")
        }
        let data = (object["format-specific"] as? [String: Any])?["data"] as? [String: Any]
        var others = [data?["data-file"] as? String].compactMap { $0 }
        others += (data?["extents"] as? [[String: Any]] ?? []).compactMap { $0["filename"] as? String }
        let folder = source.deletingLastPathComponent().resolvingSymlinksInPath().path
        for other in others where URL(fileURLWithPath: other).resolvingSymlinksInPath().deletingLastPathComponent().path != folder {
            throw LibraryError("\(source.path) names a file outside of its folder: \(other)")
        }
    }
    /// Runs qemu-img; lines end with a line feed or a carriage return.
    private func run(_ arguments: [String], what: String, line: (String) -> Void) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: tool)
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        let (output, errors) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        var rest: [UInt8] = []
        while case let data = output.fileHandleForReading.availableData, !data.isEmpty {
            for byte in data {
                if byte != 0x0A, byte != 0x0D { rest.append(byte); continue }
                line(String(decoding: rest, as: UTF8.self))
                rest = []
            }
        }
        line(String(decoding: rest, as: UTF8.self))
        let complaint = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw LibraryError("cannot \(what): " + (complaint.isEmpty ? "qemu-img ended with status \(process.terminationStatus)" : complaint))
        }
    }
}
