import ArgumentParser
import Foundation

/// `HOST[:GUEST][:ro]`: a directory of the host, and where it is in the guest (by default /mnt/ and its name).
struct MountedDirectory: ExpressibleByArgument {
    let host: URL
    let guest: String
    let isReadOnly: Bool

    init?(argument: String) {
        var parts = argument.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        isReadOnly = parts.count > 1 && parts.last == "ro"
        if isReadOnly { parts.removeLast() }
        guard (1...2).contains(parts.count), !parts[0].isEmpty else { return nil }
        host = URL(fileURLWithPath: parts[0]).standardizedFileURL
        guest = parts.count == 2 ? parts[1] : "/mnt/" + host.lastPathComponent
        guard guest.hasPrefix("/") else { return nil }
    }
}
