import Foundation

/// What machines have of the process that runs the tests.
enum OwnProcess {
    /// Names of the threads that are the library's.
    static var machineThreads: [String] {
        list("/proc/self/task").compactMap { try? String(contentsOfFile: "/proc/self/task/\($0)/comm", encoding: .utf8) }.filter { $0.hasPrefix("vz-") }
    }
    /// How many open files have this in their name.
    static func descriptors(of name: String) -> Int {
        list("/proc/self/fd").filter { ((try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)")) ?? "").contains(name) }.count
    }
    static func mappings(of path: String) -> Int {
        ((try? String(contentsOfFile: "/proc/self/maps", encoding: .utf8)) ?? "").components(separatedBy: path).count - 1
    }
    private static func list(_ directory: String) -> [String] { (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? [] }
}
