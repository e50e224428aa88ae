import Foundation
import Virtualization

/// A guest image: a root disk with the kernel and initial RAM disk that start it.
public struct Image: Codable, Equatable, Sendable {
    public var name: String
    /// What it was made of, for people: "Debian 12 (bookworm)".
    public var system: String
    public var kernelVersion: String
    public var created: Date
    /// Kernel arguments that belong to it.
    public var commandLine: String
}

/// The images of one home, and the files of each: images/NAME/{image.json,root.img,vmlinuz,initrd}.
public struct ImageStore: Sendable {
    public let home: Home
    public init(home: Home) { self.home = home }

    public func directory(_ name: String) -> URL { home.images.appendingPathComponent(name) }
    public func rootDisk(_ name: String) -> URL { directory(name).appendingPathComponent("root.img") }
    public func kernel(_ name: String) -> URL { directory(name).appendingPathComponent("vmlinuz") }
    public func initialRamdisk(_ name: String) -> URL { directory(name).appendingPathComponent("initrd") }

    public func image(_ name: String) -> Image? {
        guard let data = try? Data(contentsOf: directory(name).appendingPathComponent("image.json")) else { return nil }
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .iso8601
        return try? decoder.decode(Image.self, from: data)
    }
    public func list() -> [Image] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: home.images.path)) ?? []
        return names.filter { !$0.hasPrefix(".") }.sorted().compactMap { image($0) }
    }
    public func remove(_ name: String) throws {
        guard image(name) != nil else { throw LibraryError("there is no image \"\(name)\"; `vz image list` shows those there are") }
        try FileManager.default.removeItem(at: directory(name))
    }
    /// Bytes that the image takes on the host's disk.
    public func allocatedSize(_ name: String) -> Int64 {
        let files = (try? FileManager.default.contentsOfDirectory(atPath: directory(name).path)) ?? []
        return files.reduce(0) { total, file in
            var info = stat()
            return stat(directory(name).appendingPathComponent(file).path, &info) == 0 ? total + Int64(info.st_blocks) * 512 : total
        }
    }

    /// A private, writable disk that begins as the image's: it takes no more room than what is written to it.
    public func makeScratchDisk(_ name: String) throws -> URL {
        try FileManager.default.createDirectory(at: home.scratch, withIntermediateDirectories: true)
        let target = home.scratch.appendingPathComponent("\(name)-\(getpid())-\(UUID().uuidString.prefix(8)).img")
        #if os(Linux)
            try OverlayDiskAttachment.create(at: target, base: rootDisk(name))
        #else
            try copyDisk(name, to: target)
        #endif
        return target
    }
    /// The same for a machine that may outlive the image: `base` is another name for the image's disk, which stays when the image is
    /// built anew or removed.
    public func makeDisk(_ name: String, at target: URL, keeping base: URL) throws {
        #if os(Linux)
            if link(rootDisk(name).path, base.path) != 0 { try copyDisk(name, to: base) }
            try OverlayDiskAttachment.create(at: target, base: base)
        #else
            try copyDisk(name, to: target)
        #endif
    }
    private func copyDisk(_ name: String, to target: URL) throws {
        do {
            try SparseCopy.copy(from: rootDisk(name), to: target)
        } catch {
            unlink(target.path)
            throw error
        }
    }
    /// Removes disks whose machine's process is gone.
    public func collectScratch() {
        for file in (try? FileManager.default.contentsOfDirectory(atPath: home.scratch.path)) ?? [] {
            let parts = file.split(separator: "-")
            guard parts.count >= 3, let process = Int32(parts[parts.count - 2]), kill(process, 0) != 0, errno == ESRCH else { continue }
            unlink(home.scratch.appendingPathComponent(file).path)
        }
    }
}
