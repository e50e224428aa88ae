import CLinux
import Glibc
import LinuxSystem

/// Requests on their way into a socket: headers in memory of our own, data where it lies in the guest's.
final class NBDSender {
    static let zeroCount = 1 << 20
    private static let headerCapacity = 64
    private static let vectorCapacity = 1024  // IOV_MAX
    private let headers = UnsafeMutableRawPointer.allocate(byteCount: headerCapacity * NBD.requestSize, alignment: 16)
    private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: vectorCapacity)
    private var headerCount = 0
    private var vectorCount = 0
    /// Vectors before this one are sent.
    private var next = 0
    private var zeroes: UnsafeMutableRawPointer?

    deinit {
        headers.deallocate()
        vectors.deallocate()
        zeroes?.deallocate()
    }

    var isIdle: Bool { next == vectorCount }
    /// Room for a request of the guest's largest chain.
    var hasRoom: Bool { headerCount < Self.headerCapacity && vectorCount + 260 < Self.vectorCapacity }
    func reset() { (headerCount, vectorCount, next) = (0, 0, 0) }

    func add(command: UInt16, flags: UInt16, handle: UInt64, offset: UInt64, length: UInt32) {
        let header = headers + headerCount * NBD.requestSize
        header.storeBig(NBD.requestMagic, at: 0)
        header.storeBig(flags, at: 4)
        header.storeBig(command, at: 6)
        header.storeBig(handle, at: 8)
        header.storeBig(offset, at: 16)
        header.storeBig(length, at: 24)
        headerCount += 1
        append(header, NBD.requestSize)
    }
    func add(_ data: [iovec], from start: Int, count: Int) {
        data.withUnsafeBufferPointer { data in
            guard let base = data.baseAddress else { return }
            vectorCount += MemoryPieces(pieces: base, count: data.count).slice(
                from: start, limit: count, to: vectors + vectorCount, capacity: Self.vectorCapacity - vectorCount)
        }
    }
    func addZeroes(_ count: Int) {
        let memory = zeroes ?? UnsafeMutableRawPointer.allocate(byteCount: Self.zeroCount, alignment: 4096)
        if zeroes == nil { memset(memory, 0, Self.zeroCount) }
        zeroes = memory
        append(memory, count)
    }
    private func append(_ base: UnsafeMutableRawPointer, _ count: Int) {
        vectors[vectorCount] = iovec(iov_base: base, iov_len: count)
        vectorCount += 1
    }

    /// Sends what the socket takes; true when everything is sent.
    func flush(_ descriptor: Int32) throws(NBDError) -> Bool {
        while next < vectorCount {
            var message = msghdr()
            message.msg_iov = vectors + next
            message.msg_iovlen = vectorCount - next
            var done = sendmsg(descriptor, &message, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
            if done < 0 {
                if errno == EINTR { continue }
                if errno == EAGAIN { return false }
                throw NBDError("the NBD server is gone: \(String(cString: strerror(errno)).lowercased())", isPassing: true)
            }
            while next < vectorCount, done >= vectors[next].iov_len {
                done -= vectors[next].iov_len
                next += 1
            }
            if done > 0 {
                vectors[next].iov_base += done
                vectors[next].iov_len -= done
            }
        }
        reset()
        return true
    }
    /// The last request: the server may close. As far as the socket takes it.
    func sayGoodbye(_ descriptor: Int32) {
        guard isIdle else { return }
        reset()
        add(command: NBD.Command.disconnect, flags: 0, handle: 0, offset: 0, length: 0)
        _ = try? flush(descriptor)
    }
}
