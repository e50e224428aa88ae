import Foundation
import Testing
import Virtualization

#if canImport(Glibc)
    import Glibc
#endif

/// The user-mode network, with stock drivers and programs on the guest's side and plain sockets on the host's.
@Suite(.serialized) struct NATTests {
    /// Asks for an address, and takes what it is given.
    private static let configure = """
        ifconfig lo up; ifconfig eth0 up
        cat >/tmp/dhcp <<'END'
        #!/bin/sh
        [ "$1" = bound ] && ifconfig $interface $ip netmask $subnet && route add default gw $router && echo LEASE $ip $router $dns $mtu
        exit 0
        END
        chmod 755 /tmp/dhcp
        udhcpc -i eth0 -n -q -f -s /tmp/dhcp 2>/dev/null

        """
    private func card(_ network: UserModeNetwork? = nil, publish: [PortForward] = []) throws -> VZVirtioNetworkDeviceConfiguration {
        let attachment = VZNATNetworkDeviceAttachment()
        attachment.network = network
        for port in publish { try attachment.publish(port) }
        let device = VZVirtioNetworkDeviceConfiguration()
        device.attachment = attachment
        return device
    }
    private func run(_ script: String, _ network: UserModeNetwork? = nil, before: String = "", seconds: Double = 240) throws -> String {
        let guest = try TestGuest(before + Self.configure + script) { $0.configuration.networkDevices = [try card(network)] }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop(seconds: seconds))
        return guest.transcript
    }

    @Test func leaseNamesAndEchoes() throws {
        let text = try run(
            """
            ping -c 3 -s 3000 192.168.64.1 | grep received
            nslookup host.vz.internal 192.168.64.1 | grep Address
            nslookup other.test 192.168.64.1 | grep Address
            for i in $(seq 50); do ip -6 addr show dev eth0 | grep fd5a | grep -qv tentative && break; sleep 0.2; done
            ping6 -c 2 fd5a:5654::1 | grep received
            traceroute -n -m 1 -q 1 192.168.64.9 2>&1 | tail -n 1
            """, UserModeNetwork(names: ["Other.test": "192.0.2.77"]))
        #expect(text.contains("LEASE 192.168.64.2 192.168.64.1 192.168.64.1 1500"))
        #expect(text.contains("3 packets received"))
        #expect(text.contains("192.168.64.1"))
        #expect(text.contains("192.0.2.77"))
        #expect(text.contains("2 packets received"))
    }

    @Test func connectionsCarryEveryByteBothWays() throws {
        let server = try HostPeer(serving: "127.0.0.1")
        let other = try HostPeer(serving: "[::1]")
        let text = try run(
            """
            p=192.168.64.1:\(server.port)
            peer send $p 50000000; peer receive $p 50000000; peer echo $p 20000000
            for i in $(seq 50); do ip -6 addr show dev eth0 | grep fd5a | grep -qv tentative && break; sleep 0.2; done
            p=[fd5a:5654::1]:\(other.port)
            peer send $p 5000000 | sed s/ok/ok6/; peer receive $p 5000000 | sed s/ok/ok6/; peer echo $p 5000000 | sed s/ok/ok6/
            """)
        for line in ["send ok", "receive ok", "echo ok", "send ok6", "receive ok6", "echo ok6"] { #expect(text.contains("peer " + line), "\(text)") }
    }

    @Test func severalProcessorsHaveQueuesOfTheirOwn() throws {
        let server = try HostPeer(serving: "127.0.0.1")
        let guest = try TestGuest(
            Self.configure + """
                ls /sys/class/net/eth0/queues | tr '\\n' ' '; p=192.168.64.1:\(server.port)
                for i in 1 2 3 4 5 6; do peer send $p 10000000 & peer receive $p 10000000 & done; wait; echo ALL
                """, cpus: 3
        ) { $0.configuration.networkDevices = [try card()] }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop(seconds: 240))
        #expect(guest.transcript.contains("rx-0 rx-1 rx-2 tx-0 tx-1 tx-2"))
        #expect(guest.transcript.components(separatedBy: "peer send ok").count == 7, "\(guest.transcript)")
        #expect(guest.transcript.components(separatedBy: "peer receive ok").count == 7)
    }

    @Test func guestWithoutOffloadsIsServedToo() throws {
        let server = try HostPeer(serving: "127.0.0.1")
        let text = try run(
            """
            p=192.168.64.1:\(server.port)
            peer send $p 5000000; peer receive $p 5000000; peer echo $p 5000000
            """, before: "rmmod virtio_net; insmod /m/*virtio_net.ko csum=0 gso=0; sleep 0.2\n")
        for line in ["send ok", "receive ok", "echo ok"] { #expect(text.contains("peer " + line), "\(text)") }
    }

    @Test func manyConnections() throws {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let server = try HostPeer(serving: "127.0.0.1")
        let inLab = ProcessInfo.processInfo.environment["VZ_KVM_LAB"] != nil
        let text = try run(
            """
            ulimit -n 4000
            p=192.168.64.1:\(server.port)
            peer crowd $p 1000
            peer ask $p \(inLab ? 1000 : 10000)
            """, seconds: 500)
        #expect(text.contains("peer crowd ok"), "\(text)")
        #expect(text.contains("peer ask ok"), "\(text)")
    }

    @Test func refusalsAreHeardAtOnce() throws {
        // A port that nobody listens on, and networks that the guest may not reach.
        let text = try run(
            """
            peer ask 192.168.64.1:1 1
            peer ask 169.254.169.254:80 1
            peer ask 198.51.100.7:80 1
            peer ask 192.168.64.77:80 1 &
            wait
            """, UserModeNetwork(blocked: ["198.51.100.0/24"]))
        #expect(text.components(separatedBy: "Connection refused").count >= 4, "\(text)")
    }
    @Test func hostCanBeOutOfReach() throws {
        let server = try HostPeer(serving: "127.0.0.1")
        let text = try run("ping -c 1 192.168.64.1 | grep received; peer ask 192.168.64.1:\(server.port) 1", UserModeNetwork(reachesHost: false))
        #expect(text.contains("1 packets received"))
        #expect(text.contains("Connection refused"))
    }

    @Test func publishedPortsLeadToTheGuest() throws {
        let (tcp, udp) = (UInt16.random(in: 20000...29999), UInt16.random(in: 20000...29999))
        let publish = [PortForward(hostPort: tcp, guestPort: 7000), PortForward(.udp, hostPort: udp, guestPort: 7001)]
        let guest = try TestGuest(
            Self.configure + """
                peer serve 0.0.0.0:7000 &
                peer reflect 0.0.0.0:7001 &
                sleep 1; echo SERVES; read line
                """
        ) { $0.configuration.networkDevices = [try card(publish: publish)] }
        defer { guest.finish() }
        try guest.start()
        try #require(guest.waitFor("SERVES"))
        #expect(try HostPeer.run("send", "127.0.0.1:\(tcp)", "10000000").contains("send ok"))
        #expect(try HostPeer.run("receive", "127.0.0.1:\(tcp)", "10000000").contains("receive ok"))
        #expect(try HostPeer.run("echo", "127.0.0.1:\(tcp)", "3000000").contains("echo ok"))
        #expect(try HostPeer.run("ask", "127.0.0.1:\(tcp)", "100").contains("ask ok"))
        #expect(try HostPeer.run("datagram", "127.0.0.1:\(udp)", "1200").contains("datagram ok"))
        // At run time: another port, and the first one gone.
        let attachment = try #require(guest.queue.sync { guest.machine.networkDevices[0].attachment } as? VZNATNetworkDeviceAttachment)
        let another = PortForward(hostPort: tcp ^ 1, guestPort: 7000)
        try guest.queue.sync {
            try attachment.publish(another)
            attachment.unpublish(publish[0])
        }
        #expect(try HostPeer.run("ask", "127.0.0.1:\(another.hostPort)", "1").contains("ask ok"))
        #expect(try HostPeer.run("ask", "127.0.0.1:\(tcp)", "1").contains("refused"))
        #expect(guest.queue.sync { attachment.guestAddress } == "192.168.64.2")
        guest.send("end")
        #expect(guest.waitForStop())
    }
    @Test func datagramsOfAllSizesComeBack() throws {
        let server = try HostPeer(serving: "127.0.0.1", datagrams: true)
        let other = try HostPeer(serving: "[::1]", datagrams: true)
        let text = try run(
            """
            for size in 1 1400 1472 1473 9000 65000; do peer datagram 192.168.64.1:\(server.port) $size; done
            for i in $(seq 50); do ip -6 addr show dev eth0 | grep fd5a | grep -qv tentative && break; sleep 0.2; done
            for size in 1 1452; do peer datagram [fd5a:5654::1]:\(other.port) $size; done
            """)
        #expect(text.components(separatedBy: "datagram ok").count == 9, "\(text)")
    }
    @Test func portInUseIsAnErrorThatNamesIt() throws {
        let server = try HostPeer(serving: "127.0.0.1")
        let guest = try TestGuest("true") {
            $0.configuration.networkDevices = [try card(publish: [PortForward(hostPort: UInt16(server.port), guestPort: 80)])]
        }
        do {
            try guest.start()
            Issue.record("the machine started")
        } catch { #expect("\(error)".contains("127.0.0.1:\(server.port)"), "\(error)") }
    }

    @Test func guestsOfOneNetworkReachEachOther() throws {
        let network = try UserModeNetwork()
        let server = try TestGuest(Self.configure + "peer serve 0.0.0.0:7000 & sleep 1; echo SERVES; read line") {
            $0.configuration.networkDevices = [try card(network)]
        }
        defer { server.finish() }
        try server.start()
        try #require(server.waitFor("SERVES"))
        let text = try run("peer send 192.168.64.2:7000 5000000; peer receive 192.168.64.2:7000 5000000", network)
        #expect(text.contains("LEASE 192.168.64.3"))
        #expect(text.contains("peer send ok"), "\(text)")
        #expect(text.contains("peer receive ok"), "\(text)")
        server.send("end")
        #expect(server.waitForStop())
    }
}
