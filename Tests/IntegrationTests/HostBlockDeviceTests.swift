import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Block devices of the host as disks: loop devices over files.
@Suite(.serialized) struct HostBlockDeviceTests {
    private static func losetup(_ arguments: String...) -> String? {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["losetup"] + arguments
        process.standardError = FileHandle.nullDevice
        let output = Pipe()
        process.standardOutput = output
        guard (try? process.run()) != nil else { return nil }
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return process.terminationStatus == 0 ? text.trimmingCharacters(in: .whitespacesAndNewlines) : nil
    }
    private static let canLoop: Bool = {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("vz-loop-\(getpid())")
        defer { unlink(file.path) }
        guard FileManager.default.createFile(atPath: file.path, contents: Data(count: 1 << 20)), let device = losetup("-f", "--show", file.path) else { return false }
        return losetup("-d", device) != nil
    }()
    @Test(.enabled(if: canLoop, "this host lets nobody make loop devices here")) func loopDeviceIsADisk() throws {
        let folder = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: folder) }
        let file = folder.appendingPathComponent("disk")
        try TestAssets.disk(file, size: 32 << 20)
        let device = try #require(Self.losetup("-f", "--show", file.path))
        defer { _ = Self.losetup("-d", device) }
        let handle = try FileHandle(forUpdating: URL(fileURLWithPath: device))
        let guest = try TestGuest(
            """
            cat /sys/block/vda/size; dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=64k conv=fsync 2>/dev/null
            echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/b bs=1M count=8 2>/dev/null; cmp /tmp/a /tmp/b && echo SAME
            printf MARK | dd of=/dev/vda bs=512 seek=40000 conv=sync,fsync 2>/dev/null; blkdiscard -l 8388608 /dev/vda && echo DISCARDED
            """
        ) {
            let attachment = try VZDiskBlockDeviceStorageDeviceAttachment(fileHandle: handle, readOnly: false, synchronizationMode: .full)
            $0.configuration.storageDevices = [VZVirtioBlockDeviceConfiguration(attachment: attachment)]
        }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("65536") && guest.transcript.contains("SAME") && guest.transcript.contains("DISCARDED"), "\(guest.transcript)")
        #expect(fsync(handle.fileDescriptor) == 0)
        let bytes = try Data(contentsOf: file)
        #expect(bytes.prefix(8 << 20).allSatisfy { $0 == 0 })
        #expect(String(decoding: bytes[40000 * 512..<40000 * 512 + 4], as: UTF8.self) == "MARK")
    }
    @Test func whatIsNoBlockDeviceIsRefused() throws {
        let folder = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: folder) }
        let file = folder.appendingPathComponent("disk")
        try TestAssets.disk(file, size: 1 << 20)
        for handle in [try FileHandle(forReadingFrom: file), try FileHandle(forReadingFrom: URL(fileURLWithPath: "/dev/null"))] {
            do {
                _ = try VZDiskBlockDeviceStorageDeviceAttachment(fileHandle: handle, readOnly: true, synchronizationMode: .full)
                Issue.record("took what is no block device")
            } catch let error as VZError { #expect(error.code == .invalidDiskImage) }
        }
    }
}
