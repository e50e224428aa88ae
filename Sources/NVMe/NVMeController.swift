import DiskStorage
import GuestMemory
import Hypervisor
import LinuxSystem
import PlatformDevices
import Synchronization

/// A disk behind an NVM Express controller on PCI. NVMe 1.4. Any thread.
///
/// BAR 0:  0x0000 registers   0x1000 doorbells   0x4000 MSI-X table   0x4800 pending bits
///
/// Administration is done on the vCPU's thread that asks; each I/O queue has a thread of its own.
package final class NVMeController: PCIBarHandler, Sendable {
    static let vendor: UInt16 = 0x1AF4
    private static let device: UInt16 = 0x11F0
    private static let barSize: UInt64 = 0x8000
    private static let msixTable: UInt64 = 0x4000
    private static let mostEventRequests = 4

    private struct State {
        var configuration: UInt32 = 0
        var status: UInt32 = 0
        var adminSizes: UInt32 = 0
        var adminSubmission: UInt64 = 0
        var adminCompletion: UInt64 = 0
        var completions: [Int: CompletionQueue] = [:]
        var submissions: [Int: SubmissionQueue] = [:]
        var workers: [Int: CommandWorker] = [:]
        var shadows: ShadowDoorbells?
        var features: [UInt8: UInt32] = [NVMe.Feature.writeCache: 1]
        var eventRequests = 0
    }
    package let function: PCIFunction
    private let backend: any BlockBackend
    private let memory: GuestMemory
    private let gate: DeviceGate
    private let identification: Identification
    private let queuePairs: Int
    private let state = Mutex(State())
    /// One administration command, or reset, at a time.
    private let administration = Mutex(())

    /// - Parameters:
    ///   - serial: at most 20 ASCII bytes.
    ///   - queuePairs: for I/O; a driver uses one a processor.
    package init(backend: any BlockBackend, serial: String, queuePairs: Int, memory: GuestMemory, machine: any HypervisorMachine, gate: DeviceGate) {
        self.backend = backend
        self.memory = memory
        self.gate = gate
        self.queuePairs = queuePairs
        identification = Identification(backend, serial: serial)
        function = PCIFunction(
            vendor: Self.vendor, device: Self.device, classCode: 0x010802, revision: 1, subsystemVendor: Self.vendor, subsystem: Self.device,
            barSize: Self.barSize, msixVectors: queuePairs + 1, msixTableOffset: UInt32(Self.msixTable), sink: MSIXSink(machine))
        function.bar = self
    }

    // MARK: registers

    /// § 3.1.1: queues of up to 1024 entries, contiguous; ten seconds to become ready; the NVM command set.
    private var capabilities: UInt64 { UInt64(NVMe.mostEntries - 1) | 1 << 16 | 20 << 24 | 1 << 37 }

    package func barRead(_ offset: UInt64, size: Int) -> UInt64 {
        if offset >= Self.msixTable { return msixRead(offset - Self.msixTable, size: size) }
        guard size == 4 || size == 8 else { return 0 }
        let (low, high) = (register(offset & ~3), size == 8 ? register((offset & ~3) + 4) : 0)
        return UInt64(low) | UInt64(high) << 32
    }
    private func msixRead(_ offset: UInt64, size: Int) -> UInt64 {
        if offset < 0x800 { return function.msix?.tableRead(Int(offset), size: size) ?? 0 }
        return function.msix?.pendingRead(Int(offset - 0x800)) ?? 0
    }
    private func register(_ offset: UInt64) -> UInt32 {
        let state = state.withLock { ($0.configuration, $0.status, $0.adminSizes, $0.adminSubmission, $0.adminCompletion) }
        switch offset {
        case NVMe.Register.capabilities: return UInt32(truncatingIfNeeded: capabilities)
        case NVMe.Register.capabilities + 4: return UInt32(capabilities >> 32)
        case NVMe.Register.version: return 0x0001_0400
        case NVMe.Register.configuration: return state.0
        case NVMe.Register.status: return state.1
        case NVMe.Register.adminQueueSizes: return state.2
        case NVMe.Register.adminSubmissionQueue: return UInt32(truncatingIfNeeded: state.3)
        case NVMe.Register.adminSubmissionQueue + 4: return UInt32(state.3 >> 32)
        case NVMe.Register.adminCompletionQueue: return UInt32(truncatingIfNeeded: state.4)
        case NVMe.Register.adminCompletionQueue + 4: return UInt32(state.4 >> 32)
        default: return 0
        }
    }
    package func barWrite(_ offset: UInt64, _ value: UInt64, size: Int) {
        if offset >= Self.msixTable {
            if offset < Self.msixTable + 0x800 { function.msix?.tableWrite(Int(offset - Self.msixTable), value, size: size) }
            return
        }
        guard size == 4 || size == 8, offset & 3 == 0 else { return }
        write(offset, UInt32(truncatingIfNeeded: value))
        if size == 8 { write(offset + 4, UInt32(value >> 32)) }
    }
    private func write(_ offset: UInt64, _ value: UInt32) {
        if offset >= NVMe.Register.doorbells { return ring(Int(offset - NVMe.Register.doorbells) / 4, Int(value & 0xFFFF)) }
        if offset == NVMe.Register.configuration { return configure(value) }
        state.withLock { state in
            // The admin queues stand still while the controller is on.
            guard state.configuration & NVMe.Configuration.enable == 0 else { return }
            func half(_ target: inout UInt64, high: Bool) {
                target = high ? target & 0xFFFF_FFFF | UInt64(value) << 32 : target & ~0xFFFF_FFFF | UInt64(value)
            }
            switch offset {
            case NVMe.Register.adminQueueSizes: state.adminSizes = value & 0x0FFF_0FFF
            case NVMe.Register.adminSubmissionQueue: half(&state.adminSubmission, high: false)
            case NVMe.Register.adminSubmissionQueue + 4: half(&state.adminSubmission, high: true)
            case NVMe.Register.adminCompletionQueue: half(&state.adminCompletion, high: false)
            case NVMe.Register.adminCompletionQueue + 4: half(&state.adminCompletion, high: true)
            default: break
            }
        }
    }
    /// CC. § 3.1.5, 7.6.
    private func configure(_ value: UInt32) {
        let old = state.withLock { state in
            defer { state.configuration = value }
            return state.configuration
        }
        let (was, is_) = (old & NVMe.Configuration.enable != 0, value & NVMe.Configuration.enable != 0)
        if was, !is_ { return reset(keeping: value) }
        if !was, is_ { enable(value) }
        if NVMe.Configuration.shutdown(value) != 0, NVMe.Configuration.shutdown(old) == 0 {
            _ = backend.flush()
            state.withLock { $0.status |= NVMe.ControllerStatus.shutdownComplete }
        }
    }
    private func enable(_ configuration: UInt32) {
        let (sizes, submission, completion) = state.withLock { ($0.adminSizes, $0.adminSubmission, $0.adminCompletion) }
        let isUsable = NVMe.Configuration.memoryPageShift(configuration) == 0 && NVMe.Configuration.commandSet(configuration) == 0
        let made = makeCompletions(
            .init(identifier: 0, address: completion, size: Int(sizes >> 16 & 0xFFF) + 1, vector: 0, signals: true, head: 0, tail: 0, phase: true))
        let queue = made.flatMap {
            SubmissionQueue(.init(identifier: 0, address: submission, size: Int(sizes & 0xFFF) + 1, head: 0, tail: 0, completions: 0), $0, memory)
        }
        state.withLock { state in
            guard isUsable, let made, let queue else {
                state.status = NVMe.ControllerStatus.fatal
                return
            }
            state.completions = [0: made]
            state.submissions = [0: queue]
            state.status = NVMe.ControllerStatus.ready
        }
    }
    private func makeSubmissions(_ image: SubmissionQueue.Image, _ completions: CompletionQueue) -> SubmissionQueue? {
        SubmissionQueue(image, completions, memory, shadow: shadow(image.identifier) { $0.tail(image.identifier) })
    }
    /// Administration always rings.
    private func shadow(_ identifier: Int, _ choose: (ShadowDoorbells) -> ShadowDoorbell?) -> ShadowDoorbell? {
        identifier == 0 ? nil : state.withLock { $0.shadows }.flatMap(choose)
    }
    private func makeCompletions(_ image: CompletionQueue.Image) -> CompletionQueue? {
        CompletionQueue(image, memory, shadow: shadow(image.identifier) { $0.head(image.identifier) }) { [weak function] in function?.msix?.signal($0) }
    }
    /// As when the machine is switched on, but for the registers that a reset leaves. Nothing of the controller runs when this
    /// returns.
    private func reset(keeping configuration: UInt32) {
        administration.withLock { _ in
            let workers = state.withLock { state in
                let workers = state.workers
                let (sizes, submission, completion) = (state.adminSizes, state.adminSubmission, state.adminCompletion)
                state = State(configuration: configuration, adminSizes: sizes, adminSubmission: submission, adminCompletion: completion)
                return workers
            }
            for worker in workers.values { worker.stop() }
        }
    }
    /// When the machine goes.
    package func shutDown() { reset(keeping: 0) }

    // MARK: doorbells

    private func ring(_ doorbell: Int, _ value: Int) {
        let identifier = doorbell / 2
        if doorbell & 1 == 0 {
            guard let queue = state.withLock({ $0.submissions[identifier] }), queue.ring(value) else { return }
            if identifier == 0 { administer(queue) } else { queue.event.signal() }
            return
        }
        guard let queue = state.withLock({ $0.completions[identifier] }), queue.ring(value) else { return }
        let waiting = state.withLock { state in state.submissions.values.filter { $0.completions.identifier == identifier } }
        for submission in waiting where !submission.isEmpty { if submission.identifier == 0 { administer(submission) } else { submission.event.signal() } }
    }

    // MARK: administration

    private func administer(_ queue: SubmissionQueue) {
        administration.withLock { _ in
            while let command = queue.take() {
                guard let (status, result) = execute(command) else { continue }
                queue.completions.post(command, status, result: result, queue: 0, head: queue.head)
            }
        }
        queue.completions.notify()
    }
    /// nil when there is no answer yet.
    private func execute(_ command: NVMeCommand) -> (NVMe.Status, UInt32)? {
        guard command.isPlain else { return (.invalidField, 0) }
        switch command.opcode {
        case NVMe.Admin.identify:
            switch identification.structure(UInt8(truncatingIfNeeded: command.words[10]), namespace: command.namespace) {
            case .success(let bytes): return (answer(command, bytes, NVMe.pageSize), 0)
            case .failure(let status): return (status, 0)
            }
        case NVMe.Admin.createCompletionQueue: return (createCompletions(command), 0)
        case NVMe.Admin.createSubmissionQueue: return (createSubmissions(command), 0)
        case NVMe.Admin.deleteSubmissionQueue: return (deleteSubmissions(Int(command.words[10] & 0xFFFF)), 0)
        case NVMe.Admin.deleteCompletionQueue: return (deleteCompletions(Int(command.words[10] & 0xFFFF)), 0)
        case NVMe.Admin.setFeatures: return setFeature(command)
        case NVMe.Admin.getFeatures: return getFeature(command)
        case NVMe.Admin.getLogPage: return (logPage(command), 0)
        case NVMe.Admin.abort: return (.success, 1)  // it was too late
        case NVMe.Admin.asynchronousEvent:
            // Nothing ever happens.
            let isTaken = state.withLock { state in
                guard state.eventRequests < Self.mostEventRequests else { return false }
                state.eventRequests += 1
                return true
            }
            return isTaken ? nil : (.tooManyEventRequests, 0)
        case NVMe.Admin.doorbellBuffer: return (shareDoorbells(command), 0)
        default: return (.invalidOpcode, 0)
        }
    }
    /// The queues that are there already go on from where they are.
    private func shareDoorbells(_ command: NVMeCommand) -> NVMe.Status {
        guard let shadows = ShadowDoorbells(.init(doorbells: command.firstPage, events: command.secondPage), memory) else { return .invalidField }
        let (completions, submissions, workers) = state.withLock { state in
            defer {
                state.shadows = shadows
                state.completions = state.completions.filter { $0.key == 0 }
                state.submissions = state.submissions.filter { $0.key == 0 }
                state.workers = [:]
            }
            return (state.completions, state.submissions, state.workers)
        }
        for worker in workers.values { worker.stop() }
        let (saved, taken) = (completions.values.map(\.image).filter { $0.identifier != 0 }, submissions.values.map(\.image).filter { $0.identifier != 0 })
        for image in saved { shadows.head(image.identifier)?.set(image.head) }
        for image in taken { shadows.tail(image.identifier)?.set(image.tail) }
        return makeQueues(saved, taken) ? .success : .invalidField
    }
    private func answer(_ command: NVMeCommand, _ bytes: [UInt8], _ count: Int) -> NVMe.Status {
        let pages = PhysicalPages(memory)
        do throws(NVMe.Status) { try pages.collect(command.firstPage, command.secondPage, count) } catch { return error }
        pages.write(bytes)
        return .success
    }
    private func createCompletions(_ command: NVMeCommand) -> NVMe.Status {
        let (identifier, size) = (Int(command.words[10] & 0xFFFF), Int(command.words[10] >> 16) + 1)
        let vector = UInt16(truncatingIfNeeded: command.words[11] >> 16)
        guard (1...queuePairs).contains(identifier), state.withLock({ $0.completions[identifier] == nil }) else { return .invalidQueue }
        guard (2...NVMe.mostEntries).contains(size) else { return .invalidQueueSize }
        guard Int(vector) <= queuePairs else { return .invalidVector }
        // Contiguous memory, and nothing else.
        guard command.words[11] & 1 != 0,
            let queue = makeCompletions(
                .init(
                    identifier: identifier, address: command.firstPage, size: size, vector: vector, signals: command.words[11] & 2 != 0, head: 0, tail: 0,
                    phase: true))
        else { return .invalidField }
        state.withLock { $0.completions[identifier] = queue }
        return .success
    }
    private func createSubmissions(_ command: NVMeCommand) -> NVMe.Status {
        let (identifier, size) = (Int(command.words[10] & 0xFFFF), Int(command.words[10] >> 16) + 1)
        guard (1...queuePairs).contains(identifier), state.withLock({ $0.submissions[identifier] == nil }) else { return .invalidQueue }
        guard (2...NVMe.mostEntries).contains(size) else { return .invalidQueueSize }
        let target = Int(command.words[11] >> 16)
        guard target != 0, let completions = state.withLock({ $0.completions[target] }) else { return .invalidCompletionQueue }
        guard command.words[11] & 1 != 0,
            let queue = makeSubmissions(
                .init(identifier: identifier, address: command.firstPage, size: size, head: 0, tail: 0, completions: target), completions)
        else { return .invalidField }
        return start(queue) ? .success : .invalidField
    }
    private func start(_ queue: SubmissionQueue) -> Bool {
        guard let worker = try? CommandWorker(queue, backend, memory, gate: gate) else { return false }
        state.withLock { state in
            state.submissions[queue.identifier] = queue
            state.workers[queue.identifier] = worker
        }
        return true
    }
    private func deleteSubmissions(_ identifier: Int) -> NVMe.Status {
        guard identifier != 0, state.withLock({ $0.submissions[identifier] != nil }) else { return .invalidQueue }
        let worker = state.withLock { state in
            state.submissions[identifier] = nil
            return state.workers.removeValue(forKey: identifier)
        }
        worker?.stop()
        return .success
    }
    private func deleteCompletions(_ identifier: Int) -> NVMe.Status {
        state.withLock { state in
            guard identifier != 0, state.completions[identifier] != nil else { return .invalidQueue }
            guard !state.submissions.values.contains(where: { $0.completions.identifier == identifier }) else { return .invalidQueueDeletion }
            state.completions[identifier] = nil
            return .success
        }
    }
    private func setFeature(_ command: NVMeCommand) -> (NVMe.Status, UInt32) {
        let feature = UInt8(truncatingIfNeeded: command.words[10])
        if feature == NVMe.Feature.queueCount { return (.success, queueCounts) }
        guard NVMe.Feature.kept.contains(feature) else { return (.invalidField, 0) }
        state.withLock { $0.features[feature] = command.words[11] }
        return (.success, 0)
    }
    private func getFeature(_ command: NVMeCommand) -> (NVMe.Status, UInt32) {
        let feature = UInt8(truncatingIfNeeded: command.words[10])
        if feature == NVMe.Feature.queueCount { return (.success, queueCounts) }
        guard NVMe.Feature.kept.contains(feature) else { return (.invalidField, 0) }
        return (.success, state.withLock { $0.features[feature] ?? 0 })
    }
    private var queueCounts: UInt32 { UInt32(queuePairs - 1) | UInt32(queuePairs - 1) << 16 }
    /// Errors, health and firmware: none, good, and one slot. § 5.14.1.
    private func logPage(_ command: NVMeCommand) -> NVMe.Status {
        let count = (Int(command.words[10] >> 16 & 0xFFF) + 1) * 4
        var bytes = [UInt8](repeating: 0, count: 512)
        switch command.words[10] & 0xFF {
        case 1: break
        case 2:
            (bytes[1], bytes[2]) = (UInt8(truncatingIfNeeded: 300), UInt8(300 >> 8))  // kelvin
            (bytes[3], bytes[4]) = (100, 10)  // spare blocks, and when to worry
        case 3:
            bytes[0] = 1
            bytes[8] = 0x31
        default: return .invalidField
        }
        return answer(command, bytes, min(count, NVMe.largestTransfer))
    }

    // MARK: images

    package struct Image: Equatable, Sendable, Codable {
        var serial: String
        var blocks: UInt64
        var queuePairs: Int
        var configuration: UInt32
        var status: UInt32
        var adminSizes: UInt32
        var adminSubmission: UInt64
        var adminCompletion: UInt64
        var completions: [CompletionQueue.Image]
        var submissions: [SubmissionQueue.Image]
        var features: [String: UInt32]
        var eventRequests: Int
        /// Absent in states of before, and where the driver does not use them.
        var shadows: ShadowDoorbells.Image?
    }
    /// While the gate is closed and no processor runs.
    package func makeImage() -> Image {
        state.withLock { state in
            Image(
                serial: identification.serial, blocks: backend.byteCount / 512, queuePairs: queuePairs, configuration: state.configuration, status: state.status,
                adminSizes: state.adminSizes, adminSubmission: state.adminSubmission, adminCompletion: state.adminCompletion,
                completions: state.completions.values.map(\.image).sorted { $0.identifier < $1.identifier },
                submissions: state.submissions.values.map(\.image).sorted { $0.identifier < $1.identifier },
                features: Dictionary(uniqueKeysWithValues: state.features.map { (String($0), $1) }), eventRequests: state.eventRequests,
                shadows: state.shadows?.image)
        }
    }
    /// What is different here from the controller that was saved; nil when nothing is.
    package func difference(to image: Image) -> String? {
        if image.serial != identification.serial || image.blocks != backend.byteCount / 512 { return "an NVMe disk is another one" }
        return image.queuePairs == queuePairs ? nil : "an NVMe controller has other queues"
    }
    /// Goes on where the saved controller was; false for an image that makes no sense. Before the guest runs, with its memory in place.
    package func restore(_ image: Image) -> Bool {
        let shadows = image.shadows.flatMap { ShadowDoorbells($0, memory) }
        if image.shadows != nil, shadows == nil { return false }
        state.withLock { state in
            state.shadows = shadows
            (state.configuration, state.status, state.adminSizes) = (image.configuration, image.status, image.adminSizes)
            (state.adminSubmission, state.adminCompletion) = (image.adminSubmission, image.adminCompletion)
            for (feature, value) in image.features { if let feature = UInt8(feature) { state.features[feature] = value } }
            state.eventRequests = min(max(image.eventRequests, 0), Self.mostEventRequests)
        }
        guard makeQueues(image.completions, image.submissions) else { return false }
        for queue in state.withLock({ Array($0.completions.values) }) { queue.remind() }
        return true
    }
    /// Queues that go on from where others were; false when that makes no sense.
    private func makeQueues(_ completions: [CompletionQueue.Image], _ submissions: [SubmissionQueue.Image]) -> Bool {
        for saved in completions {
            guard (0...queuePairs).contains(saved.identifier), state.withLock({ $0.completions[saved.identifier] == nil }),
                let queue = makeCompletions(saved)
            else { return false }
            state.withLock { $0.completions[saved.identifier] = queue }
        }
        for saved in submissions {
            guard (0...queuePairs).contains(saved.identifier), state.withLock({ $0.submissions[saved.identifier] == nil }),
                let completions = state.withLock({ $0.completions[saved.completions] }),
                let queue = makeSubmissions(saved, completions)
            else { return false }
            if saved.identifier == 0 { state.withLock { $0.submissions[0] = queue } } else if !start(queue) { return false }
        }
        return true
    }
}
