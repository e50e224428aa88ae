import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

@Suite(.serialized) struct NetworkTests {
    /// Two ends of a wire, with room for some hundred frames.
    private func wire() throws -> (FileHandle, FileHandle) {
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &ends) == 0)
        for end in ends {
            for (option, bytes) in [(SO_SNDBUF, 1 << 20), (SO_RCVBUF, 4 << 20)] {
                var bytes = Int32(bytes)
                setsockopt(end, SOL_SOCKET, option, &bytes, socklen_t(4))
            }
        }
        return (FileHandle(fileDescriptor: ends[0], closeOnDealloc: true), FileHandle(fileDescriptor: ends[1], closeOnDealloc: true))
    }
    private func card(_ handle: FileHandle, mtu: Int = 1500) -> VZVirtioNetworkDeviceConfiguration {
        let attachment = VZFileHandleNetworkDeviceAttachment(fileHandle: handle)
        attachment.maximumTransmissionUnit = mtu
        let device = VZVirtioNetworkDeviceConfiguration()
        device.attachment = attachment
        return device
    }

    @Test(arguments: [1500, 9000]) func twoGuestsOnAWireExchangeMegabytes(mtu: Int) throws {
        let (left, right) = try wire()
        let server = try TestGuest(
            """
            cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
            ifconfig eth0 10.1.0.1 netmask 255.255.255.0 up; ifconfig lo up
            echo SERVER-READY
            nc -l -p 5000 >/tmp/data; md5sum </tmp/data; wc -c </tmp/data
            """
        ) { guest in
            let device = card(left, mtu: mtu)
            device.macAddress = try #require(VZMACAddress(string: "02:00:00:00:00:aa"))
            guest.configuration.networkDevices = [device]
        }
        let client = try TestGuest(
            """
            ifconfig eth0 10.1.0.2 netmask 255.255.255.0 up
            for i in $(seq 60); do ping -c 1 -W 1 10.1.0.1 >/dev/null && break; done
            ping -c 3 -s \(mtu - 28) 10.1.0.1 | grep received
            dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; md5sum </tmp/data
            nc 10.1.0.1 5000 </tmp/data
            """
        ) { $0.configuration.networkDevices = [card(right, mtu: mtu)] }
        defer {
            server.finish()
            client.finish()
        }
        try server.start()
        try #require(server.waitFor("SERVER-READY"))
        try client.start()
        #expect(client.waitForStop())
        #expect(server.waitForStop())
        #expect(server.transcript.contains("02:00:00:00:00:aa"))
        #expect(server.transcript.contains("\(mtu)"))
        #expect(server.transcript.contains("4194304"))
        #expect(client.transcript.contains("3 packets received"))
        let sums = (server.transcript + client.transcript).split(whereSeparator: \.isNewline).filter { $0.hasSuffix("-") && $0.count > 32 }.map { $0.prefix(32) }
        #expect(sums.count == 2)
        #expect(Set(sums).count == 1)
    }

    @Test func cableIsPulledOutAndPutIn() throws {
        let (left, right) = try wire()
        let guest = try TestGuest(
            """
            ifconfig eth0 10.1.0.1 netmask 255.255.255.0 up
            last=
            while true; do now=$(cat /sys/class/net/eth0/carrier); [ "$now" = "$last" ] || echo CARRIER-$now; last=$now; sleep 0.1; done
            """
        ) { $0.configuration.networkDevices = [card(left)] }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitFor("CARRIER-1"))
        guest.queue.sync { guest.machine.networkDevices[0].attachment = nil }
        #expect(guest.waitFor("CARRIER-0"))
        guest.clearTranscript()
        guest.queue.sync { guest.machine.networkDevices[0].attachment = VZFileHandleNetworkDeviceAttachment(fileHandle: left) }
        #expect(guest.waitFor("CARRIER-1"))
        withExtendedLifetime(right) {}
    }

    @Test func pulledCableStaysOutOverAReboot() throws {
        let (left, right) = try wire()
        let guest = try TestGuest(
            """
            ifconfig eth0 10.1.0.1 netmask 255.255.255.0 up; sleep 0.5
            echo CARRIER-$(cat /sys/class/net/eth0/carrier)
            read line; reboot -f
            """
        ) { $0.configuration.networkDevices = [card(left)] }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("CARRIER-1"))
        guest.queue.sync { guest.machine.networkDevices[0].attachment = nil }
        guest.send("again")
        #expect(guest.waitFor("CARRIER-0"))
        withExtendedLifetime(right) {}
    }

    @Test func delegateHearsOfAPeerThatIsGone() throws {
        let (left, right) = try wire()
        let guest = try TestGuest(
            """
            ifconfig eth0 10.1.0.1 netmask 255.255.255.0 up
            echo UP
            while true; do ping -c 1 -W 1 10.1.0.2 >/dev/null; done
            """
        ) { $0.configuration.networkDevices = [card(left)] }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("UP"))
        try right.close()
        let reason = guest.waitForDisconnection()
        #expect(reason?.contains("disconnected") == true)
        #expect(guest.queue.sync { guest.machine.networkDevices[0].attachment } == nil)
        #expect(guest.state == .running)
        // What cannot be used is refused.
        guest.queue.sync { guest.machine.networkDevices[0].attachment = VZFileHandleNetworkDeviceAttachment(fileHandle: .standardInput) }
        #expect(guest.waitForDisconnection(2)?.contains("socket") == true)
    }

    // MARK: bridge

    private static func ip(_ arguments: String) -> Bool {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/busybox")
        process.arguments = ["ip"] + arguments.split(separator: " ").map(String.init)
        process.standardError = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return false }
        process.waitUntilExit()
        return process.terminationStatus == 0
    }
    /// Making a bridge and a tap device takes privileges, and a kernel that has them (the lab's has not).
    private static let canBridge: Bool = {
        defer { _ = ip("link del vzprobe") }
        return access("/dev/net/tun", R_OK | W_OK) == 0 && ip("link add vzprobe type bridge")
    }()
    @Test(.enabled(if: canBridge, "this host lets nobody make bridges here")) func guestOnABridgeIsAMachineOfItsOwn() throws {
        let bridge = "vzt\(getpid() % 100_000)"
        try #require(Self.ip("link add \(bridge) type bridge") && Self.ip("addr add 10.99.77.1/24 dev \(bridge)") && Self.ip("link set \(bridge) up"))
        defer { _ = Self.ip("link del \(bridge)") }
        let interface = try #require(VZBridgedNetworkInterface.networkInterfaces.first { $0.identifier == bridge })
        let server = try HostPeer(serving: "10.99.77.1")
        let guest = try TestGuest(
            """
            ifconfig eth0 10.99.77.2 netmask 255.255.255.0 up; sleep 1
            ping -c 2 10.99.77.1 | grep received; p=10.99.77.1:\(server.port)
            peer send $p 10000000; peer receive $p 10000000; peer echo $p 5000000
            ls /sys/class/net/eth0/queues | tr '\\n' ' '
            for i in 1 2 3 4 5 6; do peer receive $p 5000000 & done; wait; echo ALL
            grep 'virtio.*input' /proc/interrupts
            """, cpus: 2
        ) {
            let device = VZVirtioNetworkDeviceConfiguration()
            device.attachment = VZBridgedNetworkDeviceAttachment(interface: interface)
            $0.configuration.networkDevices = [device]
        }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop())
        for line in ["2 packets received", "peer send ok", "peer receive ok", "peer echo ok", "rx-0 rx-1 tx-0 tx-1", "input.1"] {
            #expect(guest.transcript.contains(line), "\(guest.transcript)")
        }
        #expect(guest.transcript.components(separatedBy: "peer receive ok").count == 8)
    }
}
