import ArgumentParser
import Foundation
import Virtualization

/// A disk as it is named on the command line: a raw image, a block device of the host's, or a URL of an NBD server.
struct DiskOption: ExpressibleByArgument {
    private let place: String
    private var isReadOnly = false
    private var synchronization = "full"
    private var caching = "cached"
    /// Where what is written goes.
    private var overlay: String?

    init?(argument: String) {
        var parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        var place = parts.removeFirst()
        if place.hasSuffix(":ro") {
            place.removeLast(3)
            isReadOnly = true
        }
        guard !place.isEmpty else { return nil }
        self.place = place
        for part in parts {
            switch part {
            case "ro": isReadOnly = true
            case "sync=full", "sync=none": synchronization = String(part.dropFirst(5))
            case "cache=cached", "cache=uncached": caching = String(part.dropFirst(6))
            case _ where part.hasPrefix("overlay=") && part.count > 8: overlay = String(part.dropFirst(8))
            default: return nil
            }
        }
    }

    /// The attachment; throws what keeps the disk from being used.
    func attachment() throws -> VZStorageDeviceAttachment {
        let mode: VZDiskSynchronizationMode = synchronization == "none" ? .none : .full
        if place.contains("://") {
            guard let url = URL(string: place) else { throw VZError(.invalidVirtualMachineConfiguration, userInfo: [NSLocalizedFailureReasonErrorKey: "\(place) is not a URL."]) }
            return try VZNetworkBlockDeviceStorageDeviceAttachment(url: url, timeout: 30, isForcedReadOnly: isReadOnly, synchronizationMode: mode)
        }
        let url = URL(fileURLWithPath: place)
        #if os(Linux)
            if let overlay {
                let file = URL(fileURLWithPath: overlay)
                if access(file.path, F_OK) != 0 { try OverlayDiskAttachment.create(at: file, base: url) }
                return try OverlayDiskAttachment(url: file, readOnly: isReadOnly, synchronizationMode: mode)
            }
        #endif
        var info = stat()
        if stat(url.path, &info) == 0, info.st_mode & S_IFMT == S_IFBLK {
            let handle = try isReadOnly ? FileHandle(forReadingFrom: url) : FileHandle(forUpdating: url)
            return try VZDiskBlockDeviceStorageDeviceAttachment(fileHandle: handle, readOnly: isReadOnly, synchronizationMode: mode)
        }
        return try VZDiskImageStorageDeviceAttachment(
            url: url, readOnly: isReadOnly, cachingMode: caching == "uncached" ? .uncached : .cached, synchronizationMode: mode == .none ? .none : .full)
    }
}
