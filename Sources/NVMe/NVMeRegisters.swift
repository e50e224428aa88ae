/// Numbers of the NVM Express Base Specification 1.4.
enum NVMe {
    /// Offsets of the controller's registers. § 3.1.
    enum Register {
        static let capabilities: UInt64 = 0x00
        static let version: UInt64 = 0x08
        static let configuration: UInt64 = 0x14
        static let status: UInt64 = 0x1C
        static let adminQueueSizes: UInt64 = 0x24
        static let adminSubmissionQueue: UInt64 = 0x28
        static let adminCompletionQueue: UInt64 = 0x30
        static let doorbells: UInt64 = 0x1000
    }
    enum Configuration {
        static let enable: UInt32 = 1
        static func memoryPageShift(_ value: UInt32) -> UInt32 { value >> 7 & 15 }
        static func commandSet(_ value: UInt32) -> UInt32 { value >> 4 & 7 }
        static func shutdown(_ value: UInt32) -> UInt32 { value >> 14 & 3 }
    }
    enum ControllerStatus {
        static let ready: UInt32 = 1
        static let fatal: UInt32 = 2
        static let shutdownComplete: UInt32 = 2 << 2
    }
    /// § 5.
    enum Admin {
        static let deleteSubmissionQueue: UInt8 = 0x00
        static let createSubmissionQueue: UInt8 = 0x01
        static let getLogPage: UInt8 = 0x02
        static let deleteCompletionQueue: UInt8 = 0x04
        static let createCompletionQueue: UInt8 = 0x05
        static let identify: UInt8 = 0x06
        static let abort: UInt8 = 0x08
        static let setFeatures: UInt8 = 0x09
        static let getFeatures: UInt8 = 0x0A
        static let asynchronousEvent: UInt8 = 0x0C
        static let doorbellBuffer: UInt8 = 0x7C
    }
    /// § 6.
    enum Command {
        static let flush: UInt8 = 0x00
        static let write: UInt8 = 0x01
        static let read: UInt8 = 0x02
        static let writeZeroes: UInt8 = 0x08
        static let datasetManagement: UInt8 = 0x09
    }
    /// § 4.6.1, without the phase: status code type and status code.
    struct Status: Equatable, Error {
        let rawValue: UInt16
        static let success = Status(rawValue: 0)
        static let invalidOpcode = Status(rawValue: 0x001)
        static let invalidField = Status(rawValue: 0x002)
        static let invalidNamespace = Status(rawValue: 0x00B)
        static let invalidOffset = Status(rawValue: 0x013)
        static let writeProtected = Status(rawValue: 0x020)
        static let outOfRange = Status(rawValue: 0x080)
        static let invalidCompletionQueue = Status(rawValue: 0x100)
        static let invalidQueue = Status(rawValue: 0x101)
        static let invalidQueueSize = Status(rawValue: 0x102)
        static let tooManyEventRequests = Status(rawValue: 0x105)
        static let invalidVector = Status(rawValue: 0x108)
        static let invalidQueueDeletion = Status(rawValue: 0x10C)
        static let writeFault = Status(rawValue: 0x280)
        static let readError = Status(rawValue: 0x281)
    }
    enum Feature {
        static let writeCache: UInt8 = 0x06
        static let queueCount: UInt8 = 0x07
        /// Those that are kept and shown, and mean nothing here.
        static let kept: Set<UInt8> = [0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0B]
    }
    static let pageSize = 4096
    static let commandSize = 64
    static let completionSize = 16
    /// Entries of the largest queue.
    static let mostEntries = 1024
    /// Bytes of the largest transfer: a power of two of pages.
    static let transferShift: UInt8 = 10
    static let largestTransfer = pageSize << Int(transferShift)
    static let namespace: UInt32 = 1
}

/// A command as the driver wrote it, read once. § 4.2.
struct NVMeCommand {
    let words: InlineArray<16, UInt32>
    init(_ source: UnsafeRawPointer) { words = InlineArray { source.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self) } }
    var opcode: UInt8 { UInt8(truncatingIfNeeded: words[0]) }
    var identifier: UInt16 { UInt16(truncatingIfNeeded: words[0] >> 16) }
    var namespace: UInt32 { words[1] }
    /// PRP entries, not scatter/gather lists; and no fused operation.
    var isPlain: Bool { words[0] >> 8 & 0xC3 == 0 }
    var firstPage: UInt64 { UInt64(words[6]) | UInt64(words[7]) << 32 }
    var secondPage: UInt64 { UInt64(words[8]) | UInt64(words[9]) << 32 }
    var block: UInt64 { UInt64(words[10]) | UInt64(words[11]) << 32 }
    /// Blocks, one or more.
    var blockCount: Int { Int(words[12] & 0xFFFF) + 1 }
}
