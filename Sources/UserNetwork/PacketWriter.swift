import Glibc
import HostNetwork
import LinuxSystem

/// Headers of a packet for the guest.
final class PacketWriter {
    let bytes = UnsafeMutableRawPointer.allocate(byteCount: 14 + ParsedPacket.headerCapacity, alignment: 16)
    deinit { bytes.deallocate() }

    /// Ethernet and IP headers. Returns where the transport header goes.
    /// - Parameter count: bytes of transport header and payload.
    func begin(
        to hardware: UInt64, _ source: IPAddress, _ target: IPAddress, transport: UInt8, count: Int, identification: UInt16,
        fragment: (offset: Int, more: Bool)? = nil, hopLimit: UInt8 = 64
    ) -> Int {
        bytes.storeBig16(UInt16(truncatingIfNeeded: hardware >> 32), 0)
        bytes.storeBig32(UInt32(truncatingIfNeeded: hardware), 2)
        bytes.storeBig16(UInt16(truncatingIfNeeded: UserNetwork.Addresses.routerHardware >> 32), 6)
        bytes.storeBig32(UInt32(truncatingIfNeeded: UserNetwork.Addresses.routerHardware), 8)
        let ip = bytes + 14
        if source.isV4 {
            bytes.storeBig16(0x0800, 12)
            ip.storeBig16(0x4500, 0)
            ip.storeBig16(UInt16(truncatingIfNeeded: 20 + count), 2)
            ip.storeBig16(identification, 4)
            ip.storeBig16(fragment.map { UInt16(truncatingIfNeeded: $0.offset / 8) | ($0.more ? 0x2000 : 0) } ?? 0x4000, 6)
            ip.storeByte(hopLimit, 8)
            ip.storeByte(transport, 9)
            ip.storeBig16(0, 10)
            source.store(to: ip + 12)
            target.store(to: ip + 16)
            var sum = InternetChecksum()
            sum.add(ip, 20)
            ip.storeBig16(sum.value, 10)
            return 34
        }
        bytes.storeBig16(0x86DD, 12)
        ip.storeBig32(0x6000_0000, 0)
        ip.storeBig16(UInt16(truncatingIfNeeded: fragment == nil ? count : count + 8), 4)
        ip.storeByte(fragment == nil ? transport : 44, 6)
        ip.storeByte(hopLimit, 7)
        source.store(to: ip + 8)
        target.store(to: ip + 24)
        guard let fragment else { return 54 }
        ip.storeByte(transport, 40)
        ip.storeByte(0, 41)
        ip.storeBig16(UInt16(truncatingIfNeeded: fragment.offset) | (fragment.more ? 1 : 0), 42)
        ip.storeBig32(UInt32(identification), 44)
        return 62
    }

    static func pseudoSum(_ source: IPAddress, _ target: IPAddress, _ transport: UInt8, _ count: Int) -> InternetChecksum {
        var sum = InternetChecksum()
        sum.add(source)
        sum.add(target)
        sum.add(big: UInt16(transport))
        sum.add(big: UInt16(truncatingIfNeeded: count >> 16))
        sum.add(big: UInt16(truncatingIfNeeded: count))
        return sum
    }
}
extension InternetChecksum {
    fileprivate mutating func add(_ address: IPAddress) {
        add(number: address.isV4 ? UInt64(address.v4) : address.low)
        if !address.isV4 { add(number: address.high) }
    }
    private mutating func add(number: UInt64) {
        for shift in stride(from: 0, to: 64, by: 16) as StrideTo<UInt64> { add(big: UInt16(truncatingIfNeeded: number >> shift)) }
    }
}

extension Stack {
    /// A datagram from `self.datagram` (transport header first, its checksum already right) for the guest: straight into `room`
    /// when that is given and one frame is enough, else queued, in fragments if need be. Returns the size when it is in `room`.
    @discardableResult
    func sendDatagram(_ source: IPAddress, _ target: IPAddress, _ transport: UInt8, _ count: Int, room: MemoryPieces? = nil, hopLimit: UInt8 = 64) -> Int? {
        let most = 1500 - (source.isV4 ? 20 : 40)
        if count <= most {
            let start = writer.begin(to: hardware, source, target, transport: transport, count: count, identification: 0, hopLimit: hopLimit)
            guard let room else {
                emit(frame(start, datagram, count))
                return nil
            }
            room.write(writer.bytes, start, at: 0)
            room.write(datagram, count, at: start)
            return start + count
        }
        identification &+= 1
        let step = (most - (source.isV4 ? 0 : 8)) & ~7
        for offset in stride(from: 0, to: count, by: step) {
            let size = min(step, count - offset)
            let start = writer.begin(
                to: hardware, source, target, transport: transport, count: size, identification: identification,
                fragment: (offset, offset + size < count), hopLimit: hopLimit)
            emit(frame(start, datagram + offset, size))
        }
        return nil
    }
    private func frame(_ start: Int, _ payload: UnsafeRawPointer, _ count: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: start + count) { buffer, initialized in
            guard let base = buffer.baseAddress else { return }
            memcpy(base, writer.bytes, start)
            memcpy(base + start, payload, count)
            initialized = start + count
        }
    }
}
