import Glibc
import GuestBoot
import HostNetwork
import Hypervisor
import LinuxSystem
import PlatformDevices
import Synchronization
import VirtioDevices

/// A virtual machine: its life from power-on to power-off, on threads of its own. Any thread may call it.
///
/// A control thread owns the board. Commands (pause, resume, stop) and what happens in the guest (power-off, reset, triple
/// fault) come to it as messages and are dealt with one after the other.
package final class Machine: Sendable {
    /// What the owner is told, on the control thread.
    package enum Event: Sendable {
        /// The guest powered itself off; the machine is stopped.
        case guestStopped
        /// The guest restarted the machine, which goes on.
        case guestRestarted
        /// The machine died; it is stopped.
        case failed(String)
        /// The guest opened or closed a console port: console, port, open.
        case portChanged(console: Int, port: Int, isOpen: Bool)
        /// The host's side of a network device failed; its cable is out.
        case networkFailed(network: Int, any NetworkBackend, String)
    }
    enum Message: Sendable {
        case stop(@Sendable () -> Void)
        case pause(@Sendable () -> Void)
        case resume(@Sendable () -> Void)
        case save(SaveRequest)
        case freeze(FreezeRequest)
        case settle
        case platform(PlatformRequest)
        case exited(VCPUExit)
    }
    /// Where a paused machine is to be saved, and who is told.
    struct SaveRequest: Sendable {
        let path: String
        let owner: [String: [UInt8]]
        let encode: @Sendable (MachineState) throws -> [UInt8]
        let progress: @Sendable (Double) -> Void
        let completion: @Sendable ((any Error)?) -> Void
    }
    /// What a machine begins with instead of a kernel.
    private struct Saved: Sendable {
        let file: SavedStateFile.Opened
        let state: MachineState
    }
    struct Shared {
        /// As the machine would be powered on now: with what was changed while it ran.
        var description: MachineDescription
        var messages: [Message] = []
        var board: Board?
        var isAlive = false
        /// One snapshot at a time.
        var isTakingSnapshot = false
    }
    /// How the vCPU threads are told to hold or to end.
    final class Gate: Sendable {
        private struct State {
            var holding = false
            var ending = false
            var held = 0
        }
        private let state = Mutex(State())
        private let released: EventFD
        init() throws(SystemError) { released = try EventFD() }
        enum Order: Sendable { case go, hold, end }
        var order: Order { state.withLock { $0.ending ? .end : ($0.holding ? .hold : .go) } }
        func hold() { state.withLock { $0.holding = true } }
        func release() { state.withLock { $0.holding = false } }
        func end() { state.withLock { $0.ending = true } }
        func enterHold() { state.withLock { $0.held += 1 } }
        func leaveHold() { state.withLock { $0.held -= 1 } }
        var heldCount: Int { state.withLock { $0.held } }
    }

    private let engine: any HypervisorEngine
    let shared: Mutex<Shared>
    private let wake: EventFD
    private let events: @Sendable (Event) -> Void
    private let debugMark: (@Sendable (UInt8) -> Void)?

    package init(
        _ description: MachineDescription, engine: any HypervisorEngine, debugMark: (@Sendable (UInt8) -> Void)? = nil,
        events: @escaping @Sendable (Event) -> Void
    ) throws {
        shared = Mutex(Shared(description: description))
        self.engine = engine
        self.events = events
        self.debugMark = debugMark
        wake = try EventFD()
    }
    deinit {
        // The control thread holds self while the machine lives, so nothing is left here.
    }

    // MARK: commands

    /// Powers on: loads the kernel and starts the vCPUs. `completion` is called once, with nil when the guest runs.
    package func start(_ completion: @escaping @Sendable ((any Error)?) -> Void) { launch(nil, completion) }
    /// Goes on where a saved machine was, paused. `completion` is called once, with nil when the machine can be resumed.
    package func restore(_ file: SavedStateFile.Opened, _ state: MachineState, _ completion: @escaping @Sendable ((any Error)?) -> Void) {
        launch(Saved(file: file, state: state), completion)
    }
    private func launch(_ saved: Saved?, _ completion: @escaping @Sendable ((any Error)?) -> Void) {
        do throws(SystemError) {
            shared.withLock { $0.isAlive = true }
            _ = try HostThread(name: "vz-machine") { [self] in control(saved, completion) }
        } catch {
            shared.withLock { $0.isAlive = false }
            completion(error)
        }
    }
    /// Switches off, whatever the guest does. `completion` is called when nothing of the machine runs any more.
    package func stop(_ completion: @escaping @Sendable () -> Void) { post(.stop(completion)) }
    package func pause(_ completion: @escaping @Sendable () -> Void) { post(.pause(completion)) }
    package func resume(_ completion: @escaping @Sendable () -> Void) { post(.resume(completion)) }
    /// Saves the paused machine, which stays paused.
    /// - Parameters:
    ///   - owner: what the owner wants to find in the state again.
    ///   - encode: makes the description's bytes.
    ///   - progress: from 0 to 1, on the machine's thread.
    package func save(
        to path: String, owner: [String: [UInt8]], encode: @escaping @Sendable (MachineState) throws -> [UInt8],
        progress: @escaping @Sendable (Double) -> Void, _ completion: @escaping @Sendable ((any Error)?) -> Void
    ) { post(.save(SaveRequest(path: path, owner: owner, encode: encode, progress: progress, completion: completion))) }
    /// Presses the power button; false when the machine is not on.
    package func pressPowerButton() -> Bool {
        guard let board = shared.withLock({ $0.board }) else { return false }
        board.pressPowerButton()
        return true
    }
    package func resizeConsole(_ console: Int, columns: UInt16, rows: UInt16) {
        guard let board = shared.withLock({ $0.board }), console < board.consoles.count else { return }
        board.consoles[console].resize(columns: columns, rows: rows)
    }
    package func replaceEndpoint(console: Int, port: Int, _ endpoint: ConsoleEndpoint) {
        let board = shared.withLock { shared in
            if console < shared.description.consoles.count { shared.description.consoles[console].ports[port]?.endpoint = endpoint }
            return shared.board
        }
        guard let board, console < board.consoles.count else { return }
        board.consoles[console].replace(port: port, endpoint)
    }
    /// How many pages of 4 KiB the guest is to give back.
    package func setBalloon(pages: UInt32) {
        let board = shared.withLock { shared in
            shared.description.balloonPages = pages
            return shared.board
        }
        board?.balloon.setTarget(pages: pages)
    }
    /// What the guest says of its memory; see `BalloonDevice.readStatistics`.
    package func readMemoryStatistics(_ done: @escaping @Sendable (GuestMemoryStatistics?) -> Void) {
        guard let board = shared.withLock({ $0.board }) else { return done(nil) }
        board.balloon.readStatistics(done)
    }
    package func connectNetwork(_ network: Int, _ backend: (any NetworkBackend)?) {
        let board = shared.withLock { shared in
            if network < shared.description.networks.count { shared.description.networks[network].backend = backend }
            return shared.board
        }
        guard let board, network < board.networks.count else { return }
        board.networks[network].connect(backend)
    }
    private func lostNetwork(_ network: Int, _ backend: any NetworkBackend, _ reason: String) {
        shared.withLock { shared in
            if shared.description.networks[network].backend === backend { shared.description.networks[network].backend = nil }
        }
        events(.networkFailed(network: network, backend, reason))
    }

    func post(_ message: Message) {
        let alive = shared.withLock { shared -> Bool in
            if shared.isAlive { shared.messages.append(message) }
            return shared.isAlive
        }
        if alive {
            wake.signal()
            return
        }
        Self.answer(message)
    }
    /// To a machine that is off.
    private static func answer(_ message: Message) {
        switch message {
        case .stop(let completion), .pause(let completion), .resume(let completion): completion()
        case .save(let request): request.completion(SavedStateError(.system, "the machine has stopped"))
        case .freeze(let request): request.answer(.failure(SavedStateError(.system, "the machine has stopped")))
        case .platform, .exited, .settle: break
        }
    }

    // MARK: control thread

    private enum Ending { case stopped(@Sendable () -> Void), poweredOff, reset, failed(String) }

    private func control(_ saved: Saved?, _ completion: @escaping @Sendable ((any Error)?) -> Void) {
        var started = false
        var saved = saved
        var ending = Ending.reset
        do {
            for disk in shared.withLock({ $0.description.disks }) { try disk.storage.prepare() }
            while case .reset = ending {
                let loop = try EventLoop(name: "vz-events")
                defer { loop.stop() }
                ending = try powerOn(loop, saved) {
                    if !started { completion(nil) }
                    started = true
                }
                saved = nil
                if case .reset = ending { events(.guestRestarted) }
            }
        } catch {
            finish()
            if started { events(.failed("\(error)")) } else { completion(error) }
            return
        }
        let leftovers = finish()
        switch ending {
        case .stopped(let stopped): stopped()
        case .poweredOff: events(.guestStopped)
        case .failed(let reason): events(.failed(reason))
        case .reset: break
        }
        for message in leftovers { Self.answer(message) }
    }
    @discardableResult private func finish() -> [Message] {
        for disk in shared.withLock({ $0.description.disks }) { disk.storage.finish() }
        return shared.withLock { shared in
            shared.isAlive = false
            shared.board = nil
            defer { shared.messages = [] }
            return shared.messages
        }
    }

    private func powerOn(_ loop: EventLoop, _ saved: Saved?, _ running: () -> Void) throws -> Ending {
        let description = shared.withLock { $0.description }
        let board = try Board(
            description, saved: saved?.file, mapsFiles: saved?.state.mapsFiles ?? false, engine: engine, loop: loop, request: { [weak self] in self?.post(.platform($0)) },
            portChanged: { [weak self] in self?.events(.portChanged(console: $0, port: $1, isOpen: $2)) },
            networkFailed: { [weak self] in self?.lostNetwork($0, $1, $2) }, debugMark: debugMark)
        let vcpus = board.machine.vcpus
        let gate = try Gate()
        if let saved {
            gate.hold()
            do { try board.restore(saved.state) } catch {
                board.shutDown()
                throw error
            }
        } else {
            try vcpus[0].setState(try loadGuest(description, into: board))
        }
        var threads: [HostThread] = []
        for vcpu in vcpus {
            threads.append(
                try HostThread(name: "vz-vcpu-\(vcpu.index)") { [weak self] in Self.runLoop(vcpu, gate) { self?.post(.exited($0)) } })
        }
        // A thread that cannot be made must not keep the guest from running.
        let check = try? saved.map { try MemoryCheck($0.file) { [weak self] in self?.post(.exited(.internalError($0))) } }
        defer { check?.cancel() }
        shared.withLock { $0.board = board }
        running()
        let ending = serveMessages(board, gate)
        shared.withLock { $0.board = nil }
        gate.end()
        for vcpu in vcpus { vcpu.cancel() }
        for thread in threads { thread.join() }
        board.shutDown()
        return ending
    }

    /// In a function of its own, so that the files' bytes are gone when the guest runs.
    private func loadGuest(_ description: MachineDescription, into board: Board) throws -> VCPUState {
        let image: KernelImage
        do throws(KernelError) { image = try KernelImage(try readKernel(description), cache: .standard) } catch {
            throw KernelError("cannot start the kernel \(description.kernelPath): \(error)")
        }
        let ramdisk = try description.initialRamdiskPath.map { try loadFile($0, what: "initial RAM disk") }
        let loader = LinuxLoader(kernel: image, initialRamdisk: ramdisk, commandLine: description.commandLine)
        let start = try loader.load(into: board.memory, cpuCount: description.cpuCount)
        try board.writeGenerationID()
        return start
    }
    private func readKernel(_ description: MachineDescription) throws(KernelError) -> [UInt8] {
        do { return try loadFile(description.kernelPath, what: "kernel") } catch { throw KernelError("\(error)") }
    }

    private func loadFile(_ path: String, what: String) throws -> [UInt8] {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw SystemError("cannot open the \(what) \(path)") }
        defer { close(fd) }
        var info = stat()
        guard fstat(fd, &info) == 0 else { throw SystemError("cannot examine the \(what) \(path)") }
        guard info.st_mode & S_IFMT == S_IFREG else { throw KernelError("the \(what) \(path) is not a regular file") }
        var failure: SystemError?
        let bytes = [UInt8](unsafeUninitializedCapacity: Int(info.st_size)) { buffer, count in
            while count < buffer.count, let base = buffer.baseAddress {
                let done = read(fd, base + count, buffer.count - count)
                if done < 0, errno == EINTR { continue }
                if done < 0 { failure = SystemError("cannot read the \(what) \(path)") }
                if done <= 0 { break }
                count += done
            }
        }
        if let failure { throw failure }
        return bytes
    }

    private static func runLoop(_ vcpu: any VirtualCPU, _ gate: Gate, _ exited: (VCPUExit) -> Void) {
        while true {
            switch gate.order {
            case .end: return
            case .hold:
                gate.enterHold()
                while gate.order == .hold { usleep(500) }
                gate.leaveHold()
                continue
            case .go: break
            }
            switch vcpu.run() {
            case .cancelled: continue
            case let exit:
                exited(exit)
                // Dead until the control thread ends the board.
                while gate.order != .end { usleep(1000) }
                return
            }
        }
    }

    private func serveMessages(_ board: Board, _ gate: Gate) -> Ending {
        let vcpus = board.machine.vcpus
        while true {
            wake.wait()
            while let message = shared.withLock({ $0.messages.isEmpty ? nil : $0.messages.removeFirst() }) {
                switch message {
                case .stop(let completion): return .stopped(completion)
                case .platform(.powerOff): return .poweredOff
                case .platform(.reset): return .reset
                case .exited(.shutdown): return .failed("the guest's processor stopped with a triple fault")
                case .exited(.internalError(let reason)): return .failed(reason)
                case .exited(.cancelled): break
                case .pause(let completion):
                    gate.hold()
                    for vcpu in vcpus { vcpu.cancel() }
                    while gate.heldCount < vcpus.count, !hasUrgentMessage { usleep(200) }
                    completion()
                case .resume(let completion):
                    gate.release()
                    completion()
                case .save(let request):
                    do {
                        try save(board, gate, request)
                        request.completion(nil)
                    } catch { request.completion(error) }
                case .freeze(let request): freeze(board, gate, request)
                case .settle: settle(board, gate)
                }
            }
        }
    }
    private func save(_ board: Board, _ gate: Gate, _ request: SaveRequest) throws {
        guard gate.order == .hold else { throw SavedStateError(.system, "the machine is not paused") }
        try whileQuiet(board, gate) {
            let state = try board.makeState(owner: request.owner)
            try SavedStateFile.write(
                to: request.path, description: try request.encode(state), memory: board.memory.contents, used: board.memory.usedRanges, progress: request.progress)
        }
    }
    /// Runs `body` while no processor, no device and no event is at work; afterwards the machine is held if it was before.
    func whileQuiet<Result>(_ board: Board, _ gate: Gate, _ body: () throws -> Result) throws -> Result {
        let vcpus = board.machine.vcpus
        let wasHeld = gate.order == .hold
        gate.hold()
        defer { if !wasHeld { gate.release() } }
        if !wasHeld { for vcpu in vcpus { vcpu.cancel() } }
        // Those of a machine that was just restored may be on their way.
        for _ in 0..<50_000 where gate.heldCount < vcpus.count && !hasUrgentMessage { usleep(100) }
        guard gate.heldCount == vcpus.count else { throw SavedStateError(.system, "a processor of the machine does not stop") }
        // The event loop waits, and every thread of a device.
        let (reached, go) = (try EventFD(), try EventFD())
        board.loop.async {
            reached.signal()
            go.wait()
        }
        reached.wait()
        defer { go.signal() }
        guard board.gate.close(milliseconds: 10_000) else { throw SavedStateError(.system, "a device does not come to rest; a disk may not be answering") }
        defer { board.gate.open() }
        return try body()
    }
    var hasUrgentMessage: Bool {
        shared.withLock { $0.messages.contains { if case .exited = $0 { return true } else { return false } } }
    }
}
