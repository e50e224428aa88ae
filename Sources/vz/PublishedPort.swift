import ArgumentParser

/// `[ADDRESS:]HOSTPORT:GUESTPORT[/udp]`, such as 8080:80, 0.0.0.0:8080:80 or [::1]:5353:53/udp.
struct PublishedPort: ExpressibleByArgument {
    let address: String
    let hostPort: UInt16
    let guestPort: UInt16
    let isDatagram: Bool

    init?(argument: String) {
        let parts = argument.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count <= 2, parts.count == 1 || parts[1] == "tcp" || parts[1] == "udp" else { return nil }
        isDatagram = parts.count == 2 && parts[1] == "udp"
        var rest = parts[0]
        if rest.hasPrefix("[") {
            guard let end = rest.firstIndex(of: "]"), rest[rest.index(after: end)...].hasPrefix(":") else { return nil }
            address = String(rest[rest.index(after: rest.startIndex)..<end])
            rest = rest[rest.index(end, offsetBy: 2)...]
        } else {
            let fields = rest.split(separator: ":", omittingEmptySubsequences: false)
            guard fields.count == 2 || fields.count == 3 else { return nil }
            address = fields.count == 3 ? String(fields[0]) : "127.0.0.1"
            rest = fields.suffix(2).joined(separator: ":")[...]
        }
        let ports = rest.split(separator: ":", omittingEmptySubsequences: false).map { UInt16($0) ?? 0 }
        guard ports.count == 2, ports.allSatisfy({ $0 != 0 }) else { return nil }
        (hostPort, guestPort) = (ports[0], ports[1])
    }
}
