import Foundation
import Testing
import Virtualization

/// Memory that comes back.
@Suite(.serialized) struct MemoryTests {
    /// Resident memory of memory files, in MiB: this process's guests'.
    private func resident() -> Int {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("RssShmem") } ?? ""
        return (line.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Int($0) } ?? 0) >> 10
    }
    private func eventually(_ seconds: Double, _ condition: () -> Bool) -> Bool {
        let end = Date().addingTimeInterval(seconds)
        while Date() < end {
            if condition() { return true }
            usleep(50_000)
        }
        return condition()
    }

    @Test func freedMemoryComesBackWithoutABalloonConfigured() throws {
        let guest = try TestGuest(
            """
            dd if=/dev/zero of=/tmp/big bs=1M count=1024 2>/dev/null; echo FULL
            read line; rm /tmp/big; echo FREE; sleep 1000
            """, memory: 2 << 30)
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("FULL"))
        let full = resident()
        #expect(full > 1024)
        guest.send("go")
        try #require(guest.waitFor("FREE"))
        // Linux reports a quarter of a GiB every two seconds.
        #expect(eventually(60) { full - resident() >= 900 }, "\(full) MiB, then \(resident()) MiB")
    }

    @Test func balloonTakesAndGivesBack() throws {
        let guest = try TestGuest(
            """
            while read line; do sed -n "s/^MemFree: *\\([0-9]*\\) kB/FREE \\1 AT $line END/p" /proc/meminfo; done
            """, memory: 512 << 20
        ) { $0.configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()] }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("INIT-REACHED"))
        /// MemFree in MiB.
        var asked = 0
        func free() -> Int {
            asked += 1
            guest.send("\(asked)")
            let mark = " AT \(asked) END"
            guard guest.waitFor(mark) else { return -1 }
            let line = guest.transcript.split(whereSeparator: \.isNewline).last { $0.contains(mark) } ?? ""
            return (Int(line.split(separator: " ").dropFirst().first ?? "") ?? 0) >> 10
        }
        func balloon<T>(_ body: (VZVirtioTraditionalMemoryBalloonDevice) -> T) throws -> T {
            try guest.queue.sync { body(try #require(guest.machine.memoryBalloonDevices.first as? VZVirtioTraditionalMemoryBalloonDevice)) }
        }
        let before = free()
        #expect(before > 350)
        #expect(try balloon { $0.targetVirtualMachineMemorySize } == 512 << 20)
        try balloon { $0.targetVirtualMachineMemorySize = 384 << 20 | 77 }
        #expect(try balloon { $0.targetVirtualMachineMemorySize } == 384 << 20)
        #expect(eventually(90) { (0..<before - 110).contains(free()) })
        // Not below what a machine needs, not above what it has.
        try balloon { $0.targetVirtualMachineMemorySize = 0 }
        #expect(try balloon { $0.targetVirtualMachineMemorySize } == VZVirtualMachineConfiguration.minimumAllowedMemorySize)
        try balloon { $0.targetVirtualMachineMemorySize = .max }
        #expect(try balloon { $0.targetVirtualMachineMemorySize } == 512 << 20)
        #expect(eventually(90) { free() > before - 32 })
    }

    private func memoryUse(_ guest: TestGuest, _ balloon: VZVirtioTraditionalMemoryBalloonDevice) -> GuestMemoryUse? {
        let done = DispatchSemaphore(value: 0)
        nonisolated(unsafe) var result: GuestMemoryUse?
        nonisolated(unsafe) let balloon = balloon
        guest.queue.async {
            balloon.readMemoryUse {
                result = $0
                done.signal()
            }
        }
        return done.wait(timeout: .now() + 30) == .success ? result : nil
    }

    @Test func guestTellsOfItsMemoryAndGivesWhenTheHostIsShort() throws {
        let guest = try TestGuest("echo UP; read line", memory: 1 << 30) {
            $0.configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
        }
        defer { guest.finish() }
        nonisolated(unsafe) let balloon = try #require(guest.queue.sync { guest.machine.memoryBalloonDevices.first as? VZVirtioTraditionalMemoryBalloonDevice })
        func use() -> GuestMemoryUse? { memoryUse(guest, balloon) }
        #expect(use() == nil)
        try guest.start()
        try #require(guest.waitFor("UP"))
        let before = try #require(use())
        let (total, available) = (try #require(before.total), try #require(before.available))
        #expect((900 << 20...1 << 30).contains(total))
        #expect(available > 800 << 20 && available <= total)
        #expect(try #require(before.free) <= total)
        // The host is short of memory: half of what can be spared, then half of the rest, but never below the minimum.
        guest.queue.sync {
            balloon.automaticMinimumMemorySize = 400 << 20
            #expect(balloon.automaticMinimumMemorySize == 400 << 20)
            balloon.hostChanged(.short)
        }
        #expect(eventually(60) { use()?.available.map { $0 < available - (300 << 20) } == true })
        for _ in 0..<5 { guest.queue.sync { balloon.hostChanged(.short) } }
        usleep(1_000_000)
        #expect(eventually(60) { use()?.available.map { $0 < available - (400 << 20) } == true })
        #expect(try #require(use()?.available) > available - (625 << 20))
        #expect(guest.queue.sync { balloon.targetVirtualMachineMemorySize } == 1 << 30)
        // Calm: it comes back.
        guest.queue.sync { for _ in 0..<8 { balloon.hostChanged(.calm) } }
        #expect(eventually(60) { use()?.available.map { $0 > available - (64 << 20) } == true })
        guest.send("end")
        #expect(guest.waitForStop())
        #expect(use() == nil)
    }

    /// The same with a host whose programs do wait for memory.
    @Test(.enabled(if: MemoryShortage.root != nil, "needs a kernel with pressure stall information, and the right to make control groups for memory"))
    func guestGivesWhileProgramsOfTheHostWait() throws {
        let guest = try TestGuest("echo UP; read line", memory: 1 << 30) {
            $0.configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
        }
        defer { guest.finish() }
        nonisolated(unsafe) let balloon = try #require(guest.queue.sync { guest.machine.memoryBalloonDevices.first as? VZVirtioTraditionalMemoryBalloonDevice })
        func available() -> UInt64? { memoryUse(guest, balloon)?.available }
        try guest.start()
        try #require(guest.waitFor("UP"))
        let before = try #require(available())
        guest.queue.sync { balloon.automaticMinimumMemorySize = 400 << 20 }
        // With the host calm it keeps what it has.
        usleep(3_000_000)
        #expect(try #require(available()) > before - (64 << 20))
        var shortage: MemoryShortage? = try MemoryShortage(in: try #require(MemoryShortage.root))
        #expect(eventually(120) { available().map { $0 < before - (300 << 20) } == true })
        #expect(shortage != nil)
        shortage = nil
        // An eighth every ten seconds, until it has all.
        #expect(eventually(180) { available().map { $0 > before - (64 << 20) } == true })
        guest.send("end")
        #expect(guest.waitForStop())
    }
}
