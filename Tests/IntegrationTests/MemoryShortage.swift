import Foundation

#if canImport(Glibc)
    import Glibc
#endif

/// Programs of the host that wait for memory: a control group of 24 MiB in which two of them read 200 MiB of files over and over.
/// What goes wrong in there hurts nobody else.
final class MemoryShortage {
    private static let limit = 24 << 20
    private static let readers = 2
    private let group: URL
    private let directory: URL

    /// Where control groups for memory are made here; nil where this user may make none, or the kernel tells of nobody's waiting.
    static var root: URL? {
        guard access("/proc/pressure/memory", R_OK) == 0 else { return nil }
        let first = URL(fileURLWithPath: "/sys/fs/cgroup/memory")
        if access(first.appendingPathComponent("memory.limit_in_bytes").path, R_OK) == 0 { return access(first.path, W_OK) == 0 ? first : nil }
        let second = URL(fileURLWithPath: "/sys/fs/cgroup")
        let delegated = (try? String(contentsOf: second.appendingPathComponent("cgroup.subtree_control"), encoding: .utf8)) ?? ""
        return access(second.path, W_OK) == 0 && delegated.split(whereSeparator: \.isWhitespace).contains("memory") ? second : nil
    }
    private static func write(_ value: String, _ file: URL) throws { try Data(value.utf8).write(to: file) }

    init(in root: URL) throws {
        group = root.appendingPathComponent("swift-virtualization-test-\(getpid())")
        directory = FileManager.default.temporaryDirectory.appendingPathComponent("shortage-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        try FileManager.default.createDirectory(at: group, withIntermediateDirectories: false)
        let isFirst = access(group.appendingPathComponent("memory.limit_in_bytes").path, F_OK) == 0
        try Self.write("\(Self.limit)", group.appendingPathComponent(isFirst ? "memory.limit_in_bytes" : "memory.max"))
        for number in 0..<Self.readers {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: "/bin/sh")
            process.arguments = [
                "-c", "echo 0 >\"$0/cgroup.procs\"; head -c 104857600 /dev/zero >\"$1\"; while cat \"$1\" >/dev/null; do :; done", group.path,
                directory.appendingPathComponent("\(number)").path,
            ]
            process.standardError = FileHandle.nullDevice
            process.standardInput = FileHandle.nullDevice
            try process.run()
        }
    }
    deinit {
        // Each time there may be a new `cat`; a group that is empty can be removed.
        for _ in 0..<500 {
            if rmdir(group.path) == 0 { break }
            let processes = (try? String(contentsOf: group.appendingPathComponent("cgroup.procs"), encoding: .utf8)) ?? ""
            for process in processes.split(separator: "\n").compactMap({ pid_t($0) }) { kill(process, SIGKILL) }
            usleep(20_000)
        }
        try? FileManager.default.removeItem(at: directory)
    }
}
