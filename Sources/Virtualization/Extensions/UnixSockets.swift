import Foundation
import HostNetwork
import VirtioDevices

extension VZVirtioSocketDevice {
    /// Beyond Apple's API: the guest's connections to `port` are carried to the Unix socket at `path`, where some program of the
    /// host listens; nil ends that. A listener set for the port goes first. On the machine's queue.
    public func carryConnections(toPort port: UInt32, toSocketAt path: String?) { host.setSocket(port, path: path) }

    /// Beyond Apple's API: listens at `path` (a new Unix socket, for this user alone) and carries connections there to `port` of
    /// the guest, until the door that is returned goes away. On the machine's queue.
    ///
    /// - Throws: `POSIXError` such as `.EADDRINUSE` when somebody listens at the path.
    public func openDoor(at path: String, toPort port: UInt32) throws -> SocketDoor {
        let host: VsockHost = host
        do { return SocketDoor(try UnixDoor(path: path) { host.connect(port, socket: $0) }) } catch {
            throw POSIXError(POSIXErrorCode(rawValue: error.errno) ?? .EIO, userInfo: [NSFilePathErrorKey: path])
        }
    }
}

/// Beyond Apple's API: a Unix socket that leads to a port of the guest, as long as this object lives. Any thread.
public final class SocketDoor: Sendable {
    private let door: UnixDoor
    init(_ door: UnixDoor) { self.door = door }
}
