import ArgumentParser

/// `PORT:PATH[:listen]`: a port of the guest's socket device and a Unix socket of the host.
struct SocketPath: ExpressibleByArgument {
    let port: UInt32
    let path: String
    /// vz listens at the path, the guest at the port; otherwise the other way round.
    let listens: Bool

    init?(argument: String) {
        var parts = argument.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        listens = parts.count > 2 && parts.last == "listen"
        if listens { parts.removeLast() }
        guard parts.count >= 2, let port = UInt32(parts[0]) else { return nil }
        self.port = port
        path = parts.dropFirst().joined(separator: ":")
        if path.isEmpty { return nil }
    }
}
