import CLinux
import Glibc
import Synchronization

/// One thread that waits on descriptors (epoll) and runs their handlers, and blocks given to it.
package final class EventLoop: @unchecked Sendable {  // handlers only run on the loop's thread; tables are locked
    private struct State {
        var handlers: [Int32: @Sendable (UInt32) -> Void] = [:]
        var jobs: [@Sendable () -> Void] = []
        var stopped = false
    }
    private let state = Mutex(State())
    private let epoll: Int32
    private let wake: EventFD
    private var thread: HostThread?

    package init(name: String) throws(SystemError) {
        epoll = Int32(try SystemError.check("epoll_create1") { Int(epoll_create1(Int32(EPOLL_CLOEXEC))) })
        do throws(SystemError) { wake = try EventFD() } catch {
            close(epoll)
            throw error
        }
        var event = epoll_event(events: EPOLLIN.rawValue, data: epoll_data(fd: wake.fileDescriptor))
        epoll_ctl(epoll, EPOLL_CTL_ADD, wake.fileDescriptor, &event)
        thread = try HostThread(name: name) { [unowned self] in run() }
    }
    deinit { close(epoll) }

    /// Ends the thread; pending jobs still run. Call before letting go of the loop.
    package func stop() {
        state.withLock { $0.stopped = true }
        wake.signal()
        thread?.join()
        state.withLock {
            $0.handlers = [:]
            $0.jobs = []
        }
    }

    /// Watches a descriptor. Regular files, which epoll refuses, are an error (EPERM).
    package func add(_ fd: Int32, events: UInt32, _ handler: @escaping @Sendable (UInt32) -> Void) throws(SystemError) {
        state.withLock { $0.handlers[fd] = handler }
        var event = epoll_event(events: events, data: epoll_data(fd: fd))
        do throws(SystemError) {
            try SystemError.check("watch descriptor \(fd)") { Int(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) }
        } catch {
            state.withLock { $0.handlers[fd] = nil }
            throw error
        }
    }
    package func modify(_ fd: Int32, events: UInt32) {
        var event = epoll_event(events: events, data: epoll_data(fd: fd))
        epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event)
    }
    package func remove(_ fd: Int32) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nil)
        state.withLock { $0.handlers[fd] = nil }
    }
    /// Runs a block on the loop's thread.
    package func async(_ job: @escaping @Sendable () -> Void) {
        state.withLock { $0.jobs.append(job) }
        wake.signal()
    }
    package var isCurrent: Bool { thread?.isCurrent ?? false }

    private func run() {
        var events = [epoll_event](repeating: epoll_event(), count: 32)
        while true {
            let count = Int(epoll_wait(epoll, &events, Int32(events.count), -1))
            for index in 0..<max(count, 0) {
                let fd = events[index].data.fd
                if fd == wake.fileDescriptor {
                    wake.drain()
                    continue
                }
                let handler = state.withLock { $0.handlers[fd] }
                handler?(events[index].events)
            }
            let (jobs, stopped) = state.withLock { state in
                defer { state.jobs = [] }
                return (state.jobs, state.stopped)
            }
            for job in jobs { job() }
            if stopped { return }
        }
    }
}
