import Glibc
import LinuxSystem

/// Puts together what the guest sent in IPv4 fragments. RFC 791 § 3.2. A few datagrams at a time; the oldest one gives way.
struct Reassembler {
    private struct Key: Equatable {
        let source: IPAddress
        let target: IPAddress
        let identification: UInt16
        let transport: UInt8
    }
    private struct Partial {
        let key: Key
        var bytes = [UInt8]()
        /// What is there, as ranges in order, without overlaps.
        var ranges: [Range<Int>] = []
        var total: Int?
    }
    private static let capacity = 8
    private var partials: [Partial] = []

    /// The whole datagram when this fragment was the last one missing.
    mutating func add(_ packet: ParsedPacket, _ frame: MemoryPieces) -> [UInt8]? {
        guard let fragment = packet.fragment else { return nil }
        let key = Key(source: packet.source, target: packet.target, identification: fragment.identification, transport: packet.transport)
        let range = fragment.offset..<fragment.offset + packet.count
        guard packet.count > 0, range.upperBound <= 65515, !fragment.more || packet.count & 7 == 0 else { return nil }
        if !partials.contains(where: { $0.key == key }) {
            if partials.count == Self.capacity { partials.removeFirst() }
            partials.append(Partial(key: key))
        }
        guard let index = partials.firstIndex(where: { $0.key == key }) else { return nil }
        let isNew = partials[index].ranges.allSatisfy { !$0.overlaps(range) }
        guard isNew else { return nil }
        if partials[index].bytes.count < range.upperBound {
            partials[index].bytes += [UInt8](repeating: 0, count: range.upperBound - partials[index].bytes.count)
        }
        partials[index].bytes.withUnsafeMutableBytes { raw in
            if let base = raw.baseAddress { frame.copy(from: packet.offset, limit: packet.count, to: base + range.lowerBound) }
        }
        partials[index].ranges.append(range)
        if !fragment.more { partials[index].total = range.upperBound }
        guard let total = partials[index].total, partials[index].ranges.reduce(0, { $0 + $1.count }) == total,
            partials[index].bytes.count == total
        else { return nil }
        return partials.remove(at: index).bytes
    }
}
