import Glibc
import LinuxSystem

/// Finishes frames for a backend that takes only what a wire would: fills in checksums and cuts TCP segments.
package final class FrameFinisher {
    /// Ethernet header with a VLAN tag, and the largest IP packet.
    private static let capacity = 18 + 65535
    private let frame = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
    private let header = UnsafeMutableRawPointer.allocate(byteCount: 192, alignment: 16)
    private let parts = UnsafeMutablePointer<iovec>.allocate(capacity: 2)

    package init() {}
    deinit {
        frame.deallocate()
        header.deallocate()
        parts.deallocate()
    }

    /// Hands each finished frame to `send`; ends early when that does not say `done` or `lost`. A frame that makes no sense is
    /// lost.
    package func finish(
        _ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload, _ send: (UnsafePointer<iovec>, Int) -> FrameResult
    ) -> FrameResult {
        let whole = MemoryPieces(pieces: pieces, count: count)
        let size = whole.total
        guard size <= Self.capacity else { return .lost }
        whole.copy(from: 0, limit: size, to: frame)
        if offload.segmentation != .none { return cut(size, offload, send) }
        let field = offload.checksumStart + offload.checksumOffset
        guard offload.needsChecksum, field + 2 <= size else { return .lost }
        var sum = InternetChecksum()
        sum.add(frame + offload.checksumStart, size - offload.checksumStart)
        store(sum.value == 0 ? 0xFFFF : sum.value, frame + field)
        parts[0] = iovec(iov_base: frame, iov_len: size)
        return send(parts, 1)
    }

    private func load16(_ at: UnsafeRawPointer) -> UInt16 { UInt16(bigEndian: at.loadUnaligned(as: UInt16.self)) }
    private func load32(_ at: UnsafeRawPointer) -> UInt32 { UInt32(bigEndian: at.loadUnaligned(as: UInt32.self)) }
    private func store(_ value: UInt16, _ at: UnsafeMutableRawPointer) { at.storeBytes(of: value.bigEndian, as: UInt16.self) }
    private func store(_ value: UInt32, _ at: UnsafeMutableRawPointer) { at.storeBytes(of: value.bigEndian, as: UInt32.self) }

    /// Where the headers lie in `frame`: IP's start, TCP's start, the payload's start.
    private func headers(_ size: Int, _ kind: FrameOffload.Segmentation) -> (network: Int, transport: Int, payload: Int)? {
        guard size >= 14 else { return nil }
        let network = load16(frame + 12) == 0x8100 ? 18 : 14
        guard size >= network + 40 + (kind == .tcp6 ? 20 : 0) else { return nil }
        let length = kind == .tcp6 ? 40 : Int((frame + network).load(as: UInt8.self) & 15) * 4
        guard length >= 20, size >= network + length + 20 else { return nil }
        let transport = network + length
        let payload = transport + Int((frame + transport + 12).load(as: UInt8.self) >> 4) * 4
        return payload >= transport + 20 && payload <= size && payload <= 192 ? (network, transport, payload) : nil
    }
    private func cut(_ size: Int, _ offload: FrameOffload, _ send: (UnsafePointer<iovec>, Int) -> FrameResult) -> FrameResult {
        guard offload.segmentSize > 0, let (network, transport, payload) = headers(size, offload.segmentation) else { return .lost }
        let sequence = load32(frame + transport + 4)
        let flags = (frame + transport + 13).load(as: UInt8.self)
        let identification = load16(frame + network + 4)
        var (at, index) = (payload, 0)
        repeat {
            let count = min(offload.segmentSize, size - at)
            let isLast = at + count >= size
            memcpy(header, frame, payload)
            store(sequence &+ UInt32(at - payload), header + transport + 4)
            // FIN and PSH belong to the last segment, CWR to the first.
            (header + transport + 13).storeBytes(of: flags & (isLast ? 0xFF : ~0x09) & (index == 0 ? 0xFF : ~0x80), as: UInt8.self)
            if offload.segmentation == .tcp4 {
                store(UInt16(truncatingIfNeeded: payload - network + count), header + network + 2)
                store(identification &+ UInt16(truncatingIfNeeded: index), header + network + 4)
                store(UInt16(0), header + network + 10)
                var sum = InternetChecksum()
                sum.add(header + network, transport - network)
                store(sum.value, header + network + 10)
            } else {
                store(UInt16(truncatingIfNeeded: payload - transport + count), header + network + 4)
            }
            store(UInt16(0), header + transport + 16)
            var sum = InternetChecksum()
            let addresses = offload.segmentation == .tcp4 ? (12, 8) : (8, 32)
            sum.add(header + network + addresses.0, addresses.1)
            sum.add(big: 6)
            sum.add(big: UInt16(truncatingIfNeeded: payload - transport + count))
            sum.add(header + transport, payload - transport)
            sum.add(frame + at, count)
            store(sum.value, header + transport + 16)
            parts[0] = iovec(iov_base: header, iov_len: payload)
            parts[1] = iovec(iov_base: frame + at, iov_len: count)
            switch send(parts, 2) {
            case .done, .lost: break
            case let other: return other
            }
            (at, index) = (at + count, index + 1)
        } while at < size
        return .done(size)
    }
}
