import CCompression

/// Why a file is not a kernel we can start, in a sentence.
package struct KernelError: Error, CustomStringConvertible, Equatable, Sendable {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// The bytes of a file and little-endian reads that cannot leave it.
struct ByteReader {
    let bytes: [UInt8]
    func value<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _: T.Type = T.self) -> T? {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return nil }
        return (0..<MemoryLayout<T>.size).reduce(0) { $0 | T(bytes[offset + $1]) << T(8 * $1) }
    }
}

/// A Linux kernel file, taken apart. Linux Documentation/arch/x86/boot.rst; System V ABI for ELF.
package struct KernelImage: Sendable {
    package struct Segment: Sendable {
        package var address: UInt64
        package var fileRange: Range<Int>
        package var memorySize: UInt64
    }
    /// The setup header of a bzImage (offset 0x1F1 on), to be handed to the kernel; empty for a plain ELF file.
    package private(set) var setupHeader: [UInt8] = []
    /// Load segments and entry point of the uncompressed kernel.
    package private(set) var segments: [Segment] = []
    package private(set) var entry: UInt64 = 0
    /// What the segments' file ranges refer to.
    package private(set) var content: [UInt8] = []
    /// For a payload we could not unpack: the bzImage's protected-mode part, which unpacks itself.
    package private(set) var selfExtracting = false
    package private(set) var initSize: UInt64 = 0
    package private(set) var maximumCommandLineLength = 2047
    package private(set) var highestInitialRamdiskAddress: UInt64 = 0x7FFF_FFFF

    /// - Parameter cache: where kernels that are slow to unpack are kept.
    package init(_ file: [UInt8], cache: KernelCache? = nil) throws(KernelError) {
        let reader = ByteReader(bytes: file)
        if file.isEmpty { throw KernelError("the file is empty") }
        if reader.value(0, UInt32.self) == 0x464C_457F {
            try parseELF(file)
            return
        }
        if reader.value(0x38, UInt32.self) == 0x644D_5241 { throw KernelError("it is a kernel for arm64, not for x86-64") }
        guard reader.value(0x202, UInt32.self) == 0x5372_6448 else {
            throw KernelError(file.count < 0x206 ? "it is too short for a Linux kernel" : "it is neither a Linux bzImage nor an ELF kernel")
        }
        try parseBzImage(file, reader, cache)
    }

    private mutating func parseBzImage(_ file: [UInt8], _ reader: ByteReader, _ cache: KernelCache?) throws(KernelError) {
        guard let version = reader.value(0x206, UInt16.self), version >= 0x20C,
            let flags = reader.value(0x236, UInt16.self), let setupSectors = reader.value(0x1F1, UInt8.self),
            let protectedSize = reader.value(0x1F4, UInt32.self), let payloadOffset = reader.value(0x248, UInt32.self),
            let payloadLength = reader.value(0x24C, UInt32.self), let initSize = reader.value(0x260, UInt32.self)
        else { throw KernelError("its boot protocol is older than 2.12 (Linux 3.8)") }
        guard flags & 1 != 0 else { throw KernelError("it is a 32-bit kernel; only x86-64 kernels can be started") }
        let headerEnd = min(0x202 + Int(file[0x201]), file.count)
        setupHeader = Array(file[0x1F1..<max(headerEnd, 0x1F1)])
        if let length = reader.value(0x238, UInt32.self), length > 0 { maximumCommandLineLength = Int(min(length, 65535)) }
        if let highest = reader.value(0x22C, UInt32.self), highest > 0 { highestInitialRamdiskAddress = UInt64(highest) }
        self.initSize = UInt64(initSize)
        let start = (setupSectors == 0 ? 5 : Int(setupSectors) + 1) * 512
        guard start < file.count, Int(protectedSize) * 16 <= file.count - start else {
            throw KernelError("it is truncated: the header promises \(start + Int(protectedSize) * 16) bytes, there are \(file.count)")
        }
        let payload = start + Int(payloadOffset)
        guard payloadOffset > 0, payload >= start, payload + Int(payloadLength) <= file.count, payloadLength > 4 else {
            throw KernelError("its payload lies outside the file")
        }
        // Every payload ends with its unpacked size.
        guard let unpackedSize = reader.value(payload + Int(payloadLength) - 4, UInt32.self), unpackedSize < 1 << 30 else {
            throw KernelError("its payload is damaged")
        }
        let unpacked = try Self.unpack(Array(file[payload..<payload + Int(payloadLength)]), size: Int(unpackedSize), cache)
        if let unpacked {
            try parseELF(unpacked)
        } else {
            content = file
            selfExtracting = true
            segments = [Segment(address: 0x100000, fileRange: start..<file.count, memorySize: UInt64(file.count - start))]
            entry = 0x100200
        }
    }

    /// Gzip and XZ are slower to unpack than the cache is to read; LZ4 and Zstandard are not.
    private static func unpack(_ payload: [UInt8], size: Int, _ cache: KernelCache?) throws(KernelError) -> [UInt8]? {
        guard let cache, payload[0] == 0x1F || payload[0] == 0xFD else { return try decompress(payload, size: size) }
        let key = payload.withUnsafeBytes { KernelCache.key($0) }
        if let kept = cache.load(key, size: size) { return kept }
        let unpacked = try decompress(payload, size: size)
        if let unpacked { cache.store(key, unpacked) }
        return unpacked
    }

    /// nil for a compression we do not know: the kernel's own code will do it in the guest.
    private static func decompress(_ payload: [UInt8], size: Int) throws(KernelError) -> [UInt8]? {
        let decoder: (UnsafeRawPointer?, Int, UnsafeMutableRawPointer?, Int) -> Int
        switch (payload[0], payload[1], payload[2], payload[3]) {
        case (0x1F, 0x8B, _, _): decoder = { ccompression_gunzip($0, $1, $2, $3) }
        case (0xFD, 0x37, 0x7A, 0x58): decoder = { ccompression_unxz($0, $1, $2, $3) }
        case (0x28, 0xB5, 0x2F, 0xFD): decoder = { ccompression_unzstd($0, $1, $2, $3) }
        case (0x02, 0x21, 0x4C, 0x18): decoder = { ccompression_unlz4($0, $1, $2, $3) }
        default: return nil
        }
        var written = -1
        let result = [UInt8](unsafeUninitializedCapacity: size + 16) { buffer, count in
            written = payload.withUnsafeBytes { decoder($0.baseAddress, $0.count, buffer.baseAddress, size) }
            count = max(written, 0)
        }
        guard written == size else { throw KernelError("its compressed payload is damaged") }
        return result
    }

    private mutating func parseELF(_ file: [UInt8]) throws(KernelError) {
        let reader = ByteReader(bytes: file)
        guard reader.value(4, UInt8.self) == 2, reader.value(5, UInt8.self) == 1 else { throw KernelError("it is not a 64-bit little-endian ELF file") }
        guard let machine = reader.value(18, UInt16.self) else { throw KernelError("it is a truncated ELF file") }
        guard machine == 62 else {
            throw KernelError(machine == 183 ? "it is a kernel for arm64, not for x86-64" : "it is a kernel for another processor (ELF machine \(machine))")
        }
        guard let entry = reader.value(24, UInt64.self), let table = reader.value(32, UInt64.self),
            let entrySize = reader.value(54, UInt16.self), let count = reader.value(56, UInt16.self), entrySize >= 56, table < UInt64(file.count)
        else { throw KernelError("it is a truncated ELF file") }
        var result: [Segment] = []
        for index in 0..<Int(count) {
            let at = Int(table) + index * Int(entrySize)
            guard let type = reader.value(at, UInt32.self), let offset = reader.value(at + 8, UInt64.self),
                let address = reader.value(at + 24, UInt64.self), let fileSize = reader.value(at + 32, UInt64.self),
                let memorySize = reader.value(at + 40, UInt64.self)
            else { throw KernelError("it is a truncated ELF file") }
            guard type == 1 else { continue }
            guard offset <= UInt64(file.count), fileSize <= UInt64(file.count) - offset, memorySize >= fileSize, memorySize < 1 << 40,
                address < 1 << 40
            else { throw KernelError("it is truncated: a segment lies outside the file") }
            result.append(Segment(address: address, fileRange: Int(offset)..<Int(offset + fileSize), memorySize: memorySize))
        }
        guard !result.isEmpty else { throw KernelError("it has nothing to load") }
        // vmlinux files carry the entry's physical address; some carry the virtual one of the kernel mapping.
        self.entry = entry >= 0xFFFF_FFFF_8000_0000 ? entry - 0xFFFF_FFFF_8000_0000 : entry
        segments = result
        content = file
        initSize = max(initSize, (result.map { $0.address + $0.memorySize }.max() ?? 0) - (result.map(\.address).min() ?? 0))
    }
}
