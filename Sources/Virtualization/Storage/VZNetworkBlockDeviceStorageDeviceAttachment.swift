import DiskStorage
import Foundation

/// A disk of a Network Block Device server: `nbd://HOST[:PORT]/[EXPORT]`, `nbd+unix:///[EXPORT]?socket=PATH`, and `nbds://`,
/// `nbds+unix://` for encrypted connections (TLS 1.2 or later). Those take `tls-certificates=DIRECTORY` (ca-cert.pem, and client-cert.pem
/// and client-key.pem; otherwise the system's authorities are trusted), `tls-hostname=NAME` (otherwise the URL's host, localhost for a
/// socket) and `tls-verify-peer=false`, as in the URLs of other NBD clients. Connected when a
/// machine starts. While the server is away the guest's requests wait, and go on when it is back within `timeout`; then the disk
/// is dead, and the delegate is told.
open class VZNetworkBlockDeviceStorageDeviceAttachment: VZStorageDeviceAttachment {
    public let url: URL
    /// Seconds that an answer, or a server that went away, is waited for. A server that does not answer for so long is connected
    /// to again.
    public let timeout: TimeInterval
    /// Whether the guest may only read, even if the server allows more.
    public let isForcedReadOnly: Bool
    public let synchronizationMode: VZDiskSynchronizationMode
    open weak var delegate: (any VZNetworkBlockDeviceStorageDeviceAttachmentDelegate)?
    private let address: NBDAddress

    /// Thirty seconds, writing where the server allows it, full synchronisation.
    public convenience init(url URL: URL) throws {
        try self.init(url: URL, timeout: 30, isForcedReadOnly: false, synchronizationMode: .full)
    }
    /// Throws for what is no URL of a network block device; the server is not asked.
    public init(url URL: URL, timeout: TimeInterval, isForcedReadOnly forcedReadOnly: Bool, synchronizationMode: VZDiskSynchronizationMode) throws {
        address = try Self.address(URL)
        url = URL
        guard timeout > 0, timeout.isFinite else { throw VZError.configuration("The timeout of a network block device must be greater than zero.") }
        self.timeout = timeout
        isForcedReadOnly = forcedReadOnly
        self.synchronizationMode = synchronizationMode
        super.init()
    }
    /// Throws `VZError.invalidVirtualMachineConfiguration` for what is no URL of a network block device; the server is not asked.
    open class func validate(_ URL: URL) throws { _ = try address(URL) }

    private static func address(_ url: URL) throws -> NBDAddress {
        func refused(_ reason: String) -> VZError { VZError.configuration("The URL \(url.absoluteString) is not one of a network block device: \(reason).") }
        guard let parts = URLComponents(url: url, resolvingAgainstBaseURL: true) else { throw refused("it cannot be read") }
        let name = String(parts.path.drop { $0 == "/" })
        func query(_ name: String) -> String? { parts.queryItems?.first { $0.name == name }?.value }
        let scheme = parts.scheme?.lowercased() ?? ""
        let server: NBDAddress.Server
        switch scheme {
        case "nbd", "nbds":
            let host = (parts.host ?? "").trimmingCharacters(in: CharacterSet(charactersIn: "[]"))
            guard let port = UInt16(exactly: parts.port ?? Int(NBDAddress.defaultPort)), port > 0 else { throw refused("the port is out of range") }
            server = .host(host.isEmpty ? "localhost" : host, port: port)
        case "nbd+unix", "nbds+unix":
            guard let path = query("socket"), !path.isEmpty else { throw refused("it names no socket (\(scheme):///EXPORT?socket=PATH)") }
            server = .unixSocket(path: path)
        default: throw refused("its scheme is neither nbd, nbds, nbd+unix nor nbds+unix")
        }
        guard scheme.hasPrefix("nbds") else { return NBDAddress(server, exportName: name) }
        var encryption = TLSOptions(host: "localhost", certificates: query("tls-certificates"))
        if case .host(let host, _) = server { encryption.host = host }
        if let host = query("tls-hostname") { encryption.host = host }
        switch query("tls-verify-peer") {
        case nil, "1", "true", "yes", "on": break
        case "0", "false", "no", "off": encryption.verifiesPeer = false
        case let other?: throw refused("tls-verify-peer is \(other), neither true nor false")
        }
        return NBDAddress(server, exportName: name, encryption: encryption)
    }

    override func validate() throws {}
    override func makeStorage(_ queue: DispatchQueue) throws -> any BlockStorage {
        var options = NBDDisk.Options()
        options.timeout = Int(min(timeout * 1000, 1e9).rounded(.up))
        options.isForcedReadOnly = isForcedReadOnly
        options.flushes = synchronizationMode == .full
        let this = WeakAttachment(self)
        return NBDDisk(address, options: options) { event in
            queue.async {
                guard let attachment = this.value else { return }
                switch event {
                case .connected: attachment.delegate?.attachmentWasConnected(attachment)
                case .failed(let error): attachment.delegate?.attachment(attachment, didEncounterError: VZError(.networkBlockDeviceDisconnected, error))
                }
            }
        }
    }
}

/// An attachment that is only looked at on its machine's queue.
private final class WeakAttachment: @unchecked Sendable {
    private(set) weak var value: VZNetworkBlockDeviceStorageDeviceAttachment?
    init(_ attachment: VZNetworkBlockDeviceStorageDeviceAttachment) { value = attachment }
}

extension VZError {
    init(_ code: Code, _ error: NBDError) { self.init(code, reason: error.description.capitalizedFirst + ".") }
}
