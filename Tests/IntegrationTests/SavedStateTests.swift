import Foundation
import Monitor
import TestSupport
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// Machines that are saved to a file and go on from it.
@Suite(.serialized) struct SavedStateTests {
    /// Where everything takes ten times as long.
    private static let isInLab = ProcessInfo.processInfo.environment["VZ_KVM_LAB"] != nil
    /// Machines of one identity, as a saved one and the restored one have to be.
    private final class Family {
        let identifier = VZGenericMachineIdentifier()
        let address = VZMACAddress.randomLocallyAdministered()
        let folder: URL
        var state: URL { folder.appendingPathComponent("state") }
        init() throws { folder = try TestAssets.scratch() }
        deinit { try? FileManager.default.removeItem(at: folder) }
        func guest(_ script: String = "", cpus: Int = 1, memory: UInt64 = 256 << 20, configure: (TestGuest) throws -> Void = { _ in }) throws -> TestGuest {
            try TestGuest(script, cpus: cpus, memory: memory) {
                let platform = VZGenericPlatformConfiguration()
                platform.machineIdentifier = identifier
                $0.configuration.platform = platform
                try configure($0)
            }
        }
        func addCard(_ guest: TestGuest) {
            let card = VZVirtioNetworkDeviceConfiguration()
            card.macAddress = address
            card.attachment = VZNATNetworkDeviceAttachment()
            guest.configuration.networkDevices = [card]
        }
        func guestOnNAT(_ script: String) throws -> TestGuest { try guest(script, configure: addCard) }
    }
    private static func ticks(_ guest: TestGuest) -> Int {
        guest.transcript.split(whereSeparator: \.isNewline).compactMap { $0.hasPrefix("TICK ") ? Int($0.dropFirst(5)) : nil }.max() ?? 0
    }
    private static let counting = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo TICK $i; sleep 0.02; done"

    @Test(arguments: [1, 2]) func savedMachineGoesOnWhereItWas(cpus: Int) throws {
        let family = try Family()
        let first = try family.guest(Self.counting, cpus: cpus)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("TICK 20"))
        try first.pause()
        try first.save(to: family.state)
        #expect(first.state == .paused)
        let saved = Self.ticks(first)
        // The saved machine itself goes on, too.
        try first.resume()
        try #require(first.waitFor("TICK \(saved + 20)"))
        try first.stop()

        for _ in 0..<2 {
            let second = try family.guest("", cpus: cpus)
            defer { second.finish() }
            let begin = Date()
            try second.restore(from: family.state)
            if ProcessInfo.processInfo.environment["VZ_TIMES"] != nil { print("restored in \(Int(Date().timeIntervalSince(begin) * 1e6)) µs") }
            #expect(second.state == .paused)
            usleep(100_000)
            #expect(Self.ticks(second) == 0)
            try second.resume()
            #expect(second.state == .running)
            try #require(second.waitFor("TICK \(saved + 30)"), "\(second.transcript)")
            #expect(second.transcript.contains("TICK \(saved + 2)"))
            #expect(!second.transcript.split(whereSeparator: \.isNewline).contains("TICK \(saved - 1)"))
        }
    }

    private static let lives = ProcessInfo.processInfo.environment["VZ_LIVES"].flatMap { Int($0) } ?? (isInLab ? 4 : 8)
    /// Disk, shared folder, network, sockets and processors at work, saved and restored over and over, each time in a machine of its own.
    @Test func workGoesOnOverManyLives() throws {
        let family = try Family()
        let disk = family.folder.appendingPathComponent("disk")
        try TestAssets.disk(disk, size: 32 << 20)
        let share = family.folder.appendingPathComponent("share")
        try FileManager.default.createDirectory(at: share, withIntermediateDirectories: true)
        let server = try HostPeer(serving: "127.0.0.1")
        let script = """
            mkdir -p /s; mount -t virtiofs s /s; exec 9>>/s/log
            (n=0; while true; do
                head -c 300000 /dev/urandom >/tmp/s; cp /tmp/s /s/file; sync; mv /s/file /s/moved; rm -f /s/link; ln /s/moved /s/link
                cmp /tmp/s /s/link && echo line $n >&9 && echo SHARED $((n++)) || echo WRONG; sleep 0.1
            done) &
            ifconfig lo up; ifconfig eth0 192.168.64.2 netmask 255.255.255.0 up; route add default gw 192.168.64.1
            echo CARRIER $(cat /sys/class/net/eth0/carrier_changes)
            (while true; do cat /proc/interrupts >/dev/null; done) &
            (n=0; while true; do peer ask 192.168.64.1:\(server.port) 20 >/tmp/ask; grep -q ok /tmp/ask && echo ASKED $((n++)); sleep 0.1; done) &
            (while true; do peer ask vsock:2:77 1 >/tmp/vsock 2>&1; echo VSOCK $(cat /tmp/vsock); sleep 1; done) &
            i=0; while true; do i=$((i+1))
                dd if=/dev/urandom of=/tmp/a bs=64k count=40 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=16k conv=fsync 2>/dev/null
                echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/b bs=64k count=40 2>/dev/null
                cmp /tmp/a /tmp/b && echo SAME $i || echo WRONG
            done
            """
        func machine(_ script: String) throws -> TestGuest {
            try family.guest(script, cpus: 2) {
                $0.configuration.storageDevices = [VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: disk, readOnly: false))]
                family.addCard($0)
                $0.configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()]
                $0.configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
                let folder = VZVirtioFileSystemDeviceConfiguration(tag: "s")
                folder.share = VZSingleDirectoryShare(directory: VZSharedDirectory(url: share, readOnly: false))
                $0.configuration.directorySharingDevices = [folder]
            }
        }
        var guest = try machine(script)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("SAME 2") && guest.waitFor("ASKED 2") && guest.waitFor("SHARED 2"))
        for life in 0..<Self.lives {
            usleep(UInt32(150_000 + life * 37_000 % 400_000))
            try guest.pause()
            try guest.save(to: family.state)
            let written = Self.number(guest, "SAME ")
            let asked = Self.number(guest, "ASKED ")
            let shared = Self.number(guest, "SHARED ")
            #expect(!guest.transcript.contains("WRONG"), "life \(life)")
            try guest.stop()
            let next = try machine("")
            try next.restore(from: family.state)
            try next.resume()
            guest = next
            try #require(guest.waitFor("SAME \(written + 2)"), "life \(life): \(guest.transcript)")
            try #require(guest.waitFor("ASKED \(asked + 2)"), "life \(life): \(guest.transcript)")
            try #require(guest.waitFor("SHARED \(shared + 2)"), "life \(life): \(guest.transcript)")
            try #require(guest.waitFor("VSOCK peer"), "life \(life): \(guest.transcript)")
        }
        #expect(!guest.transcript.contains("WRONG"))
        // Opened in the first life, and written to in all of them.
        let lines = try String(contentsOf: share.appendingPathComponent("log"), encoding: .utf8).split(separator: "\n")
        #expect(lines.count > 2 * Self.lives && lines.enumerated().allSatisfy { $1 == "line \($0)" }, "\(lines.count) lines")
    }
    private static func number(_ guest: TestGuest, _ prefix: String) -> Int {
        guest.transcript.split(whereSeparator: \.isNewline).compactMap { $0.hasPrefix(prefix) ? Int($0.dropFirst(prefix.count)) : nil }.max() ?? 0
    }

    @Test func clockIsRightAndTheLinkWasDown() throws {
        let family = try Family()
        let script = "ifconfig eth0 up; sleep 1; echo UP; while read line; do echo NOW $(date +%s) LINK $(cat /sys/class/net/eth0/carrier_changes) $line END; done"
        func ask(_ guest: TestGuest, _ mark: String) throws -> (now: Int, changes: Int) {
            guest.send(mark)
            try #require(guest.waitFor(" \(mark) END"), "\(guest.transcript)")
            let line = try #require(guest.transcript.split(whereSeparator: \.isNewline).last { $0.hasPrefix("NOW") && $0.hasSuffix(" \(mark) END") })
            let words = line.split(separator: " ")
            return (try #require(Int(words[1])), try #require(Int(words[3])))
        }
        let first = try family.guestOnNAT(script)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("UP"))
        let before = try ask(first, "one")
        try first.pause()
        try first.save(to: family.state)
        try first.stop()
        sleep(5)
        let second = try family.guestOnNAT("")
        defer { second.finish() }
        try second.restore(from: family.state)
        try second.resume()
        let asked = Int(Date().timeIntervalSince1970)
        let after = try ask(second, "two")
        // However long the answer took: right to a second.
        #expect((asked - 1...Int(Date().timeIntervalSince1970) + 1).contains(after.now), "asked at \(asked), \(after.now) is the guest's time")
        #expect(after.now - before.now >= 5)
        for _ in 0..<50 {
            if try ask(second, "more").changes >= before.changes + 2 { break }
            usleep(100_000)
        }
        #expect(try ask(second, "last").changes >= before.changes + 2)
    }

    /// Two machines that go on from one state must not draw the same random numbers: Debian's kernel for all machines looks at the
    /// generation ID (the one for clouds has no driver for it).
    @Test func restoredMachinesDrawOtherNumbers() throws {
        let family = try Family()
        let script = """
            head -c 16 /dev/random >/dev/null; echo 4 >/proc/sys/kernel/printk; dmesg | grep -c 'virtual machine fork'; echo UP
            i=0; while true; do i=$((i+1)); echo DREW $i $(dmesg | grep -c 'virtual machine fork') $(head -c 8 /dev/urandom | od -An -tx8) END; sleep 0.2; done
            """
        func machine(_ script: String) throws -> TestGuest { try family.guest(script) { $0.boot(TestAssets.genericKernel) } }
        let first = try machine(script)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("DREW 2 0"), "\(first.transcript)")
        try first.pause()
        try first.save(to: family.state)
        try first.resume()
        // The saved machine itself goes on as the one it was.
        func drawn(_ guest: TestGuest, after reseeds: Int) throws -> Set<Substring> {
            for _ in 0..<600 {
                let lines = guest.transcript.split(whereSeparator: \.isNewline).filter { $0.hasPrefix("DREW") && $0.hasSuffix("END") }.map { $0.split(separator: " ") }
                let numbers = lines.filter { $0[2] == "\(reseeds)" }.map { $0[3] }
                if numbers.count >= 4 { return Set(numbers) }
                usleep(100_000)
            }
            throw VZError(.internalError, userInfo: [NSLocalizedDescriptionKey: guest.transcript])
        }
        _ = try drawn(first, after: 0)
        try first.stop()
        var seen: Set<Substring> = []
        for _ in 0..<2 {
            let next = try machine("")
            defer { next.finish() }
            try next.restore(from: family.state)
            try next.resume()
            let numbers = try drawn(next, after: 1)
            #expect(seen.isDisjoint(with: numbers))
            seen.formUnion(numbers)
        }
    }

    /// A program that only waits for an answer has to hear that none will come.
    @Test func connectionsThroughTheNATEnd() throws {
        let family = try Family()
        let server = try HostPeer(serving: "127.0.0.1")
        let script = """
            ifconfig eth0 192.168.64.2 netmask 255.255.255.0 up; route add default gw 192.168.64.1
            mkfifo /tmp/never; sleep 1000 >/tmp/never &
            (nc 192.168.64.1 \(server.port) </tmp/never >/dev/null; echo ENDED) & sleep 2; netstat -tn | grep -q ESTABLISHED && echo CONNECTED; read line
            """
        let first = try family.guestOnNAT(script)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("CONNECTED"), "\(first.transcript)")
        #expect(!first.transcript.contains("ENDED"))
        try first.pause()
        try first.save(to: family.state)
        try first.stop()
        let second = try family.guestOnNAT("")
        defer { second.finish() }
        try second.restore(from: family.state)
        try second.resume()
        #expect(second.waitFor("ENDED", seconds: 60), "\(second.transcript)")
    }

    @Test func openStreamsEndAndNewOnesBegin() throws {
        let family = try Family()
        func machine(_ script: String) throws -> TestGuest { try family.guest(script) { $0.configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()] } }
        let first = try machine("(peer serve vsock:4294967295:7000 &); sleep 1; echo SERVES; while read line; do echo GOT $line; done")
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("SERVES"))
        func connect(_ guest: TestGuest) throws -> Int32 {
            let done = DispatchSemaphore(value: 0)
            nonisolated(unsafe) var descriptor: Int32 = -1
            guest.queue.async {
                (guest.machine.socketDevices.first as? VZVirtioSocketDevice)?.connect(toPort: 7000) { result in
                    if case .success(let connection) = result { descriptor = dup(connection.fileDescriptor) }
                    done.signal()
                }
            }
            guard done.wait(timeout: .now() + 30) == .success, descriptor >= 0 else { throw POSIXError(.ECONNRESET) }
            return descriptor
        }
        func ask(_ fd: Int32) -> Bool {
            let request: [UInt8] = [UInt8(ascii: "P"), 1, 0, 0, 0, 0, 0, 0, 0]
            var answer: UInt8 = 0
            return send(fd, request, request.count, Int32(MSG_NOSIGNAL)) == request.count && read(fd, &answer, 1) == 1 && answer == 33
        }
        let old = try connect(first)
        defer { close(old) }
        try first.pause()
        try first.save(to: family.state)
        // The saved machine's streams live on in itself…
        try first.resume()
        #expect(ask(old))
        try first.stop()
        // … and the restored one takes new ones.
        let second = try machine("")
        defer { second.finish() }
        try second.restore(from: family.state)
        try second.resume()
        // Not before the guest has forgotten the old ones.
        var taken: Int32 = -1
        for _ in 0..<200 where taken < 0 {
            taken = (try? connect(second)) ?? -1
            if taken < 0 { usleep(20_000) }
        }
        let new = taken
        #expect(ask(new))
        close(new)
        second.send("line")
        #expect(second.waitFor("GOT line"))
    }

    @Test func damagedAndForeignFilesAreRefused() throws {
        let family = try Family()
        let first = try family.guest("echo UP; read line")
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("UP"))
        // Wrong states, and a place that cannot be written to.
        #expect(throws: VZError(.invalidVirtualMachineState, userInfo: [NSLocalizedFailureReasonErrorKey: "The virtual machine is running, not paused."])) {
            try first.save(to: family.state)
        }
        #expect((try? first.restore(from: family.state)) == nil && first.state == .running)
        try first.pause()
        do {
            try first.save(to: family.folder.appendingPathComponent("nowhere/state"))
            Issue.record("saved into no directory")
        } catch let error as VZError { #expect(error.code == .save && error.localizedDescription.contains("nowhere/state")) }
        #expect(first.state == .paused)
        try first.save(to: family.state)
        #expect(try FileManager.default.contentsOfDirectory(atPath: family.folder.path) == ["state"])
        try first.stop()

        func refusal(_ guest: TestGuest, _ url: URL) -> String {
            do {
                try guest.restore(from: url)
                guest.finish()
                return ""
            } catch let error as VZError {
                #expect(error.code == .restore, "\(error)")
                #expect(guest.state == .stopped)
                return error.localizedDescription
            } catch { return "\(error)" }
        }
        let good = try FileHandle(forReadingFrom: family.state)
        let head = try #require(try good.read(upToCount: 200_000))
        let length = try #require(try FileManager.default.attributesOfItem(atPath: family.state.path)[.size] as? Int)
        let damaged = family.folder.appendingPathComponent("damaged")
        func write(_ bytes: Data, length: Int) throws {
            try bytes.write(to: damaged)
            try #require(truncate(damaged.path, length) == 0)
        }
        let other = try family.guest("")
        #expect(refusal(other, family.folder.appendingPathComponent("none")).contains("none"))
        for count in [0, 7, 63, 64, 4096, 5000, 20_000] {
            try write(head.prefix(count), length: count)
            #expect(!refusal(other, damaged).isEmpty, "\(count) bytes")
        }
        try write(head, length: length - 4096)
        #expect(refusal(other, damaged).contains("not complete"))
        var description = 0
        for index in 0..<4 { description |= Int(head[16 + index]) << (8 * index) }
        for place in Array(0..<64) + stride(from: 4096, to: 4096 + description, by: 997) {
            var bytes = head
            bytes[place] ^= 0x10
            try write(bytes, length: length)
            #expect(!refusal(other, damaged).isEmpty, "byte \(place)")
        }
        var newer = head
        newer[8] = 2
        try write(newer, length: length)
        #expect(refusal(other, damaged).contains("version 2"))
        // Other machines.
        #expect(refusal(try family.guest("", memory: 512 << 20), family.state).contains("256 MiB of memory"))
        #expect(refusal(try family.guest("", cpus: 2), family.state).contains("1 processors"))
        #expect(refusal(try Family().guest(""), family.state).contains("identifier"))
        #expect(refusal(try family.guest("") { $0.configuration.entropyDevices = [] }, family.state).contains("devices"))
        // And the right one, after all that.
        try other.restore(from: family.state)
        try other.resume()
        other.send("end")
        #expect(other.waitForStop())
    }

    @Test func damagedMemoryStopsTheMachine() throws {
        let family = try Family()
        let first = try family.guest("echo UP; read line")
        try first.start()
        try #require(first.waitFor("UP"))
        try first.pause()
        try first.save(to: family.state)
        try first.stop()
        first.finish()

        func number(_ offset: Int) throws -> UInt64 {
            let bytes = try FileHandle(forReadingFrom: family.state).read(upToCount: 64) ?? Data()
            return (0..<8).reduce(0) { $0 | UInt64(bytes[offset + $1]) << (8 * UInt64($1)) }
        }
        func flip(_ place: UInt64) throws {
            let file = try FileHandle(forUpdating: family.state)
            try file.seek(toOffset: place)
            let byte = try #require(try file.read(upToCount: 1)?.first)
            try file.seek(toOffset: place)
            try file.write(contentsOf: [byte ^ 4])
            try file.close()
        }
        let (memory, size, sums) = (try number(24), try number(32), try number(40))
        #expect(size == 256 << 20 && sums == memory + size)
        // The kernel's code, a page in use of the last MiB but one or a hole there, and the memory's last byte.
        for place in [memory + 17 << 20 + 4711, memory + size - 1 << 20 - 1, sums - 1] {
            try flip(place)
            let second = try family.guest("")
            defer { second.finish() }
            try second.restore(from: family.state)
            let error = try #require(second.waitForFailure() as? VZError)
            #expect(error.code == .internalError && error.localizedDescription.contains("damaged at \((place - memory) >> 20) MiB"), "\(error.localizedDescription)")
            try flip(place)
        }
        try flip(sums)
        #expect(throws: VZError.self) { try family.guest("").restore(from: family.state) }
        try flip(sums)
        let last = try family.guest("")
        defer { last.finish() }
        try last.restore(from: family.state)
        try last.resume()
        last.send("end")
        #expect(last.waitForStop())
    }

    @Test(arguments: [false, true]) func sharedFilesStayOpen(several: Bool) throws {
        let family = try Family()
        let share = family.folder.appendingPathComponent("share")
        try FileManager.default.createDirectory(at: share.appendingPathComponent("deep/deeper"), withIntermediateDirectories: true)
        try Data("old text".utf8).write(to: share.appendingPathComponent("deep/deeper/file"))
        try Data("moved".utf8).write(to: share.appendingPathComponent("deep/leaves"))
        func machine(_ script: String) throws -> TestGuest {
            try family.guest(script) {
                let device = VZVirtioFileSystemDeviceConfiguration(tag: "s")
                let directory = VZSharedDirectory(url: share, readOnly: false)
                device.share = several ? VZMultipleDirectoryShare(directories: ["one": directory]) : VZSingleDirectoryShare(directory: directory)
                $0.configuration.directorySharingDevices = [device]
            }
        }
        let first = try machine(
            """
            mkdir /s; mount -t virtiofs s /s; cd /s\(several ? "/one" : "")
            exec 3>>deep/log; echo before >&3; exec 4<deep/deeper/file; exec 5>gone; rm gone; echo lost >&5
            cat deep/leaves; echo UP; read line
            echo after >&3; echo READ $(cat <&4); echo AGAIN $(cat deep/deeper/file); ls deep; cd deep/deeper; pwd; ls; cat ../leaves 2>&1
            echo new >made && cat made; sync; echo MORE >&5; echo LAST $?
            i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo $i >n$i; done; ls | wc -l
            """)
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("UP"), "\(first.transcript)")
        try first.pause()
        try first.save(to: family.state)
        try first.stop()
        try FileManager.default.removeItem(at: share.appendingPathComponent("deep/leaves"))
        try Data("new text".utf8).write(to: share.appendingPathComponent("deep/deeper/file"))
        let second = try machine("")
        defer { second.finish() }
        try second.restore(from: family.state)
        try second.resume()
        second.send("go")
        #expect(second.waitForStop(), "\(second.transcript)")
        let text = second.transcript
        #expect(text.contains("READ") && text.contains("AGAIN new text") && text.contains("No such file") && text.contains("new\n") || text.contains("new\r\n"), "\(text)")
        #expect(try String(contentsOf: share.appendingPathComponent("deep/log"), encoding: .utf8) == "before\nafter\n")
        #expect(try FileManager.default.contentsOfDirectory(atPath: share.appendingPathComponent("deep/deeper").path).count == 52, "\(text)")
    }

    private static let changes = ProcessInfo.processInfo.environment["VZ_CHANGES"].flatMap { Int($0) } ?? (isInLab ? 8 : 25)
    /// Numbers in the description that make no sense, under a right checksum: an error, or a guest that comes to grief by itself.
    @Test func wrongNumbersHarmNobody() throws {
        let family = try Family()
        let disk = family.folder.appendingPathComponent("disk")
        try TestAssets.disk(disk, size: 8 << 20)
        func machine(_ script: String) throws -> TestGuest {
            try family.guest(script, cpus: 2) {
                let storage = try VZDiskImageStorageDeviceAttachment(url: disk, readOnly: false)
                $0.configuration.storageDevices = [VZVirtioBlockDeviceConfiguration(attachment: storage)]
                family.addCard($0)
                $0.configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()]
                let share = VZVirtioFileSystemDeviceConfiguration(tag: "s")
                share.share = VZSingleDirectoryShare(directory: VZSharedDirectory(url: URL(fileURLWithPath: "/etc"), readOnly: true))
                $0.configuration.directorySharingDevices = [share]
            }
        }
        let first = try machine(
            "ifconfig eth0 up; mkdir /s; mount -t virtiofs s /s; ls -lR /s/apt /s/init.d >/dev/null; exec 3</s/passwd; while true; do dd if=/dev/vda of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null; echo TICK; done"
        )
        defer { first.finish() }
        try first.start()
        try #require(first.waitFor("TICK"))
        try first.pause()
        try first.save(to: family.state)
        try first.stop()
        let file = try SavedStateFile.Opened(path: family.state.path)
        let whole = try FileHandle(forReadingFrom: family.state)
        var random = SeededGenerator(state: 4242)
        let text = Array(file.description)
        var numbers: [Range<Int>] = []
        var start: Int?
        for (index, byte) in text.enumerated() {
            let isDigit = (0x30...0x39).contains(byte)
            if isDigit, start == nil, index > 0, [0x3A, 0x2C, 0x5B].contains(text[index - 1]) { start = index }
            if !isDigit, let begin = start {
                numbers.append(begin..<index)
                start = nil
            }
        }
        let copy = family.folder.appendingPathComponent("copy")
        var refused = 0
        for _ in 0..<Self.changes {
            var changed = text
            let place = try #require(numbers.randomElement(using: &random))
            let value: UInt64 = [0, 1, 255, 4096, 65535, 1 << 31, 1 << 32 - 1, 1 << 63, .max, random.next(), random.next() % 4096].randomElement(using: &random) ?? 0
            changed.replaceSubrange(place, with: Array(String(value).utf8))
            // The description has room to grow in its last page, or the memory would have to move.
            guard 4096 + changed.count <= Int(file.memoryOffset) else { continue }
            func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
            var header = SavedStateFile.magic + little(SavedStateFile.version) + little(Checksum.of(changed)) + little(UInt64(changed.count))
            header += little(file.memoryOffset) + little(file.memoryCount) + [UInt8](repeating: 0, count: 20)
            header += little(Checksum.of(header))
            try? FileManager.default.removeItem(at: copy)
            try FileManager.default.copyItem(at: family.state, to: copy)
            let handle = try FileHandle(forUpdating: copy)
            handle.write(Data(header))
            try handle.seek(toOffset: 4096)
            handle.write(Data(changed))
            try handle.close()
            let second = try machine("")
            do {
                try second.restore(from: copy)
                try? second.resume()
                usleep(30_000)
                second.finish()
            } catch let error as VZError {
                refused += 1
                #expect(error.code == .restore, "\(error)")
            }
        }
        withExtendedLifetime(whole) {}
        #expect(refused > 0)
    }
}
