import Glibc
import Hypervisor
import LinuxSystem
import Synchronization
import X86

/// One software processor: the core, and the waiting that a halted or not yet started one does.
final class SoftwareVCPU: VirtualCPU, X86Environment, @unchecked Sendable {
    // The core and `paravirtual…` belong to the running thread; `signals` is locked.
    let index: Int
    private let count: Int
    private var core: X86Core!
    private unowned let bus: any AccessBus  // the board owns the machine that owns this
    private let interrupts: any InterruptController
    private let clock: SoftwareClock
    /// What CPUID answers.
    private var identity: [CPUIDLeaf]
    private var pat: UInt64 = 0x0007_0406_0007_0406
    /// What else a guest wrote that does nothing here, by number: how speculation is to be held back.
    private var inertRegisters: [UInt32: UInt64] = [:]
    private var halted = false
    /// Where the paravirtual clock is, as the guest wrote it: bit 0 says whether it is on.
    private var systemTime: UInt64 = 0

    private struct Signals {
        var cancelled = false
        var interrupt = false
        /// An application processor waits for INIT and a start-up page.
        var waitingForStartup: Bool
        var initialize = false
        var startupPage: UInt8?
        /// Only then it must be woken.
        var isAsleep = false
        var isEmpty: Bool { !cancelled && !initialize && (waitingForStartup ? startupPage == nil : !interrupt) }
        /// After something has come; true for a thread that must be woken.
        mutating func awaken() -> Bool {
            defer { isAsleep = false }
            return isAsleep
        }
    }
    private let signals: Mutex<Signals>
    private let wake: EventFD?
    private var idleness = Idleness()
    private var halting = AdaptiveWait()

    init(
        index: Int, count: Int, features: X86Features, physical: PhysicalMemory, bus: any AccessBus, interrupts: any InterruptController, clock: SoftwareClock
    ) {
        self.index = index
        self.count = count
        self.bus = bus
        self.interrupts = interrupts
        self.clock = clock
        identity = []
        signals = Mutex(Signals(waitingForStartup: index != 0))
        wake = try? EventFD()
        core = X86Core(memory: physical, environment: self)
        core.features = features
        ProcessorTrace.attach(to: core, index: index)
        interrupts.connect(index) { [weak self] event in self?.receive(event) }
    }

    private func receive(_ event: InterruptEvent) {
        let mustWake = signals.withLock { signals in
            switch event {
            case .interrupt: signals.interrupt = true
            case .initialize:
                signals.initialize = true
                signals.startupPage = nil
            case .startup(let page): if signals.startupPage == nil { signals.startupPage = page }
            }
            return signals.awaken()
        }
        if case .interrupt = event { core.interruptPending() } else { core.requestExit() }
        if mustWake { wake?.signal() }
    }

    func cancel() {
        let mustWake = signals.withLock {
            $0.cancelled = true
            return $0.awaken()
        }
        core.requestExit()
        if mustWake { wake?.signal() }
    }

    func run() -> VCPUExit {
        let time = clock.guest.timeStamp
        core.setTimeStamp(origin: time.origin, start: time.start, scale: time.scale)
        if identity.isEmpty { identity = ownIdentity(time.frequency) }
        while true {
            let (cancelled, waiting, initialize) = signals.withLock { state in
                defer {
                    state.cancelled = false
                    if state.initialize {
                        state.initialize = false
                        state.waitingForStartup = true
                    }
                }
                return (state.cancelled, state.waitingForStartup || state.initialize, state.initialize)
            }
            if cancelled { return .cancelled }
            if initialize { core.reset() }
            if waiting {
                let page = signals.withLock { state -> UInt8? in
                    defer { if state.startupPage != nil { state.waitingForStartup = false } }
                    return state.startupPage
                }
                guard let page else {
                    sleep()
                    continue
                }
                core.startup(page: page)
                halted = false
            }
            if halted {
                // Interrupts that came since are seen by the core; nothing came: sleep.
                guard signals.withLock({ $0.interrupt }) || interrupts.hasDeliverable(index) else {
                    idleness.sleeps(core)
                    halting.wait({ signals.withLock { !$0.isEmpty } }, orSleep: sleep)
                    idleness.wakes()
                    continue
                }
                halted = false
            }
            signals.withLock { $0.interrupt = false }
            switch core.run() {
            case .cancelled: continue
            case .halt: halted = !interrupts.hasDeliverable(index)
            case .shutdown: return .shutdown
            case .internalError(let message): return .internalError(message)
            }
        }
    }

    /// Until there is a signal.
    private func sleep() {
        let mustSleep = signals.withLock {
            $0.isAsleep = $0.isEmpty
            return $0.isAsleep
        }
        if mustSleep { wake?.wait() }
    }

    // MARK: state

    func setState(_ value: VCPUState) { core.architecturalState = X86State(value) }
    func getState() -> VCPUState { VCPUState(core.architecturalState) }

    /// Only while `run` is not.
    func makeImage(_ apic: LocalAPICImage) -> ProcessorImage {
        let waiting = signals.withLock { $0.waitingForStartup && $0.startupPage == nil }
        if identity.isEmpty { identity = ownIdentity(clock.guest.timeStamp.frequency) }
        var registers = [Register.pat: pat, Register.systemTime: systemTime]
        registers.merge(inertRegisters) { own, _ in own }
        return ProcessorImage(
            state: getState(), apic: apic, activity: waiting ? .waitingForStartup : halted ? .halted : .running,
            registers: Dictionary(uniqueKeysWithValues: registers.map { (String($0.key, radix: 16), $0.value) }), identity: identity)
    }
    func restore(_ image: ProcessorImage, features: X86Features) {
        setState(image.state)
        if let saved = image.identity, !saved.isEmpty {
            identity = saved
            core.features = features
            core.hasCompatibilitySyscall = saved.first { $0.leaf == 0 }?.ebx == 0x6874_7541  // "Auth" of AuthenticAMD
        }
        // Early versions had names.
        pat = image.register(Register.pat) ?? image.registers["pat"] ?? pat
        systemTime = image.register(Register.systemTime) ?? image.registers["systemTime"] ?? 0
        for number in Register.inert { inertRegisters[number] = image.register(number) }
        if systemTime & 1 != 0 { clock.writeSystemTime(at: systemTime & ~1, afterStop: true) }
        halted = image.activity == .halted
        signals.withLock {
            $0.waitingForStartup = image.activity == .waitingForStartup
            $0.startupPage = nil
            $0.initialize = false
            $0.interrupt = true
        }
    }

    // MARK: doors of the core

    func portRead(_ port: UInt16, size: Int) -> UInt32 { bus.portRead(port, size: size) }
    func portWrite(_ port: UInt16, _ value: UInt32, size: Int) { bus.portWrite(port, value, size: size) }
    func memoryRead(_ address: UInt64, size: Int) -> UInt64 {
        if let value = interrupts.memoryRead(index, address) { return UInt64(value) }
        return bus.memoryRead(address, size: size)
    }
    func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int) {
        if interrupts.memoryWrite(index, address, UInt32(truncatingIfNeeded: value)) { return }
        bus.memoryWrite(address, value, size: size)
    }
    func acknowledgeInterrupt() -> UInt8? { interrupts.acknowledge(index) }
    var taskPriority: UInt64 {
        get { interrupts.taskPriority(index) }
        set { interrupts.setTaskPriority(index, newValue) }
    }
    func hypercall(_ number: UInt64, _ arguments: (UInt64, UInt64, UInt64, UInt64)) -> UInt64 {
        guard number == Hypercall.clockPairing else { return 0 &- Hypercall.noSuchCall }
        guard arguments.1 == Hypercall.wallClock else { return 0 &- UInt64(EOPNOTSUPP) }
        return clock.writePair(at: arguments.0) ? 0 : 0 &- UInt64(EFAULT)
    }
    /// Linux Documentation/virt/kvm/x86/hypercalls.rst.
    private enum Hypercall {
        static let clockPairing: UInt64 = 9
        static let wallClock: UInt64 = 0
        /// KVM_ENOSYS; the other errors have Linux's numbers.
        static let noSuchCall: UInt64 = 1000
    }
    func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) {
        identity.first { $0.answers(leaf, subleaf) }?.values ?? (0, 0, 0, 0)
    }
    private func ownIdentity(_ frequency: UInt64) -> [CPUIDLeaf] {
        ProcessorIdentity(index: UInt32(index), count: UInt32(count), features: core.features, frequency: frequency).leaves
    }

    private enum Register {
        static let pat: UInt32 = 0x277
        static let systemTime: UInt32 = 0x4B56_4D01
        static let architecturalCapabilities: UInt32 = 0x10A
        /// SPEC_CTRL, ARCH_CAPABILITIES, VIRT_SPEC_CTRL, DE_CFG.
        static let inert: [UInt32] = [0x48, architecturalCapabilities, 0xC001_011F, 0xC001_1029]
        /// PRED_CMD, FLUSH_CMD: commands to forget.
        static let commands: Set<UInt32> = [0x49, 0x10B]
    }

    func readMSR(_ msr: UInt32) -> UInt64? {
        if let value = interrupts.readMSR(index, msr) { return value }
        switch msr {
        case 0x277: return pat
        case 0x8B, 0x17, 0xCE, 0x1D9, 0x3B, 0x79: return 0
        case 0x1A0: return 1  // fast strings
        case 0x4B56_4D00, 0x4B56_4D01: return 0
        default: return inertRegisters[msr]
        }
    }
    func writeMSR(_ msr: UInt32, _ value: UInt64) -> Bool {
        if interrupts.writeMSR(index, msr, value) { return true }
        switch msr {
        case 0x277: pat = value
        case 0x8B, 0x1A0, 0x1D9, 0x79: break
        case 0x4B56_4D00, 0x11: clock.writeWallClock(at: value & ~3)
        case 0x4B56_4D01, 0x12:
            systemTime = value
            if value & 1 != 0 { clock.writeSystemTime(at: value & ~1) }
        case let number where Register.commands.contains(number): return !inertRegisters.isEmpty
        default:
            // Only a machine that came from elsewhere has them.
            guard inertRegisters[msr] != nil, msr != Register.architecturalCapabilities else { return false }
            inertRegisters[msr] = value
        }
        return true
    }
}
