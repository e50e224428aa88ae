import DiskStorage
import FileServer
import Foundation
import Monitor
import VirtioDevices

/// A virtual machine. It belongs to one serial queue for life: every call, and every property but `queue`, is for that
/// queue; completion handlers and delegate calls come on it.
open class VZVirtualMachine: NSObject {
    /// The queue of this machine; may be read on any thread.
    public nonisolated let queue: DispatchQueue
    open weak var delegate: (any VZVirtualMachineDelegate)?

    private let configuration: VZVirtualMachineConfiguration
    private var machine: Machine?
    private var descriptors: DescriptorSet?
    private var currentState = State.stopped
    private var observers: [Int: (changed: (VZVirtualMachine) -> Void, ended: (() -> Void)?)] = [:]
    private var nextObserver = 0
    private let consoles: [VZVirtioConsoleDevice]
    private let networks: [VZNetworkDevice]
    private let balloons: [VZVirtioTraditionalMemoryBalloonDevice]
    private var sockets: [VZVirtioSocketDevice] = []
    private let fileSystems: [VZVirtioFileSystemDevice]
    var restarted: (() -> Void)?
    /// A stop in flight: what the machine reports meanwhile is no news.
    private var runIdentifier = 0

    /// A machine on the main queue. The configuration must be valid.
    public convenience init(configuration: VZVirtualMachineConfiguration) { self.init(configuration: configuration, queue: .main) }

    /// A machine on a serial queue. The configuration must be valid; it is copied.
    public init(configuration: VZVirtualMachineConfiguration, queue: DispatchQueue) {
        self.queue = queue
        self.configuration = configuration.copy() as? VZVirtualMachineConfiguration ?? configuration
        consoles = self.configuration.consoleDevices.compactMap { $0 as? VZVirtioConsoleDeviceConfiguration }.map { device in
            VZVirtioConsoleDevice(
                ports: VZVirtioConsolePortArray(
                    ports: device.ports.ports.mapValues { VZVirtioConsolePort(name: $0.name, attachment: $0.attachment) },
                    maximumPortCount: device.ports.maximumPortCount))
        }
        let memorySize = self.configuration.memorySize
        balloons = self.configuration.memoryBalloonDevices.map { _ in VZVirtioTraditionalMemoryBalloonDevice(memorySize: memorySize, queue: queue) }
        fileSystems = self.configuration.directorySharingDevices.compactMap { $0 as? VZVirtioFileSystemDeviceConfiguration }.map {
            VZVirtioFileSystemDevice(tag: $0.tag, share: $0.share, mapsFiles: $0.mapsFiles)
        }
        networks = self.configuration.networkDevices.map { VZNetworkDevice(attachment: $0.attachment) }
        super.init()
        queue.setSpecific(key: Self.queueKey, value: ObjectIdentifier(queue))
        sockets = self.configuration.socketDevices.map { _ in
            VZVirtioSocketDevice(queue: queue) { member in
                precondition(Self.isOn(queue), "\(member) must be used on the virtual machine's queue")
            }
        }
    }
    deinit {
        if let machine {
            // Disks and descriptors stay claimed until nothing of the machine runs any more.
            let held = Unchecked((attachments: configuration.diskAttachments, descriptors: descriptors))
            machine.stop {
                withExtendedLifetime(held.value.descriptors) { for attachment in held.value.attachments { attachment.release() } }
            }
        }
        for observer in observers.values { observer.ended?() }
    }

    /// Whether machines can run here; always, on the software engine if not on KVM.
    open class var isSupported: Bool { true }

    // MARK: queue rule

    private static let queueKey = DispatchSpecificKey<ObjectIdentifier>()
    private var isOnQueue: Bool { Self.isOn(queue) }
    private static func isOn(_ queue: DispatchQueue) -> Bool {
        if DispatchQueue.getSpecific(key: queueKey) == ObjectIdentifier(queue) { return true }
        return queue === DispatchQueue.main && Thread.isMainThread
    }
    private func checkQueue(_ member: StaticString = #function) {
        precondition(isOnQueue, "VZVirtualMachine.\(member) must be used on the virtual machine's queue")
    }

    // MARK: state

    open var state: State {
        checkQueue()
        return currentState
    }
    open var canStart: Bool { state == .stopped || state == .error }
    open var canStop: Bool { state == .running || state == .paused }
    open var canPause: Bool { state == .running }
    open var canResume: Bool { state == .paused }
    open var canRequestStop: Bool { state == .running }

    private func enter(_ state: State) {
        currentState = state
        for observer in observers.values { observer.changed(self) }
    }
    private func transitionError(to target: State) -> VZError {
        VZError(
            .invalidVirtualMachineStateTransition,
            reason: "Transition from state \"\(currentState.name)\" to state \"\(target.name)\" is invalid.")
    }
    func addStateObserver(_ changed: @escaping (VZVirtualMachine) -> Void, ended: (() -> Void)? = nil) -> Int {
        nextObserver += 1
        observers[nextObserver] = (changed, ended)
        return nextObserver
    }
    func removeStateObserver(_ identifier: Int) { observers[identifier] = nil }

    // MARK: devices

    open var consoleDevices: [VZConsoleDevice] {
        checkQueue()
        return consoles
    }
    open var directorySharingDevices: [VZDirectorySharingDevice] {
        checkQueue()
        return fileSystems
    }
    open var memoryBalloonDevices: [VZMemoryBalloonDevice] {
        checkQueue()
        return balloons
    }
    open var networkDevices: [VZNetworkDevice] {
        checkQueue()
        return networks
    }
    open var socketDevices: [VZSocketDevice] {
        checkQueue()
        return sockets
    }

    // MARK: start

    /// Powers the machine on, from `.stopped` or `.error`. The handler comes once, on the queue.
    open func start(completionHandler: @escaping (Result<Void, any Error>) -> Void) {
        checkQueue()
        guard canStart else {
            let error = transitionError(to: .starting)
            return later { completionHandler(.failure(error)) }
        }
        enter(.starting)
        runIdentifier += 1
        let run = runIdentifier
        let handler = Unchecked(completionHandler)
        let this = WeakMachine(self)
        do {
            let machine = try makeMachine(run)
            self.machine = machine
            machine.start { error in
                this.queue?.async {
                    guard let vm = this.value, vm.runIdentifier == run else {
                        let lost = VZError(.internalError, reason: "The virtual machine failed to start.")
                        return handler.value(.failure(error ?? lost))
                    }
                    vm.started(error, handler.value)
                }
            }
        } catch {
            let this = WeakMachine(self)
            let failure = Unchecked(error)
            queue.async { this.value?.started(failure.value, handler.value) }
        }
    }
    private func makeMachine(_ run: Int) throws -> Machine {
        try configuration.validate()
        let engine = try configuration.chosenEngine.select()
        let descriptors = DescriptorSet()
        for network in networks {
            try network.attachment?.validate()
            network.backend = try network.attachment?.makeBackend()
        }
        var description = try configuration.machineDescription(descriptors, networks.map(\.backend), queue)
        description.balloonPages = balloons.first?.pages ?? 0
        description.sockets = sockets.first?.host
        for device in fileSystems {
            let server = try FileServer(device.share?.translated() ?? .empty)
            device.server = server
            description.fileSystems.append(.init(tag: device.tag, server: server, mapsFiles: device.mapsFiles))
        }
        let this = WeakMachine(self)
        let machine = try Machine(description, engine: engine) { event in
            this.queue?.async { this.value?.received(event, run) }
        }
        try claimDisks()
        self.descriptors = descriptors
        connectPorts(machine)
        connectNetworks(machine)
        connectBalloon(machine)
        return machine
    }
    private func claimDisks() throws {
        var claimed: [VZStorageDeviceAttachment] = []
        do {
            for attachment in configuration.diskAttachments {
                try attachment.claim()
                claimed.append(attachment)
            }
        } catch {
            for attachment in claimed { attachment.release() }
            throw error
        }
    }
    private func started(_ error: (any Error)?, _ handler: (Result<Void, any Error>) -> Void) {
        guard let error else {
            if currentState == .starting { enter(.running) }
            return handler(.success(()))
        }
        tearDown()
        enter(.stopped)
        if error is VZError { return handler(.failure(error)) }
        if let error = error as? NBDError { return handler(.failure(VZError(.networkBlockDeviceNegotiationFailed, error))) }
        handler(.failure(VZError(.internalError, reason: "The virtual machine failed to start. \(error).", underlying: error)))
    }
    private func tearDown() {
        if machine != nil { for attachment in configuration.diskAttachments { attachment.release() } }
        machine = nil
        descriptors = nil
        for network in networks { network.backend = nil }
        for device in fileSystems { device.server = nil }
    }

    /// As `start(completionHandler:)`; for Linux guests there are no options.
    open func start(options: VZVirtualMachineStartOptions, completionHandler: @escaping ((any Error)?) -> Void) {
        start { result in
            if case .failure(let error) = result { completionHandler(error) } else { completionHandler(nil) }
        }
    }

    // MARK: save and restore

    /// `VZVirtualMachine+SavedState.swift` and `Extensions/SaveProgress.swift` have the public forms.
    func saveMachineState(to url: URL, progress: ((Double) -> Void)?, _ completionHandler: @escaping ((any Error)?) -> Void) {
        checkQueue()
        let handler = Unchecked(completionHandler)
        guard currentState == .paused, let machine else {
            let error = VZError(.invalidVirtualMachineState, reason: "The virtual machine is \(currentState.name), not paused.")
            return later { completionHandler(error) }
        }
        guard url.isFileURL else {
            let error = VZError(.save, reason: "\(url) is not a file URL.")
            return later { completionHandler(error) }
        }
        enter(.saving)
        let this = WeakMachine(self)
        let told = Unchecked(progress)
        let run = runIdentifier
        machine.save(
            to: url.path, owner: [SavedDescription.machineIdentifier: identifier], encode: SavedDescription.encode,
            progress: { part in this.queue?.async { told.value?(part) } }
        ) { error in
            this.queue?.async {
                if let vm = this.value, vm.runIdentifier == run, vm.currentState == .saving { vm.enter(.paused) }
                handler.value(error.map { VZError.state(.save, url, $0) })
            }
        }
    }
    /// `Extensions/LiveSnapshot.swift` has the public form.
    func saveSnapshot(to url: URL, disks: [URL], _ progress: @escaping (Double) -> Void, _ completionHandler: @escaping (Result<TimeInterval, any Error>) -> Void) {
        checkQueue()
        guard currentState == .running || currentState == .paused, let machine else {
            let error = VZError(.invalidVirtualMachineState, reason: "The virtual machine is \(currentState.name), neither running nor paused.")
            return later { completionHandler(.failure(error)) }
        }
        let handler = Unchecked(completionHandler)
        let told = Unchecked(progress)
        let queue = Unchecked(queue)
        machine.snapshot(
            to: url.path, disks: disks.map(\.path), owner: [SavedDescription.machineIdentifier: identifier], encode: SavedDescription.encode,
            progress: { part in queue.value.async { told.value(part) } }
        ) { result in
            queue.value.async { handler.value(result.map { TimeInterval($0) / 1e9 }.mapError { VZError.state(.save, url, $0) }) }
        }
    }
    private var identifier: [UInt8] { [UInt8]((configuration.platform as? VZGenericPlatformConfiguration)?.machineIdentifier.dataRepresentation ?? Data()) }

    func restoreMachineState(from url: URL, _ completionHandler: @escaping ((any Error)?) -> Void) {
        checkQueue()
        guard currentState == .stopped else {
            let error = transitionError(to: .restoring)
            return later { completionHandler(error) }
        }
        enter(.restoring)
        runIdentifier += 1
        let run = runIdentifier
        let handler = Unchecked(completionHandler)
        let this = WeakMachine(self)
        @Sendable func finished(_ error: (any Error)?) {
            this.queue?.async {
                guard let vm = this.value, vm.runIdentifier == run else {
                    return handler.value(error ?? VZError(.restore, reason: "The virtual machine is gone."))
                }
                guard let error else {
                    if vm.currentState == .restoring { vm.enter(.paused) }
                    return handler.value(nil)
                }
                vm.tearDown()
                vm.enter(.stopped)
                handler.value(VZError.state(.restore, url, error))
            }
        }
        do {
            let file = try SavedStateFile.Opened(path: url.path)
            let state = try SavedDescription.decode(file.description)
            try check(state, file)
            try configuration.validateSaveRestoreSupport()
            let machine = try makeMachine(run)
            self.machine = machine
            machine.restore(file, state) { finished($0) }
        } catch { finished(error) }
    }
    private func check(_ state: MachineState, _ file: SavedStateFile.Opened) throws {
        guard state.memorySize == configuration.memorySize, file.memoryCount == state.memorySize else {
            throw SavedStateError(.mismatch, "the saved machine has \(state.memorySize >> 20) MiB of memory, this one has \(configuration.memorySize >> 20) MiB")
        }
        guard state.machine.processors.count == configuration.cpuCount else {
            throw SavedStateError(.mismatch, "the saved machine has \(state.machine.processors.count) processors, this one has \(configuration.cpuCount)")
        }
        guard state.owner[SavedDescription.machineIdentifier] == identifier else {
            throw SavedStateError(.mismatch, "the saved machine has another machine identifier")
        }
    }

    // MARK: stop, pause, resume

    /// Switches the machine off, from `.running` or `.paused`; the guest gets no warning and the delegate no call.
    open func stop(completionHandler: @escaping ((any Error)?) -> Void) {
        checkQueue()
        guard canStop, let machine else {
            let error = transitionError(to: .stopping)
            return later { completionHandler(error) }
        }
        enter(.stopping)
        runIdentifier += 1
        let handler = Unchecked(completionHandler)
        let this = WeakMachine(self)
        machine.stop {
            this.queue?.async {
                this.value?.tearDown()
                this.value?.enter(.stopped)
                handler.value(nil)
            }
        }
    }

    open func pause(completionHandler: @escaping (Result<Void, any Error>) -> Void) {
        checkQueue()
        guard canPause, let machine else {
            let error = transitionError(to: .pausing)
            return later { completionHandler(.failure(error)) }
        }
        enter(.pausing)
        change(machine.pause, from: .pausing, to: .paused, completionHandler)
    }
    open func resume(completionHandler: @escaping (Result<Void, any Error>) -> Void) {
        checkQueue()
        guard canResume, let machine else {
            let error = transitionError(to: .resuming)
            return later { completionHandler(.failure(error)) }
        }
        enter(.resuming)
        change(machine.resume, from: .resuming, to: .running, completionHandler)
    }
    private func change(
        _ operation: (@escaping @Sendable () -> Void) -> Void, from transient: State, to target: State,
        _ completionHandler: @escaping (Result<Void, any Error>) -> Void
    ) {
        let handler = Unchecked(completionHandler)
        let this = WeakMachine(self)
        operation {
            this.queue?.async {
                guard let vm = this.value, vm.currentState == transient else {
                    let state = this.value?.currentState ?? .stopped
                    let error = VZError(
                        .invalidVirtualMachineStateTransition,
                        reason: "Transition from state \"\(state.name)\" to state \"\(target.name)\" is invalid.")
                    return handler.value(.failure(error))
                }
                vm.enter(target)
                handler.value(.success(()))
            }
        }
    }

    /// Presses the power button and returns; the guest may take its time or ignore it. `guestDidStop` tells when it is off.
    open func requestStop() throws {
        checkQueue()
        guard canRequestStop, machine?.pressPowerButton() == true else {
            throw VZError(.invalidVirtualMachineState, reason: "The virtual machine is \(currentState.name), not running.")
        }
    }

    // MARK: events

    private func received(_ event: Machine.Event, _ run: Int) {
        guard run == runIdentifier else { return }
        switch event {
        case .guestStopped:
            tearDown()
            enter(.stopped)
            delegate?.guestDidStop(self)
        case .guestRestarted: restarted?()
        case .failed(let reason):
            tearDown()
            enter(.error)
            let error = VZError(.internalError, reason: "The virtual machine stopped unexpectedly: \(reason).")
            delegate?.virtualMachine(self, didStopWithError: error)
        case .networkFailed(let index, let backend, let reason):
            // Another attachment may have been set since.
            if networks.indices.contains(index), networks[index].backend === backend { disconnected(networks[index], reason) }
        case .portChanged(let console, let port, let isOpen):
            let index = console - configuration.serialPorts.count
            guard consoles.indices.contains(index), let object = consoles[index].ports[port] else { return }
            if isOpen {
                consoles[index].delegate?.consoleDevice(consoles[index], didOpen: object)
            } else {
                consoles[index].delegate?.consoleDevice(consoles[index], didClose: object)
            }
        }
    }
    private func connectPorts(_ machine: Machine) {
        let firstConsole = configuration.serialPorts.count
        for (index, console) in consoles.enumerated() {
            for (number, port) in console.ports.ports {
                port.changed = { [weak machine, weak descriptors] attachment in
                    guard let descriptors, let endpoint = try? attachment?.makeEndpoint() ?? (-1, -1) else { return }
                    machine?.replaceEndpoint(console: firstConsole + index, port: number, descriptors.keep(endpoint))
                }
            }
        }
    }

    private func connectBalloon(_ machine: Machine) {
        balloons.first?.changed = { [weak machine] in machine?.setBalloon(pages: $0) }
        balloons.first?.readsStatistics = { [weak machine] done in
            if let machine { machine.readMemoryStatistics(done) } else { done(nil) }
        }
    }
    private func connectNetworks(_ machine: Machine) {
        for (index, network) in networks.enumerated() {
            network.changed = { [weak self, weak machine, weak network] attachment in
                guard let machine, let network else { return }
                do {
                    try attachment?.validate()
                    network.backend = try attachment?.makeBackend()
                } catch {
                    self?.disconnected(network, error.localizedDescription)
                }
                machine.connectNetwork(index, network.backend)
            }
        }
    }
    private func disconnected(_ network: VZNetworkDevice, _ reason: String) {
        network.forget()
        let error = VZError(.internalError, reason: "The network device was disconnected: \(reason)")
        later { self.delegate?.virtualMachine(self, networkDevice: network, attachmentWasDisconnectedWithError: error) }
    }

    private func later(_ body: @escaping () -> Void) {
        let body = Unchecked(body)
        queue.async { body.value() }
    }
    /// Runs on the queue: at once when already there.
    func onQueue(_ body: @escaping () -> Void) {
        if isOnQueue { body() } else { later(body) }
    }
    /// Size of the terminal behind hvc0 (Extensions/TerminalSize.swift).
    func resizeFirstConsole(columns: UInt16, rows: UInt16) { machine?.resizeConsole(0, columns: columns, rows: rows) }
}

// MARK: async forms

extension VZVirtualMachine {
    public nonisolated(nonsending) func start() async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            onQueue { self.start { continuation.resume(with: $0) } }
        }
    }
    public nonisolated(nonsending) func start(options: VZVirtualMachineStartOptions) async throws { try await start() }
    public nonisolated(nonsending) func stop() async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            onQueue {
                self.stop { error in
                    if let error { continuation.resume(throwing: error) } else { continuation.resume() }
                }
            }
        }
    }
    public nonisolated(nonsending) func pause() async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            onQueue { self.pause { continuation.resume(with: $0) } }
        }
    }
    public nonisolated(nonsending) func resume() async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            onQueue { self.resume { continuation.resume(with: $0) } }
        }
    }
}

/// Carries what belongs to the machine's queue through a thread that does not touch it.
struct Unchecked<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
}
/// A machine that is only looked at on its queue.
final class WeakMachine: @unchecked Sendable {
    private(set) weak var value: VZVirtualMachine?
    /// Outlives the machine, so that completion handlers still have a place to run.
    let queue: DispatchQueue?
    init(_ machine: VZVirtualMachine) {
        value = machine
        queue = machine.queue
    }
}
