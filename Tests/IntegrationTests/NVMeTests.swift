import Foundation
import Testing
import Virtualization

/// NVMe disks, under Linux's own driver.
@Suite(.serialized) struct NVMeTests {
    private func controller(_ url: URL, readOnly: Bool = false) throws -> VZNVMExpressControllerDeviceConfiguration {
        VZNVMExpressControllerDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: readOnly))
    }
    @Test func twoDisksKeepWhatIsWritten() throws {
        let folder = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: folder) }
        let (first, second) = (folder.appendingPathComponent("first"), folder.appendingPathComponent("second"))
        try TestAssets.disk(first, size: 64 << 20)
        try TestAssets.disk(second, size: 8 << 20)
        let guest = try TestGuest(
            """
            cat /sys/block/nvme0n1/size /sys/block/nvme1n1/size /sys/block/nvme1n1/ro
            dd if=/dev/urandom of=/tmp/a bs=1M count=16 2>/dev/null
            for i in 0 1 2 3; do dd if=/tmp/a of=/dev/nvme0n1 bs=64k skip=$((64*i)) seek=$((64*i)) count=64 conv=notrunc 2>/dev/null & done; wait
            sync; echo 3 >/proc/sys/vm/drop_caches
            dd if=/dev/nvme0n1 of=/tmp/b bs=4k count=4096 2>/dev/null; cmp /tmp/a /tmp/b && echo SAME
            echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/nvme0n1 of=/tmp/b bs=1M count=16 iflag=direct 2>/dev/null; cmp /tmp/a /tmp/b && echo SAME
            echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/nvme0n1 of=/tmp/b bs=512 count=100 skip=7 iflag=direct 2>/dev/null; dd if=/tmp/a bs=512 count=100 skip=7 2>/dev/null | cmp - /tmp/b && echo SAME
            dd if=/dev/zero of=/dev/nvme1n1 bs=4k count=1 2>&1 | grep -q permitted && echo PROTECTED
            blkdiscard -o 1048576 -l 15728640 /dev/nvme0n1 && echo DISCARDED; printf LAST | dd of=/dev/nvme0n1 bs=512 seek=131071 conv=sync,fsync 2>/dev/null
            """, cpus: 2
        ) { $0.configuration.storageDevices = [try controller(first), try controller(second, readOnly: true)] }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop())
        let lines = guest.transcript.split(whereSeparator: \.isNewline).map(String.init)
        #expect(lines.starts(with: ["INIT-REACHED", "131072", "16384", "1"]), "\(guest.transcript)")
        #expect(lines.count { $0 == "SAME" } == 3 && lines.contains("PROTECTED") && lines.contains("DISCARDED"), "\(guest.transcript)")
        let bytes = try Data(contentsOf: first)
        #expect(bytes[(2 << 20)..<(15 << 20)].allSatisfy { $0 == 0 })
        #expect(String(decoding: bytes[(64 << 20) - 512..<(64 << 20) - 508], as: UTF8.self) == "LAST")
        var info = stat()
        #expect(stat(first.path, &info) == 0 && info.st_blocks * 512 < 3 << 20)
    }
    @Test func workGoesOnAfterARestore() throws {
        let folder = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: folder) }
        let (disk, state) = (folder.appendingPathComponent("disk"), folder.appendingPathComponent("state"))
        try TestAssets.disk(disk, size: 16 << 20)
        let identifier = VZGenericMachineIdentifier()
        func machine(_ script: String) throws -> TestGuest {
            try TestGuest(script, cpus: 2) {
                let platform = VZGenericPlatformConfiguration()
                platform.machineIdentifier = identifier
                $0.configuration.platform = platform
                $0.configuration.storageDevices = [try controller(disk)]
            }
        }
        var guest = try machine(
            """
            i=0; while true; do i=$((i+1))
                dd if=/dev/urandom of=/tmp/a bs=64k count=20 2>/dev/null; dd if=/tmp/a of=/dev/nvme0n1 bs=16k conv=fsync 2>/dev/null
                echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/nvme0n1 of=/tmp/b bs=64k count=20 2>/dev/null
                cmp /tmp/a /tmp/b && echo SAME $i || echo WRONG
            done
            """)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("SAME 2"))
        for life in 0..<4 {
            usleep(UInt32(90_000 + life * 41_000))
            try guest.pause()
            try guest.save(to: state)
            let last = guest.transcript.split(whereSeparator: \.isNewline).compactMap { $0.hasPrefix("SAME ") ? Int($0.dropFirst(5)) : nil }.max() ?? 0
            #expect(!guest.transcript.contains("WRONG"))
            try guest.stop()
            guest = try machine("")
            try guest.restore(from: state)
            try guest.resume()
            try #require(guest.waitFor("SAME \(last + 2)"), "life \(life): \(guest.transcript)")
        }
        #expect(!guest.transcript.contains("WRONG"))
    }
}
