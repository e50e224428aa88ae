import CLinux
import Glibc
import Hypervisor
import LinuxSystem

/// What CPUID shows: what KVM supports on this host, with each vCPU's own number and the topology put in.
struct KVMProcessorIdentity {
    private static let capacity = 256
    private var entries: [kvm_cpuid_entry2]
    private let hasDeadlineTimer: Bool

    init(system: KVMDescriptor, baseline: ProcessorBaseline) throws {
        let raw = UnsafeMutableRawPointer.allocate(
            byteCount: MemoryLayout<kvm_cpuid2>.size + Self.capacity * MemoryLayout<kvm_cpuid_entry2>.stride, alignment: 8)
        defer { raw.deallocate() }
        raw.storeBytes(of: UInt32(Self.capacity), as: UInt32.self)
        raw.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        try system.call(KVMRequest.getSupportedCPUID, pointer: raw, "ask KVM for the processor's features")
        let count = Int(raw.load(as: UInt32.self))
        let first = (raw + MemoryLayout<kvm_cpuid2>.size).assumingMemoryBound(to: kvm_cpuid_entry2.self)
        entries = (0..<min(count, Self.capacity)).map { first[$0] }
        try KVMBaseline(baseline: baseline).apply(to: &entries)
        hasDeadlineTimer = try system.call(KVMRequest.checkExtension, KVMCapability.tscDeadlineTimer, "ask for the deadline timer") != 0
    }

    /// The features of leaves 1, 7 and 0x80000001, and of XSAVE, as text.
    var words: [String] {
        entries.filter { [1, 7, 0xD, 0x8000_0001].contains($0.function) }.map { entry in
            // Leaf 1's second word names the processor that was asked; its third says whether XSAVE is switched on there.
            let values = entry.function == 1 ? [entry.eax, entry.ecx & ~(1 << 27), entry.edx] : [entry.eax, entry.ebx, entry.ecx, entry.edx]
            // The size of XSAVE's area in leaf 0xD, EBX, depends on what is switched on.
            let stable = entry.function == 0xD ? [entry.eax, entry.ecx, entry.edx] : values
            return "\(String(entry.function, radix: 16)).\(entry.index) " + stable.map { String($0, radix: 16) }.joined(separator: " ")
        }
    }

    /// Gives one vCPU its CPUID.
    func apply(to vcpu: KVMDescriptor, index: Int, count: Int) throws {
        let raw = UnsafeMutableRawPointer.allocate(
            byteCount: MemoryLayout<kvm_cpuid2>.size + entries.count * MemoryLayout<kvm_cpuid_entry2>.stride, alignment: 8)
        defer { raw.deallocate() }
        raw.storeBytes(of: UInt32(entries.count), as: UInt32.self)
        raw.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        let first = (raw + MemoryLayout<kvm_cpuid2>.size).assumingMemoryBound(to: kvm_cpuid_entry2.self)
        for (position, entry) in entries.enumerated() { first[position] = adjusted(entry, index: UInt32(index), count: UInt32(count)) }
        try vcpu.call(KVMRequest.setCPUID2, pointer: raw, "set a processor's features")
    }

    private func adjusted(_ entry: kvm_cpuid_entry2, index: UInt32, count: UInt32) -> kvm_cpuid_entry2 {
        var entry = entry
        let bits = UInt32(32 - (count - 1).leadingZeroBitCount)
        switch entry.function {
        case 1:
            entry.ebx = entry.ebx & 0xFFFF | index << 24 | count << 16
            entry.ecx |= 1 << 31 | 1 << 21 | (hasDeadlineTimer ? 1 << 24 : 0)
            if count > 1 { entry.edx |= 1 << 28 }
        case 4 where entry.eax & 31 != 0:
            entry.eax = entry.eax & 0x3FFF | (count - 1) << 26
        case 0xA: (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0)  // no performance counters
        case 0xB, 0x1F:
            entry.edx = index
            switch entry.index {
            case 0: (entry.eax, entry.ebx, entry.ecx) = (0, 1, 0x100)
            case 1: (entry.eax, entry.ebx, entry.ecx) = (bits, count, 0x201)
            default: (entry.eax, entry.ebx, entry.ecx) = (0, 0, entry.index)
            }
        case 0x8000_0008: entry.ecx = count - 1 | bits << 12
        case 0x8000_001E: (entry.eax, entry.ebx, entry.ecx) = (index, index, 0)
        default: break
        }
        return entry
    }
}
