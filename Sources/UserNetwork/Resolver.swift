import Glibc

/// Which name servers the host uses: /etc/resolv.conf as it is now, looked at again when it changes.
package final class Resolver {
    private let path: String
    private var stamp: (Int, Int, UInt64) = (-1, -1, 0)
    private(set) var servers: [IPAddress] = [.loopback4]
    private(set) var searchDomains: [String] = []
    /// When the oldest question without an answer went out; 0: none.
    var waitingSince: UInt64 = 0
    /// Counts questions that a server did not answer.
    private var turn = 0

    init(_ path: String) { self.path = path }

    /// Reads the file again if it is another one than last time.
    func refresh() {
        var status = stat()
        guard stat(path, &status) == 0 else { return }
        let stamp = (status.st_mtim.tv_sec, status.st_mtim.tv_nsec, UInt64(status.st_ino))
        guard stamp != self.stamp, let file = fopen(path, "re") else { return }
        self.stamp = stamp
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 65536)
        let count = fread(&bytes, 1, bytes.count, file)
        (servers, searchDomains) = Self.parse(String(decoding: bytes.prefix(count), as: UTF8.self))
        turn = 0
    }
    package static func parse(_ text: String) -> (servers: [IPAddress], searchDomains: [String]) {
        var (servers, domains): ([IPAddress], [String]) = ([], [])
        for line in text.split(whereSeparator: \.isNewline) {
            let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
            switch words.first {
            case "nameserver":
                // A zone (fe80::1%eth0) is nothing a plain socket address has.
                if words.count > 1, let address = IPAddress(words[1]) { servers.append(address) }
            case "search", "domain": domains = words.dropFirst().map(String.init)
            default: break
            }
        }
        // What the C library does without any.
        return (servers.isEmpty ? [.loopback4] : servers, domains)
    }
    var current: IPAddress { servers[turn % servers.count] }
    /// The current server does not answer: ask the next one.
    func skip() { turn += 1 }
}
