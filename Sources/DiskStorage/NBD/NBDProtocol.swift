/// Numbers of the Network Block Device protocol. https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
enum NBD {
    static let greeting: UInt64 = 0x4E42_444D_4147_4943  // NBDMAGIC
    static let optionMagic: UInt64 = 0x4948_4156_454F_5054  // IHAVEOPT
    static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
    static let requestMagic: UInt32 = 0x2560_9513
    static let simpleReplyMagic: UInt32 = 0x6744_6698
    static let structuredReplyMagic: UInt32 = 0x668E_33EF

    static let fixedNewStyle: UInt16 = 1
    static let noZeroes: UInt16 = 2

    enum Option {
        static let exportName: UInt32 = 1
        static let startTLS: UInt32 = 5
        static let go: UInt32 = 7
        static let structuredReply: UInt32 = 8
    }
    enum OptionReply {
        static let acknowledge: UInt32 = 1
        static let information: UInt32 = 3
        static let error: UInt32 = 1 << 31
        static let unsupported = error + 1
        static let policy = error + 2
        static let tlsRequired = error + 5
        static let unknown = error + 6
    }
    enum Information {
        static let export: UInt16 = 0
        static let blockSize: UInt16 = 3
    }
    /// Transmission flags.
    struct Flags: OptionSet, Sendable {
        let rawValue: UInt16
        static let hasFlags = Flags(rawValue: 1 << 0)
        static let readOnly = Flags(rawValue: 1 << 1)
        static let flush = Flags(rawValue: 1 << 2)
        static let forceUnitAccess = Flags(rawValue: 1 << 3)
        static let trim = Flags(rawValue: 1 << 5)
        static let writeZeroes = Flags(rawValue: 1 << 6)
        static let multipleConnections = Flags(rawValue: 1 << 8)
    }
    enum Command {
        static let read: UInt16 = 0
        static let write: UInt16 = 1
        static let disconnect: UInt16 = 2
        static let flush: UInt16 = 3
        static let trim: UInt16 = 4
        static let writeZeroes: UInt16 = 6
        static let forceUnitAccess: UInt16 = 1 << 0
        static let noHole: UInt16 = 1 << 1
    }
    enum Chunk {
        static let none: UInt16 = 0
        static let data: UInt16 = 1
        static let hole: UInt16 = 2
        static let error: UInt16 = 1 << 15
        static let isLast: UInt16 = 1
    }
    static let requestSize = 28
    /// Bytes that a request may carry where the server sets no limit.
    static let defaultPayload = 32 << 20

    /// An error number of the protocol as one of the host's: they are Linux's, and few.
    static func errno(_ value: UInt32) -> Int32 { [1, 5, 12, 22, 28, 75, 95, 108].contains(value) ? Int32(value) : 5 }
}

extension UnsafeMutableRawPointer {
    /// Network byte order, any alignment.
    func storeBig<T: FixedWidthInteger>(_ value: T, at offset: Int) { storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self) }
    func loadBig<T: FixedWidthInteger>(at offset: Int, as: T.Type = T.self) -> T { T(bigEndian: loadUnaligned(fromByteOffset: offset, as: T.self)) }
}
