import CLinux
import Glibc
import Hypervisor
import LinuxSystem

/// What CPUID shows: what KVM supports on this host, with each vCPU's own number and the topology put in.
struct KVMProcessorIdentity {
    private static let capacity = 256
    private let leaves: [CPUIDLeaf]
    /// All that KVM can show, whatever the baseline.
    let offered: Set<String>
    private let hasDeadlineTimer: Bool

    init(system: KVMDescriptor, baseline: ProcessorBaseline) throws {
        let supported = try Self.read(KVMRequest.getSupportedCPUID, of: system)
        leaves = try KVMBaseline(baseline: baseline).limit(supported)
        hasDeadlineTimer = try system.call(KVMRequest.checkExtension, KVMCapability.tscDeadlineTimer, "ask for the deadline timer") != 0
        offered = ProcessorFeatures.names(in: supported).union(["x2apic"]).union(hasDeadlineTimer ? ["tsc_deadline_timer"] : [])
    }
    private static func read(_ request: UInt, of descriptor: KVMDescriptor) throws -> [CPUIDLeaf] {
        let raw = UnsafeMutableRawPointer.allocate(
            byteCount: MemoryLayout<kvm_cpuid2>.size + capacity * MemoryLayout<kvm_cpuid_entry2>.stride, alignment: 8)
        defer { raw.deallocate() }
        raw.storeBytes(of: UInt32(capacity), as: UInt32.self)
        raw.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        try descriptor.call(request, pointer: raw, "ask KVM for the processor's features")
        let count = Int(raw.load(as: UInt32.self))
        let first = (raw + MemoryLayout<kvm_cpuid2>.size).assumingMemoryBound(to: kvm_cpuid_entry2.self)
        return (0..<min(count, capacity)).map {
            CPUIDLeaf(first[$0].function, first[$0].index, (first[$0].eax, first[$0].ebx, first[$0].ecx, first[$0].edx))
        }
    }

    /// Of the processors' names and numbers, as text: what states of early versions say.
    var words: [String] {
        leaves.filter { [1, 7, 0xD, 0x8000_0001].contains($0.leaf) }.map { entry in
            // Leaf 1's second word names the processor that was asked; its third says whether XSAVE is switched on there.
            let values = entry.leaf == 1 ? [entry.eax, entry.ecx & ~(1 << 27), entry.edx] : [entry.eax, entry.ebx, entry.ecx, entry.edx]
            // The size of XSAVE's area in leaf 0xD, EBX, depends on what is switched on.
            let stable = entry.leaf == 0xD ? [entry.eax, entry.ecx, entry.edx] : values
            return "\(String(entry.leaf, radix: 16)).\(entry.subleaf) " + stable.map { String($0, radix: 16) }.joined(separator: " ")
        }
    }

    /// What vCPU `index` of `count` shows.
    func leaves(index: Int, count: Int) -> [CPUIDLeaf] { leaves.map { adjusted($0, index: UInt32(index), count: UInt32(count)) } }

    /// Gives one vCPU its CPUID. Before it runs.
    static func show(_ leaves: [CPUIDLeaf], on vcpu: KVMDescriptor) throws {
        let shown = leaves.prefix(capacity)
        let raw = UnsafeMutableRawPointer.allocate(
            byteCount: MemoryLayout<kvm_cpuid2>.size + shown.count * MemoryLayout<kvm_cpuid_entry2>.stride, alignment: 8)
        defer { raw.deallocate() }
        raw.storeBytes(of: UInt32(shown.count), as: UInt32.self)
        raw.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        let first = (raw + MemoryLayout<kvm_cpuid2>.size).assumingMemoryBound(to: kvm_cpuid_entry2.self)
        for (position, leaf) in shown.enumerated() {
            var entry = kvm_cpuid_entry2()
            (entry.function, entry.index) = (leaf.leaf, leaf.subleaf)
            entry.flags = CPUIDLeaf.isIndexed(leaf.leaf) ? 1 : 0  // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = leaf.values
            first[position] = entry
        }
        try vcpu.call(KVMRequest.setCPUID2, pointer: raw, "set a processor's features")
    }

    private func adjusted(_ leaf: CPUIDLeaf, index: UInt32, count: UInt32) -> CPUIDLeaf {
        var leaf = leaf
        let bits = UInt32(32 - (count - 1).leadingZeroBitCount)
        switch leaf.leaf {
        case 1:
            leaf.ebx = leaf.ebx & 0xFFFF | index << 24 | count << 16
            // A hypervisor, x2APIC; KVM itself says whether XSAVE is switched on.
            leaf.ecx = leaf.ecx & ~(1 << 27) | 1 << 31 | 1 << 21 | (hasDeadlineTimer ? 1 << 24 : 0)
            if count > 1 { leaf.edx |= 1 << 28 }
        case 4 where leaf.eax & 31 != 0:
            leaf.eax = leaf.eax & 0x3FFF | (count - 1) << 26
        case 0xA: (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0)  // no performance counters
        case 0xB, 0x1F:
            leaf.edx = index
            switch leaf.subleaf {
            case 0: (leaf.eax, leaf.ebx, leaf.ecx) = (0, 1, 0x100)
            case 1: (leaf.eax, leaf.ebx, leaf.ecx) = (bits, count, 0x201)
            default: (leaf.eax, leaf.ebx, leaf.ecx) = (0, 0, leaf.subleaf)
            }
        case 0x8000_0008: leaf.ecx = count - 1 | bits << 12
        case 0x8000_001E: (leaf.eax, leaf.ebx, leaf.ecx) = (index, index, 0)
        default: break
        }
        return leaf
    }
}
