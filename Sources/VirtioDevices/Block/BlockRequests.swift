import DiskStorage
import Glibc
import LinuxSystem

/// Serves the requests of one block queue, one after the other. Everything it needs is allocated once.
final class BlockRequests {
    /// Nanoseconds that an answered request may wait for others.
    private static let patience: UInt64 = 50_000
    private let backend: any BlockBackend
    private let identifier: [UInt8]
    private let rangesPerRequest: Int
    private let chain = DescriptorChain(capacity: Int(BlockDevice.queueSize))
    private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: Int(BlockDevice.queueSize))

    init(backend: any BlockBackend, identifier: [UInt8], rangesPerRequest: Int) {
        self.backend = backend
        self.identifier = identifier
        self.rangesPerRequest = rangesPerRequest
    }
    deinit { vectors.deallocate() }

    func serve(_ queue: Virtqueue) throws(QueueError) {
        // The driver hears of several requests at once, but of none later than it must.
        var oldest: UInt64 = 0
        while try queue.pop(chain) {
            let written = execute()
            queue.complete(chain, written: written)
            guard queue.hasAvailable else {
                queue.notify()
                oldest = 0
                continue
            }
            let now = monotonicNanoseconds()
            if oldest == 0 { oldest = now }
            if now &- oldest > Self.patience {
                queue.notify()
                oldest = 0
            }
        }
    }

    /// Runs one request; returns the bytes written to the chain, status included.
    private func execute() -> Int {
        // The last writable byte is the status; a chain without one can be told nothing.
        guard chain.writableCount >= 1 else { return 0 }
        switch BlockRequest(chain, backend) {
        case .transfer(let operation): return BlockRequest.finish(chain, run(operation) == 0 ? BlockRequest.Status.ok : BlockRequest.Status.ioError)
        case .ranges(let zero): return BlockRequest.finish(chain, ranges(zero: zero))
        case .identify: return BlockRequest.identify(chain, identifier)
        case .refused(let status): return BlockRequest.finish(chain, status)
        }
    }
    private func run(_ operation: DiskOperation) -> Int32 {
        switch operation.kind {
        case .read: backend.read(at: operation.offset, vectors, BlockRequest.vectors(operation, chain, into: vectors))
        case .write: backend.write(at: operation.offset, vectors, BlockRequest.vectors(operation, chain, into: vectors))
        case .flush: backend.flush()
        case .discard: backend.discard(at: operation.offset, count: UInt64(operation.count))
        case .writeZeroes(let mayUnmap): backend.writeZeroes(at: operation.offset, count: UInt64(operation.count), mayUnmap: mayUnmap)
        }
    }
    private func ranges(zero: Bool) -> UInt8 {
        guard let count = BlockRequest.rangeCount(chain, limit: rangesPerRequest) else { return BlockRequest.Status.ioError }
        for index in 0..<count {
            switch BlockRequest.range(chain, index, zero: zero, backend) {
            case .success(let operation): if operation.count > 0, run(operation) != 0 { return BlockRequest.Status.ioError }
            case .failure(let refusal): return refusal.status
            }
        }
        return BlockRequest.Status.ok
    }
}
