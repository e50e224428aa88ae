import Glibc
import LinuxSystem

/// Threads that run a disk's calls for one channel; made as they are needed.
final class DiskThreads: @unchecked Sendable {  // `mutex` guards what changes
    private static let most = 16
    private struct Job {
        let operation: DiskOperation
        var vectors: [iovec]
        let tag: Int
    }
    private let disk: any BlockBackend
    /// Readable while there is something to take.
    let finished: EventFD
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var jobs: [Job] = []
    private var ended: [(tag: Int, result: Int32)] = []
    private var threads: [HostThread] = []
    private var idle = 0
    private var isClosed = false

    init(_ disk: any BlockBackend) throws(SystemError) {
        self.disk = disk
        finished = try EventFD()
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(wake, nil)
    }
    deinit {
        pthread_cond_destroy(wake)
        pthread_mutex_destroy(mutex)
        wake.deallocate()
        mutex.deallocate()
    }
    private func locked<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body()
    }

    /// Has a thread do it; false when there is none to be had.
    func add(_ operation: DiskOperation, _ vectors: UnsafeBufferPointer<iovec>, _ tag: Int) -> Bool {
        locked {
            if idle <= jobs.count, threads.count < Self.most, let thread = try? HostThread(name: "vz-disk", body: { [self] in run() }) { threads.append(thread) }
            guard !threads.isEmpty else { return false }
            jobs.append(Job(operation: operation, vectors: Array(vectors), tag: tag))
            pthread_cond_signal(wake)
            return true
        }
    }
    func takeEnded() -> [(tag: Int, result: Int32)] {
        locked {
            guard !ended.isEmpty else { return [] }
            finished.drain()
            defer { ended = [] }
            return ended
        }
    }
    /// Forgets what was not begun, and returns when no thread runs any more.
    func close() {
        let threads = locked {
            isClosed = true
            jobs = []
            pthread_cond_broadcast(wake)
            defer { self.threads = [] }
            return self.threads
        }
        for thread in threads { thread.join() }
    }

    private func run() {
        while var job = next() {
            let result = job.vectors.withUnsafeMutableBufferPointer { vectors -> Int32 in
                if let base = vectors.baseAddress { return disk.perform(job.operation, base, vectors.count) }
                var none = iovec()
                return disk.perform(job.operation, &none, 0)
            }
            locked {
                ended.append((job.tag, result))
                finished.signal()
            }
        }
    }
    private func next() -> Job? {
        locked {
            idle += 1
            defer { idle -= 1 }
            while jobs.isEmpty, !isClosed { pthread_cond_wait(wake, mutex) }
            return isClosed ? nil : jobs.removeFirst()
        }
    }
}
