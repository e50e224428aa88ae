import Glibc
import GuestMemory

/// The memory that a command names by pages: PRP entries. NVMe 1.4 § 4.3. Used again for the next command.
final class PhysicalPages {
    private static let capacity = NVMe.largestTransfer / NVMe.pageSize + 2
    private let memory: GuestMemory
    let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: capacity)
    /// Where the vectors lie in the guest's memory; a disk changes the vectors.
    private typealias Piece = (address: UInt64, count: Int)
    private let pieces = UnsafeMutablePointer<Piece>.allocate(capacity: capacity)
    private(set) var count = 0

    init(_ memory: GuestMemory) { self.memory = memory }
    deinit {
        vectors.deallocate()
        pieces.deallocate()
    }

    /// Collects `length` bytes; everything is checked.
    func collect(_ first: UInt64, _ second: UInt64, _ length: Int) throws(NVMe.Status) {
        var list = List(memory: memory, vectors: vectors, pieces: pieces)
        count = 0
        try list.collect(first, second, length)
        count = list.count
    }
    /// Being collected.
    private struct List {
        let memory: GuestMemory
        let vectors: UnsafeMutablePointer<iovec>
        let pieces: UnsafeMutablePointer<Piece>
        var count = 0

        mutating func collect(_ first: UInt64, _ second: UInt64, _ length: Int) throws(NVMe.Status) {
            guard length > 0, length <= NVMe.largestTransfer, first & 3 == 0 else { throw .invalidField }
            let page = NVMe.pageSize
            var left = length
            let step = min(left, page - Int(first & UInt64(page - 1)))
            try append(first, step)
            left -= step
            if left == 0 { return }
            if left <= page { return try append(try whole(second), left) }
            try followList(second, left)
        }
        private func whole(_ address: UInt64) throws(NVMe.Status) -> UInt64 {
            guard address & UInt64(NVMe.pageSize - 1) == 0 else { throw .invalidOffset }
            return address
        }
        /// A list of pages; the last entry of a full page of the list leads to the next one.
        private mutating func followList(_ start: UInt64, _ length: Int) throws(NVMe.Status) {
            guard start & 7 == 0 else { throw .invalidOffset }
            var (list, left) = (start, length)
            while left > 0 {
                // Up to the end of the list's page.
                let here = (NVMe.pageSize - Int(list & UInt64(NVMe.pageSize - 1))) / 8
                guard let entries = memory.pointer(list, here * 8) else { throw .invalidField }
                for index in 0..<here where left > 0 {
                    let entry = try whole(entries.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self))
                    if index == here - 1, left > NVMe.pageSize {
                        list = entry
                        break
                    }
                    let step = min(left, NVMe.pageSize)
                    try append(entry, step)
                    left -= step
                }
            }
        }
        private mutating func append(_ address: UInt64, _ length: Int) throws(NVMe.Status) {
            guard let pointer = memory.pointer(address, length), count < PhysicalPages.capacity else { throw .invalidField }
            let last = count - 1
            if last >= 0, pieces[last].address &+ UInt64(pieces[last].count) == address, vectors[last].iov_base + pieces[last].count == pointer {
                pieces[last].count += length
                vectors[last].iov_len += length
            } else {
                pieces[count] = (address, length)
                vectors[count] = iovec(iov_base: pointer, iov_len: length)
                count += 1
            }
        }
    }
    /// To be called after the memory was written.
    func noteWrite() { for index in 0..<count { memory.noteWrite(pieces[index].address, pieces[index].count) } }
    /// Fills the memory with `bytes`, and with zeroes behind them.
    func write(_ bytes: [UInt8]) {
        var done = 0
        for index in 0..<count {
            for offset in 0..<vectors[index].iov_len {
                (vectors[index].iov_base + offset).storeBytes(of: done < bytes.count ? bytes[done] : 0, as: UInt8.self)
                done += 1
            }
        }
        noteWrite()
    }
}
