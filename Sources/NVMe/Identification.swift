import DiskStorage

/// What the controller says of itself and of its one namespace. NVMe 1.4 § 5.15.
struct Identification {
    private let backend: any BlockBackend
    /// Up to 20 ASCII bytes: the drive's serial number.
    let serial: String
    /// Sixteen bytes that tell this drive from others.
    private let identifier: [UInt8]

    init(_ backend: any BlockBackend, serial: String) {
        self.backend = backend
        self.serial = serial
        // FNV-1a of the serial number, twice 64 bits, in the form of a UUID (version 8: of our own making).
        var bytes: [UInt8] = []
        for salt in [1, 2] as [UInt64] {
            let hash = serial.utf8.reduce(0xCBF2_9CE4_8422_2325 ^ salt) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
            bytes += (0..<8).map { UInt8(truncatingIfNeeded: hash >> UInt64(8 * $0)) }
        }
        bytes[6] = bytes[6] & 0x0F | 0x80
        bytes[8] = bytes[8] & 0x3F | 0x80
        identifier = bytes
    }

    /// nil for a structure that this controller does not have.
    func structure(_ kind: UInt8, namespace: UInt32) -> Result<[UInt8], NVMe.Status> {
        switch kind {
        case 0: return namespace == NVMe.namespace || namespace == .max ? .success(namespaceStructure) : .failure(.invalidNamespace)
        case 1: return .success(controller)
        case 2: return .success(namespace < NVMe.namespace ? [1, 0, 0, 0] : [])
        case 3: return namespace == NVMe.namespace ? .success([3, 16, 0, 0] + identifier) : .failure(.invalidNamespace)
        default: return .failure(.invalidField)
        }
    }
    private var controller: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: NVMe.pageSize)
        func put(_ offset: Int, _ value: UInt64, _ count: Int) {
            for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        }
        func put(_ offset: Int, _ text: String, _ count: Int) {
            let padded = Array(text.utf8.prefix(count)) + [UInt8](repeating: 0x20, count: max(0, count - text.utf8.count))
            bytes.replaceSubrange(offset..<offset + count, with: padded)
        }
        put(0, UInt64(NVMeController.vendor), 2)
        put(2, UInt64(NVMeController.vendor), 2)
        put(4, serial, 20)
        put(24, "swift-virtualization", 40)
        put(64, "1", 8)
        bytes[77] = NVMe.transferShift
        put(80, 0x0001_0400, 4)  // version
        bytes[111] = 1  // an I/O controller
        bytes[257] = 1  // doorbells in memory
        bytes[259] = 3  // outstanding event requests, less one
        bytes[260] = 0x03  // one read-only firmware slot
        bytes[512] = 0x66
        bytes[513] = 0x44
        put(516, 1, 4)  // namespaces
        put(520, 1 << 2 | 1 << 3, 2)  // dataset management, write zeroes
        bytes[525] = 1  // a volatile write cache
        put(768, "nqn.2014-08.org.nvmexpress:uuid:" + Self.text(identifier), 256)
        for index in 768..<1024 where bytes[index] == 0x20 { bytes[index] = 0 }
        return bytes
    }
    private static func text(_ identifier: [UInt8]) -> String {
        func hex(_ range: Range<Int>) -> String { identifier[range].map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined() }
        return [hex(0..<4), hex(4..<6), hex(6..<8), hex(8..<10), hex(10..<16)].joined(separator: "-")
    }
    private var namespaceStructure: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: NVMe.pageSize)
        let blocks = backend.byteCount / UInt64(backend.blockSize)
        for place in [0, 8, 16] { for index in 0..<8 { bytes[place + index] = UInt8(truncatingIfNeeded: blocks >> UInt64(8 * index)) } }
        bytes[24] = 1 << 2  // blocks can be deallocated
        bytes[99] = backend.isReadOnly ? 1 : 0
        bytes.replaceSubrange(104..<120, with: identifier)
        bytes[130] = UInt8(backend.blockSize.trailingZeroBitCount)
        return bytes
    }
}
