import Foundation

/// Where everything of ours lies: `$VZ_HOME`, by default `$XDG_DATA_HOME/vz`.
public struct Home: Sendable {
    public let url: URL

    public init(environment: [String: String] = ProcessInfo.processInfo.environment) {
        if let path = environment["VZ_HOME"], !path.isEmpty {
            url = URL(fileURLWithPath: path)
        } else if let path = environment["XDG_DATA_HOME"], !path.isEmpty {
            url = URL(fileURLWithPath: path).appendingPathComponent("vz")
        } else {
            url = URL(fileURLWithPath: environment["HOME"] ?? "/tmp").appendingPathComponent(".local/share/vz")
        }
    }
    public var images: URL { url.appendingPathComponent("images") }
    /// Disks of machines that run without a name; removed when they end.
    public var scratch: URL { url.appendingPathComponent("scratch") }
}

/// A failure told to the person at the terminal: what, and what to do about it.
public struct LibraryError: Error, CustomStringConvertible, Sendable {
    public let description: String
    public init(_ description: String) { self.description = description }
}
