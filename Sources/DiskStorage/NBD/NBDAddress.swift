/// Where an export of a Network Block Device server is.
package struct NBDAddress: Equatable, Sendable, CustomStringConvertible {
    package enum Server: Equatable, Sendable {
        case host(String, port: UInt16)
        case unixSocket(path: String)
    }
    package static let defaultPort: UInt16 = 10809
    package var server: Server
    /// The empty name is the server's default export.
    package var exportName: String
    /// nil: the connection is not encrypted.
    package var encryption: TLSOptions?
    package init(_ server: Server, exportName: String, encryption: TLSOptions? = nil) {
        self.server = server
        self.exportName = exportName
        self.encryption = encryption
    }
    package var description: String {
        let name = exportName.isEmpty ? "" : "export “\(exportName)” of "
        switch server {
        case .host(let host, let port): return "\(name)the NBD server at \(host):\(port)"
        case .unixSocket(let path): return "\(name)the NBD server at \(path)"
        }
    }
}

/// Why an NBD server cannot be used, in a sentence.
package struct NBDError: Error, Equatable, Sendable, CustomStringConvertible {
    package let description: String
    /// Whether another attempt may fare better: the server was not there, or went away.
    package let isPassing: Bool
    init(_ description: String, isPassing: Bool = false) {
        self.description = description
        self.isPassing = isPassing
    }
}
