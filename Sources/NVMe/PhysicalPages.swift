import Glibc
import GuestMemory

/// The memory that a command names by pages: PRP entries. NVMe 1.4 § 4.3. Used again for the next command.
final class PhysicalPages {
    private static let capacity = NVMe.largestTransfer / NVMe.pageSize + 2
    private let memory: GuestMemory
    let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: capacity)
    private(set) var count = 0
    private var addresses: [(address: UInt64, count: Int)] = []

    init(_ memory: GuestMemory) {
        self.memory = memory
        addresses.reserveCapacity(Self.capacity)
    }
    deinit { vectors.deallocate() }

    /// Collects `length` bytes; everything is checked.
    func collect(_ first: UInt64, _ second: UInt64, _ length: Int) throws(NVMe.Status) {
        count = 0
        addresses.removeAll(keepingCapacity: true)
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
    private func followList(_ start: UInt64, _ length: Int) throws(NVMe.Status) {
        guard start & 7 == 0 else { throw .invalidOffset }
        var (list, left) = (start, length)
        while left > 0 {
            guard let pointer = memory.pointer(list, 8) else { throw .invalidField }
            let entry = try whole(pointer.loadUnaligned(as: UInt64.self))
            if list & UInt64(NVMe.pageSize - 1) == UInt64(NVMe.pageSize - 8), left > NVMe.pageSize {
                // A list that leads to its own last entry would never end.
                guard entry & UInt64(NVMe.pageSize - 1) == 0 else { throw .invalidOffset }
                list = entry
                continue
            }
            let step = min(left, NVMe.pageSize)
            try append(entry, step)
            left -= step
            list &+= 8
        }
    }
    private func append(_ address: UInt64, _ length: Int) throws(NVMe.Status) {
        guard let pointer = memory.pointer(address, length), count < Self.capacity else { throw .invalidField }
        addresses.append((address, length))
        if count > 0, vectors[count - 1].iov_base + vectors[count - 1].iov_len == pointer {
            vectors[count - 1].iov_len += length
        } else {
            vectors[count] = iovec(iov_base: pointer, iov_len: length)
            count += 1
        }
    }
    /// To be called after the memory was written.
    func noteWrite() { for (address, length) in addresses { memory.noteWrite(address, length) } }
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
