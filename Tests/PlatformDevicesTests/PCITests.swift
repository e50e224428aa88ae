import Hypervisor
import PlatformDevices
import Synchronization
import Testing

/// Configuration space, BARs and MSI-X as a guest works them. PCI Local Bus 3.0.
struct PCITests {
    private final class Bar: PCIBarHandler {
        func barRead(_ offset: UInt64, size: Int) -> UInt64 { offset }
        func barWrite(_ offset: UInt64, _ value: UInt64, size: Int) {}
    }
    private final class Messages: Sendable {
        let all = Mutex<[MSIMessage]>([])
    }
    private static let window: Range<UInt64> = 0x8_0000_0000..<0x9_0000_0000
    private let bar = Bar()

    private func make(_ messages: Messages = Messages()) throws -> (PCIHost, PCIFunction) {
        let host = PCIHost(barWindow: Self.window)
        var sink = MSIXSink()
        sink.send = { message in messages.all.withLock { $0.append(message) } }
        let function = PCIFunction(vendor: 0x1AF4, device: 0x1042, classCode: 0x010000, revision: 1, barSize: 0x8000, msixVectors: 3, msixTableOffset: 0x4000, sink: sink)
        function.bar = bar
        #expect(host.add(function) == 1)
        return (host, function)
    }

    @Test func absentFunctionsReadAsOnes() throws {
        let (host, _) = try make()
        #expect(host.ecamRead(9 << 15, size: 4) == 0xFFFF_FFFF)
        #expect(host.ecamRead(1 << 15 | 1 << 12, size: 4) == .max)
        #expect(host.ecamRead(1 << 20, size: 4) == .max)
        #expect(host.ecamRead(1 << 15, size: 4) == 0x1042_1AF4)
    }
    @Test func portsAndECAMShowTheSame() throws {
        let (host, _) = try make()
        for offset in stride(from: 0, to: 256, by: 4) {
            host.portWrite(0xCF8, 0x8000_0800 | UInt32(offset), size: 4)
            #expect(UInt64(host.portRead(0xCFC, size: 4)) == host.ecamRead(1 << 15 | UInt64(offset), size: 4))
        }
    }
    @Test func barTellsItsSizeAndMoves() throws {
        let (host, function) = try make()
        let at: UInt64 = 1 << 15
        let original = host.ecamRead(at + 0x10, size: 4)
        host.ecamWrite(at + 0x10, 0xFFFF_FFFF, size: 4)
        #expect(host.ecamRead(at + 0x10, size: 4) == 0xFFFF_800C)
        host.ecamWrite(at + 0x10, original, size: 4)
        host.ecamWrite(at + 4, 2, size: 2)
        #expect(host.decode(function.barAddress + 0x123)?.1 == 0x123)
        host.ecamWrite(at + 0x10, 0x1234_0000, size: 4)
        host.ecamWrite(at + 0x14, 0x8, size: 4)
        #expect(host.decode(0x8_1234_0001)?.1 == 1)
        host.ecamWrite(at + 4, 0, size: 2)
        #expect(host.decode(0x8_1234_0001) == nil)
    }
    /// A BAR of all ones would end beyond the address space.
    @Test func barAtTheEndOfTheAddressSpaceDoesNoHarm() throws {
        let (host, function) = try make()
        let at: UInt64 = 1 << 15
        host.ecamWrite(at + 4, 2, size: 2)
        host.ecamWrite(at + 0x10, 0xFFFF_FFFF, size: 4)
        host.ecamWrite(at + 0x14, 0xFFFF_FFFF, size: 4)
        #expect(function.barAddress == 0xFFFF_FFFF_FFFF_8000)
        #expect(host.decode(.max) == nil)
    }
    @Test func readOnlyRegistersStayAndRandomWritesDoNoHarm() throws {
        let (host, _) = try make()
        var random = SystemRandomNumberGenerator()
        for _ in 0..<50_000 {
            let value = random.next()
            host.ecamWrite(1 << 15 | value & 0xFFF, random.next(), size: 1 << (value >> 62))
            host.portWrite(0xCF8 + UInt16(value >> 12 & 7), UInt32(truncatingIfNeeded: random.next()), size: 1 << (value >> 40 % 3))
            _ = host.ecamRead(1 << 15 | value & 0xFFF, size: 1 << (value >> 62))
        }
        #expect(host.ecamRead(1 << 15, size: 4) == 0x1042_1AF4)
    }
    @Test func maskedVectorsWaitAndRoutesFollowTheTable() throws {
        let messages = Messages()
        let (host, function) = try make(messages)
        let msix = try #require(function.msix)
        msix.signal(1)
        #expect(messages.all.withLock { $0.isEmpty })
        var capability = host.ecamRead(1 << 15 | 0x34, size: 1)
        while host.ecamRead(1 << 15 | capability, size: 1) != 0x11 { capability = host.ecamRead(1 << 15 | capability + 1, size: 1) }
        host.ecamWrite(1 << 15 | capability + 2, 0x8000, size: 2)
        msix.tableWrite(16, 0xFEE0_0000, size: 8)
        msix.tableWrite(24, 0x55, size: 4)
        msix.signal(1)  // the entry is masked
        #expect(messages.all.withLock { $0.isEmpty })
        #expect(msix.pendingRead(0) == 2)
        msix.tableWrite(28, 0, size: 4)
        #expect(messages.all.withLock { $0 } == [MSIMessage(address: 0xFEE0_0000, data: 0x55)])
        #expect(msix.pendingRead(0) == 0)
        msix.tableWrite(24, 0x66, size: 4)
        msix.signal(1)
        msix.signal(3)
        msix.signal(0xFFFF)
        #expect(messages.all.withLock { $0.last } == MSIMessage(address: 0xFEE0_0000, data: 0x66))
        #expect(messages.all.withLock { $0.count } == 2)
        for offset in stride(from: 0, to: 0x800, by: 4) {
            msix.tableWrite(offset, .max, size: 8)
            _ = msix.tableRead(offset, size: 8)
        }
    }
}
