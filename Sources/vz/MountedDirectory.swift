import ArgumentParser
import Foundation

/// `HOST[:GUEST][:ro][:cached]`: a directory of the host, and where it is in the guest (by default /mnt/ and its name).
struct MountedDirectory: ExpressibleByArgument {
    let host: URL
    let guest: String
    let isReadOnly: Bool
    /// The guest keeps pages of large files, too, instead of mapping the host's.
    let isCached: Bool

    init?(argument: String) {
        var parts = argument.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        var options: Set<String> = []
        while parts.count > 1, let last = parts.last, ["ro", "cached"].contains(last) { options.insert(parts.removeLast()) }
        (isReadOnly, isCached) = (options.contains("ro"), options.contains("cached"))
        guard (1...2).contains(parts.count), !parts[0].isEmpty else { return nil }
        host = URL(fileURLWithPath: parts[0]).standardizedFileURL
        guest = parts.count == 2 ? parts[1] : "/mnt/" + host.lastPathComponent
        guard guest.hasPrefix("/") else { return nil }
    }
}
