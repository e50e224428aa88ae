import GuestMemory

/// A message-signalled interrupt as the guest programmed it. Intel SDM vol. 3 § 10.11.
package struct MSIMessage: Hashable, Sendable, Codable {
    package var address: UInt64
    package var data: UInt32
    package init(address: UInt64, data: UInt32) {
        self.address = address
        self.data = data
    }
}

/// Who answers port and memory-mapped accesses. Called on vCPU threads, in the middle of the instruction.
package protocol AccessBus: AnyObject, Sendable {
    /// `size` is 1, 2 or 4 bytes; unclaimed ports read as ones.
    func portRead(_ port: UInt16, size: Int) -> UInt32
    func portWrite(_ port: UInt16, _ value: UInt32, size: Int)
    /// `size` is 1 to 8 bytes.
    func memoryRead(_ address: UInt64, size: Int) -> UInt64
    func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int)
}

/// Why `VirtualCPU.run` came back.
package enum VCPUExit: Equatable, Sendable {
    /// `cancel` was called.
    case cancelled
    /// Triple fault.
    case shutdown
    /// The engine cannot go on; a sentence for the user.
    case internalError(String)
}

/// One segment register with its hidden part.
package struct SegmentState: Equatable, Sendable, Codable {
    package var selector: UInt16
    package var base: UInt64
    package var limit: UInt32
    /// Descriptor bits 40–47 in the low byte, 52–55 in bits 8–11.
    package var attributes: UInt16
    package init(selector: UInt16, base: UInt64, limit: UInt32, attributes: UInt16) {
        self.selector = selector
        self.base = base
        self.limit = limit
        self.attributes = attributes
    }
}

/// The registers of a processor. A boot processor is given the first of them; the others have what a reset leaves.
package struct VCPUState: Equatable, Sendable, Codable {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8 … R15.
    package var gpr = [UInt64](repeating: 0, count: 16)
    package var rip: UInt64 = 0
    package var rflags: UInt64 = 2
    package var cr0: UInt64 = 0
    package var cr3: UInt64 = 0
    package var cr4: UInt64 = 0
    package var efer: UInt64 = 0
    /// ES CS SS DS FS GS.
    package var segments: [SegmentState] = []
    package var tr = SegmentState(selector: 0, base: 0, limit: 0xFFFF, attributes: 0x8B)
    package var ldtr = SegmentState(selector: 0, base: 0, limit: 0xFFFF, attributes: 0x82)
    package var gdtBase: UInt64 = 0
    package var gdtLimit: UInt32 = 0
    package var idtBase: UInt64 = 0
    package var idtLimit: UInt32 = 0
    package var cr2: UInt64 = 0
    package var dr: [UInt64] = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]
    package var star: UInt64 = 0
    package var lstar: UInt64 = 0
    package var cstar: UInt64 = 0
    package var sfmask: UInt64 = 0
    package var kernelGSBase: UInt64 = 0
    package var sysenterCS: UInt64 = 0
    package var sysenterESP: UInt64 = 0
    package var sysenterEIP: UInt64 = 0
    package var mxcsr: UInt32 = 0x1F80
    package var x87Control: UInt16 = 0x37F
    /// The x87 part of an FXSAVE image, whose control word is the one in effect, and the vector registers' lower and upper halves.
    package var x87: [UInt8] = [0x7F, 0x03] + [UInt8](repeating: 0, count: 158)
    package var xmm = [UInt8](repeating: 0, count: 256)
    package var ymmHigh = [UInt8](repeating: 0, count: 256)
    package var xcr0: UInt64 = 1
    package var cpl: UInt8 = 0
    /// The next instruction runs before any interrupt: the one before was STI or loaded SS.
    package var interruptShadow: Bool?
    package init() {}
}

/// One virtual processor. `run` belongs to one thread; `cancel` to any.
package protocol VirtualCPU: AnyObject, Sendable {
    var index: Int { get }
    /// Runs the guest, waits while it is halted or not started yet, and returns for the reasons of `VCPUExit` only.
    func run() -> VCPUExit
    /// Makes a `run`, this one or the next, return `.cancelled` soon.
    func cancel()
    /// Only while `run` is not.
    func setState(_ state: VCPUState) throws
    func getState() throws -> VCPUState
}

/// A machine as an engine has it: processors and interrupts over given memory.
package protocol HypervisorMachine: AnyObject, Sendable {
    var vcpus: [any VirtualCPU] { get }
    func signal(_ message: MSIMessage)
    /// A way to raise one message with an eventfd (irqfd); nil when the engine has none and `signal` is the way.
    func makeMessageRoute() -> (any MessageRoute)?
    /// Drives an input of the I/O interrupt controller.
    func setLine(_ gsi: UInt32, level: Bool)
    /// Asks that a 16-bit write to `address` signals `eventFileDescriptor` without an exit; false when the engine calls the
    /// bus instead.
    func bindNotify(address: UInt64, eventFileDescriptor: Int32) -> Bool
    func unbindNotify(address: UInt64, eventFileDescriptor: Int32)
    /// Everything of the machine that the engine holds. Only while no processor runs.
    func makeImage() throws -> MachineImage
    /// Takes the place of the machine that the image was made of, on memory with its contents. Only before any processor runs.
    /// The guest's clocks go on as if it had been asleep. Throws, in a sentence, what makes that impossible.
    func restore(_ image: MachineImage) throws
}

/// One message-signalled interrupt that an eventfd raises. Any thread; `set` belongs to one at a time.
package protocol MessageRoute: AnyObject, Sendable {
    /// What `signal` raises from now on; false when the engine refuses it.
    func set(_ message: MSIMessage) -> Bool
    func signal()
}

/// A way to run virtual machines.
package protocol HypervisorEngine: Sendable {
    /// "kvm" or "software".
    var name: String { get }
    var maximumVCPUCount: Int { get }
    /// Throws when the host does not have the baseline.
    func makeMachine(memory: GuestMemory, vcpuCount: Int, baseline: ProcessorBaseline, bus: any AccessBus) throws -> any HypervisorMachine
}

/// An engine's refusal, in a sentence for the user.
package struct EngineError: Error, CustomStringConvertible, Sendable {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// The processors' local interrupt controllers and the I/O controller, for engines that have none in the kernel.
/// Any thread.
package protocol InterruptController: AnyObject, Sendable {
    /// Called when a processor has something to look at: an interrupt, INIT or a start-up page.
    func connect(_ cpu: Int, _ notify: @escaping @Sendable (InterruptEvent) -> Void)
    /// The highest vector that may be delivered now, moved into service.
    func acknowledge(_ cpu: Int) -> UInt8?
    func hasDeliverable(_ cpu: Int) -> Bool
    func taskPriority(_ cpu: Int) -> UInt64
    func setTaskPriority(_ cpu: Int, _ value: UInt64)
    func readMSR(_ cpu: Int, _ index: UInt32) -> UInt64?
    func writeMSR(_ cpu: Int, _ index: UInt32, _ value: UInt64) -> Bool
    /// Register accesses at the local (0xFEE00000) and I/O (0xFEC00000) controllers; nil when the address is neither.
    func memoryRead(_ cpu: Int, _ address: UInt64) -> UInt32?
    func memoryWrite(_ cpu: Int, _ address: UInt64, _ value: UInt32) -> Bool
    func signal(_ message: MSIMessage)
    func setLine(_ gsi: UInt32, level: Bool)
    func stop()
    /// By processor, and the I/O controller. Only while no processor runs.
    func makeImages() -> ([LocalAPICImage], IOAPICImage)
    /// With the guest's clock already what it is to be.
    func restore(_ local: [LocalAPICImage], _ io: IOAPICImage)
}

package enum InterruptEvent: Sendable {
    case interrupt
    case initialize
    case startup(page: UInt8)
}
