import DiskStorage
import Glibc
import GuestMemory
import LinuxSystem

/// A thread that runs the commands of one queue, one after the other.
final class CommandWorker: Sendable {
    private let worker: EventWorker

    init(_ queue: SubmissionQueue, _ backend: any BlockBackend, _ memory: GuestMemory, gate: DeviceGate) throws(SystemError) {
        nonisolated(unsafe) let work = Work(queue, DiskCommands(backend, memory))  // only the worker touches it
        worker = try EventWorker(name: "vz-nvme-\(queue.identifier)", event: queue.event, gate: gate) {
            work.serve()
            return true
        }
    }
    func stop() { worker.stop() }

    /// What belongs to the thread.
    private final class Work {
        /// So many commands at most, as the gate is passed only between turns. The driver hears of those that have ended at a turn's end,
        /// or after so many bytes, but not before so many nanoseconds are over: telling it costs more than a small command.
        private static let turn = 32
        private static let batch = 256 << 10
        private static let patience: UInt64 = 50_000
        private let queue: SubmissionQueue
        private let commands: DiskCommands
        /// Made on the thread.
        private lazy var schedule = GatheringSchedule()
        /// Commands since the thread was woken.
        private var taken = 0

        init(_ queue: SubmissionQueue, _ commands: DiskCommands) { (self.queue, self.commands) = (queue, commands) }
        func serve() {
            repeat {
                let count = serveSome()
                taken += count
                if count == Self.turn { return queue.event.signal() }
            } while queue.goesOn()
            schedule.willSleep(after: taken)
            taken = 0
        }
        private func serveSome() -> Int {
            var (count, bytes) = (0, 0)
            var begin = monotonicNanoseconds()
            while count < Self.turn, let command = queue.take() {
                let status = commands.run(command)
                queue.completions.post(command, status, queue: queue.identifier, head: queue.head)
                count += 1
                bytes += commands.moved
                if bytes >= Self.batch, monotonicNanoseconds() &- begin > Self.patience {
                    queue.completions.notify()
                    (bytes, begin) = (0, monotonicNanoseconds())
                }
            }
            queue.completions.notify()
            return count
        }
    }
}

/// The commands of the NVM command set. NVMe 1.4 § 6.
final class DiskCommands {
    private let backend: any BlockBackend
    private let memory: GuestMemory
    private let pages: PhysicalPages
    /// Bytes that the newest command read or wrote.
    private(set) var moved = 0

    init(_ backend: any BlockBackend, _ memory: GuestMemory) {
        self.backend = backend
        self.memory = memory
        pages = PhysicalPages(memory)
    }
    func run(_ command: NVMeCommand) -> NVMe.Status {
        moved = 0
        do throws(NVMe.Status) {
            guard command.isPlain else { throw .invalidField }
            if command.opcode == NVMe.Command.flush { return backend.flush() == 0 ? .success : .writeFault }
            guard command.namespace == NVMe.namespace else { throw .invalidNamespace }
            switch command.opcode {
            case NVMe.Command.read:
                let (offset, length) = try range(command)
                try pages.collect(command.firstPage, command.secondPage, length)
                let result = backend.read(at: offset, pages.vectors, pages.count)
                pages.noteWrite()
                return result == 0 ? .success : .readError
            case NVMe.Command.write:
                let (offset, length) = try range(command)
                try checkWritable()
                try pages.collect(command.firstPage, command.secondPage, length)
                guard backend.write(at: offset, pages.vectors, pages.count) == 0 else { throw .writeFault }
                // Force unit access.
                return command.words[12] >> 30 & 1 == 0 || backend.flush() == 0 ? .success : .writeFault
            case NVMe.Command.writeZeroes:
                let (offset, length) = try range(command)
                try checkWritable()
                // Deallocate, where that is the driver's wish.
                return backend.writeZeroes(at: offset, count: UInt64(length), mayUnmap: command.words[12] >> 25 & 1 != 0) == 0 ? .success : .writeFault
            case NVMe.Command.datasetManagement: return try manage(command)
            default: throw .invalidOpcode
            }
        } catch { return error }
    }
    private func checkWritable() throws(NVMe.Status) { if backend.isReadOnly { throw .writeProtected } }
    private func range(_ command: NVMeCommand) throws(NVMe.Status) -> (offset: UInt64, length: Int) {
        try check(command.block, UInt64(command.blockCount))
        moved = command.blockCount * backend.blockSize
        return (command.block * UInt64(backend.blockSize), moved)
    }
    private func check(_ block: UInt64, _ count: UInt64) throws(NVMe.Status) {
        let capacity = backend.byteCount / UInt64(backend.blockSize)
        guard block <= capacity, count <= capacity - block else { throw .outOfRange }
    }
    /// Ranges of 16 bytes: attributes, blocks, first block. § 6.7.
    private func manage(_ command: NVMeCommand) throws(NVMe.Status) -> NVMe.Status {
        try checkWritable()
        let count = Int(command.words[10] & 0xFF) + 1
        // Only deallocation does something; the rest is advice.
        guard command.words[11] & 4 != 0 else { return .success }
        try pages.collect(command.firstPage, command.secondPage, count * 16)
        var bytes: [UInt8] = []
        for index in 0..<pages.count { bytes += UnsafeRawBufferPointer(start: pages.vectors[index].iov_base, count: pages.vectors[index].iov_len) }
        for index in 0..<count {
            let (blocks, first) = bytes.withUnsafeBytes { raw in
                (raw.loadUnaligned(fromByteOffset: index * 16 + 4, as: UInt32.self), raw.loadUnaligned(fromByteOffset: index * 16 + 8, as: UInt64.self))
            }
            try check(first, UInt64(blocks))
            let size = UInt64(backend.blockSize)
            if blocks > 0, backend.discard(at: first * size, count: UInt64(blocks) * size) != 0 { return .writeFault }
        }
        return .success
    }
}
