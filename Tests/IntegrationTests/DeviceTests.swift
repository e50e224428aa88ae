import Foundation
import Testing
import Virtualization

@Suite(.serialized) struct DeviceTests {
    @Test func diskKeepsWhatTheGuestWritesAndFlushes() throws {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let url = scratch.appendingPathComponent("disk.img")
        try TestAssets.disk(url, size: 16 << 20)
        let guest = try TestGuest(
            """
            cat /sys/block/vda/size /sys/block/vda/serial; echo
            dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
            dd if=/tmp/data of=/dev/vda bs=64k seek=32 conv=fsync 2>/dev/null
            echo 3 >/proc/sys/vm/drop_caches
            dd if=/dev/vda bs=64k skip=32 count=64 2>/dev/null | md5sum
            md5sum </tmp/data
            """
        ) { guest in
            let device = VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: false))
            device.blockDeviceIdentifier = "serial-number-01"
            guest.configuration.storageDevices = [device]
        }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("32768"))
        #expect(guest.transcript.contains("serial-number-01"))
        let sums = guest.transcript.split(whereSeparator: \.isNewline).filter { $0.hasSuffix("-") && $0.count > 32 }.map { String($0.prefix(32)) }
        #expect(sums.count == 2)
        #expect(Set(sums).count == 1)
        let file = try Data(contentsOf: url)
        #expect(file[(2 << 20)..<(6 << 20)].contains { $0 != 0 })
        #expect(file[..<(2 << 20)].allSatisfy { $0 == 0 })
    }

    @Test func readOnlyDiskRefusesWrites() throws {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let url = scratch.appendingPathComponent("disk.img")
        try TestAssets.disk(url, size: 1 << 20)
        let guest = try TestGuest("cat /sys/block/vda/ro; echo x >/dev/vda || echo refused") { guest in
            guest.configuration.storageDevices = [
                VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: true))
            ]
        }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("refused"))
    }

    @Test func discardedAndZeroedRangesBecomeHoles() throws {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let url = scratch.appendingPathComponent("disk.img")
        try Data(repeating: 0xAA, count: 8 << 20).write(to: url)
        let guest = try TestGuest("blkdiscard -o 1048576 -l 4194304 /dev/vda && echo discarded; dd if=/dev/vda bs=1M skip=1 count=4 2>/dev/null | tr -d '\\000' | wc -c") { guest in
            guest.configuration.storageDevices = [
                VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: false))
            ]
        }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("discarded"))
        var info = stat()
        #expect(stat(url.path, &info) == 0)
        #expect(info.st_blocks * 512 <= 5 << 20)
    }

    @Test func fullHostDiskGivesTheGuestAnErrorAndTheHostSurvives() throws {
        let scratch = try TestAssets.scratch()
        defer {
            _ = umount2(scratch.path, 2)
            try? FileManager.default.removeItem(at: scratch)
        }
        try #require(mount("tmpfs", scratch.path, "tmpfs", 0, "size=1m") == 0, "this test mounts a small tmpfs and runs as root")
        let url = scratch.appendingPathComponent("disk.img")
        try TestAssets.disk(url, size: 16 << 20)
        let guest = try TestGuest("dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync && echo all written || echo write failed; echo still alive") { guest in
            guest.configuration.storageDevices = [
                VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: false))
            ]
        }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("write failed"))
        #expect(guest.transcript.contains("still alive"))
    }

    @Test func entropyDeviceGivesRandomBytes() throws {
        let guest = try TestGuest(
            "cat /sys/class/misc/hw_random/rng_current; dd if=/dev/hwrng bs=64 count=16 2>/dev/null | md5sum; dd if=/dev/hwrng bs=64 count=16 2>/dev/null | md5sum")
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("virtio_rng"))
        let sums = guest.transcript.split(whereSeparator: \.isNewline).filter { $0.hasSuffix("-") && $0.count > 32 }
        #expect(Set(sums).count == 2)
    }

    /// The guide's program: one console port that does not say it is a console.
    @Test func consolePortOfTheGuideShowsHvc0() throws {
        let output = Pipe()
        let guest = try TestGuest("echo shown") { guest in
            let device = VZVirtioConsoleDeviceConfiguration()
            let port = VZVirtioConsolePortConfiguration()
            port.attachment = VZFileHandleSerialPortAttachment(fileHandleForReading: nil, fileHandleForWriting: output.fileHandleForWriting)
            device.ports[0] = port
            guest.configuration.serialPorts = []
            guest.configuration.consoleDevices = [device]
        }
        try guest.start()
        #expect(guest.waitForStop())
        try output.fileHandleForWriting.close()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        #expect(text.contains("shown"))
    }

    @Test func namedPortsCarryDataBothWaysAndSayWhenTheyAreOpen() throws {
        final class Listener: NSObject, VZVirtioConsoleDeviceDelegate, @unchecked Sendable {  // on the machine's queue
            var events: [String] = []
            func consoleDevice(_ consoleDevice: VZVirtioConsoleDevice, didOpen consolePort: VZVirtioConsolePort) { events.append("open \(consolePort.name ?? "-")") }
            func consoleDevice(_ consoleDevice: VZVirtioConsoleDevice, didClose consolePort: VZVirtioConsolePort) { events.append("close \(consolePort.name ?? "-")") }
        }
        let toGuest = Pipe()
        let fromGuest = Pipe()
        let listener = Listener()
        let guest = try TestGuest(
            """
            port=
            while [ -z "$port" ]; do
                for p in /sys/class/virtio-ports/*; do [ "$(cat $p/name 2>/dev/null)" = channel ] && port=/dev/$(basename $p); done
                [ -n "$port" ] || sleep 0.1
            done
            exec 3<>$port
            read line <&3
            echo "got $line"
            head -c 1048576 /dev/zero | tr '\\000' x >&3
            exec 3>&-
            """
        ) { guest in
            let device = VZVirtioConsoleDeviceConfiguration()
            let port = VZVirtioConsolePortConfiguration()
            port.name = "channel"
            port.attachment = VZFileHandleSerialPortAttachment(fileHandleForReading: toGuest.fileHandleForReading, fileHandleForWriting: fromGuest.fileHandleForWriting)
            device.ports[3] = port
            guest.configuration.consoleDevices = [device]
        }
        guest.queue.sync { (guest.machine.consoleDevices.first as? VZVirtioConsoleDevice)?.delegate = listener }
        try guest.start()
        toGuest.fileHandleForWriting.write(Data("hello\n".utf8))
        let received = guest.readBytes(1 << 20, from: fromGuest.fileHandleForReading)
        #expect(received.count == 1 << 20)
        #expect(received.allSatisfy { $0 == UInt8(ascii: "x") })
        #expect(guest.waitForStop(), "\(guest.transcript)")
        #expect(guest.transcript.contains("got hello"))
        #expect(guest.queue.sync { listener.events } == ["open channel", "close channel"])
    }

    @Test func memoryAboveThreeGiBIsUsed() throws {
        let guest = try TestGuest("free -m; mount -t tmpfs -o size=3600m t /tmp && dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null && echo fine", memory: 4 << 30)
        try guest.start()
        #expect(guest.waitForStop(seconds: 240))
        #expect(guest.transcript.contains("fine"))
    }
}
