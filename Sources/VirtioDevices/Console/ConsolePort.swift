import CLinux
import Glibc
import LinuxSystem
import Synchronization

/// The host side of a console port: descriptors to read from and write to, -1 for none. The owner keeps them open.
package struct ConsoleEndpoint: Equatable, Sendable {
    package var input: Int32
    package var output: Int32
    package init(input: Int32, output: Int32) {
        self.input = input
        self.output = output
    }
    package static let disconnected = ConsoleEndpoint(input: -1, output: -1)
}

/// One port of a console device: moves bytes between two virtqueues and two descriptors, on the machine's event loop.
///
/// Output never blocks the loop: a pipe that is writable takes PIPE_BUF bytes at once, and until it is the chain waits.
final class ConsolePort: @unchecked Sendable {  // everything but init on the event loop
    private static let chunk = 4096

    private let loop: EventLoop
    private var endpoint: ConsoleEndpoint
    private var receive: Virtqueue?
    private var transmit: Virtqueue?
    private var needsReset: (@Sendable () -> Void)?
    private let chain = DescriptorChain(capacity: 64)
    private let incoming = DescriptorChain(capacity: 64)
    private var sent = 0
    private var hasOutput = false
    /// Bytes of the next chain that an earlier life has written already.
    var skip = 0
    /// Bytes that are written of the chain that is under way.
    var sentOfPending: Int { hasOutput ? sent : 0 }
    private var buffer = [UInt8](repeating: 0, count: ConsolePort.chunk)
    private var watchesInput = false
    private var watchesOutput = false
    private var inputEnded = false
    /// The guest has the port open (multi-port devices say so); bytes wait until then.
    var isOpen = false { didSet { if isOpen { pumpInput() } } }

    /// Called when the host side of the input has ended.
    var inputFinished: (() -> Void)?

    init(endpoint: ConsoleEndpoint, loop: EventLoop) {
        self.endpoint = endpoint
        self.loop = loop
    }

    func connect(receive: Virtqueue?, transmit: Virtqueue?, needsReset: @escaping @Sendable () -> Void) {
        self.receive = receive
        self.transmit = transmit
        self.needsReset = needsReset
        pumpInput()
        pumpOutput()
    }
    func disconnect() {
        unwatch()
        receive = nil
        transmit = nil
        hasOutput = false
        isOpen = false
    }
    func replace(_ endpoint: ConsoleEndpoint) {
        unwatch()
        self.endpoint = endpoint
        inputEnded = false
        pumpInput()
        pumpOutput()
    }
    private func unwatch() {
        if watchesInput { loop.remove(endpoint.input) }
        if watchesOutput { loop.remove(endpoint.output) }
        watchesInput = false
        watchesOutput = false
    }

    // MARK: host to guest

    func pumpInput() {
        guard let receive, isOpen, endpoint.input >= 0, !inputEnded else { return }
        guard receive.hasAvailable else {
            if watchesInput { stopInput() }
            return
        }
        if !watchesInput, endpoint.input != endpoint.output || !watchesOutput {
            do throws(SystemError) {
                try loop.add(endpoint.input, events: EPOLLIN.rawValue) { [weak self] _ in self?.readInput() }
                watchesInput = true
            } catch {
                // A regular file or /dev/null: always readable. One chunk at a time, between other work.
                if error.errno == EPERM {
                    readInput()
                    if !inputEnded { loop.async { [weak self] in self?.pumpInput() } }
                }
            }
        }
    }
    private func stopInput() {
        loop.remove(endpoint.input)
        watchesInput = false
    }
    private func readInput() {
        guard let receive else { return }
        do throws(QueueError) {
            guard try receive.pop(incoming) else {
                if watchesInput { stopInput() }
                _ = receive.enableNotifications()
                return
            }
        } catch {
            needsReset?()
            return
        }
        let wanted = min(incoming.writableCount, buffer.count)
        let count = wanted == 0 ? 0 : read(endpoint.input, &buffer, wanted)
        if count <= 0, wanted > 0, !(count < 0 && (errno == EAGAIN || errno == EINTR)) {
            inputEnded = true
            if watchesInput { stopInput() }
            inputFinished?()
        }
        if count > 0 { _ = buffer.withUnsafeBytes { incoming.write(at: 0, from: $0.baseAddress ?? UnsafeRawPointer(incoming.writable[0].pointer), count: count) } }
        receive.complete(incoming, written: max(count, 0))
        receive.notify()
        if !receive.hasAvailable { _ = receive.enableNotifications() }
    }

    // MARK: guest to host

    func pumpOutput() {
        guard let transmit else { return }
        do throws(QueueError) {
            while true {
                if !hasOutput {
                    guard try transmit.pop(chain) else {
                        if transmit.enableNotifications() { continue }
                        break
                    }
                    hasOutput = true
                    sent = min(skip, chain.readableCount)
                    skip = 0
                }
                guard writeSome() else { return }
                if sent >= chain.readableCount {
                    hasOutput = false
                    transmit.complete(chain, written: 0)
                    transmit.notify()
                }
            }
            if watchesOutput {
                loop.remove(endpoint.output)
                watchesOutput = false
                pumpInput()
            }
        } catch {
            needsReset?()
        }
    }
    /// Writes up to a chunk; false when the descriptor must become writable first.
    private func writeSome() -> Bool {
        let count = min(chain.readableCount - sent, Self.chunk)
        guard count > 0 else { return true }
        guard endpoint.output >= 0 else {
            sent = chain.readableCount
            return true
        }
        var entry = pollfd(fd: endpoint.output, events: Int16(POLLOUT), revents: 0)
        if poll(&entry, 1, 0) == 0 {
            waitForOutput()
            return false
        }
        let copied = buffer.withUnsafeMutableBytes { raw -> Bool in
            guard let base = raw.baseAddress else { return false }
            return chain.read(at: sent, into: base, count: count)
        }
        guard copied else { return true }
        let done = write(endpoint.output, buffer, count)
        if done < 0 {
            if errno == EAGAIN {
                waitForOutput()
                return false
            }
            if errno == EINTR { return true }
            sent = chain.readableCount  // nobody listens any more: drop, as a serial line does
            return true
        }
        sent += done
        return true
    }
    private func waitForOutput() {
        guard !watchesOutput else { return }
        if watchesInput, endpoint.input == endpoint.output { stopInput() }
        do throws(SystemError) {
            try loop.add(endpoint.output, events: EPOLLOUT.rawValue) { [weak self] _ in self?.pumpOutput() }
            watchesOutput = true
        } catch {
            sent = chain.readableCount
        }
    }
}
