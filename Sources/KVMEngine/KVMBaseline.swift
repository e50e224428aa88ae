import Hypervisor

/// What of KVM's CPUID a baseline leaves.
struct KVMBaseline {
    let baseline: ProcessorBaseline
    /// Leaves beyond those with features that a limited processor keeps: names, caches, topology, sizes, the paravirtual clock.
    private static let keptLeaves: Set<UInt32> = Set([0, 1, 2, 4, 6, 7, 0xB, 0xD, 0x4000_0000, 0x4000_0001]).union(0x8000_0000...0x8000_0008)

    /// Cuts down what KVM offers; throws when it offers too little.
    func limit(_ leaves: [CPUIDLeaf]) throws -> [CPUIDLeaf] {
        guard let features = baseline.features else { return leaves }
        guard baseline.levelFeatures.isSubset(of: ProcessorFeatures.names(in: leaves)) else {
            throw EngineError("KVM on this host does not offer \(baseline.rawValue).")
        }
        return leaves.filter { Self.keptLeaves.contains($0.leaf) && ($0.leaf != 7 || $0.subleaf == 0) }.map { whole in
            var leaf = ProcessorFeatures.limit(whole, to: features)
            switch leaf.leaf {
            case 0: leaf.eax = min(leaf.eax, 0x16)
            case 6: (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & 4, 0, 0, 0)
            case 7: leaf.eax = 0
            case 0xD: limitState(&leaf)
            case 0x4000_0000: leaf.eax = 0x4000_0001
            case 0x8000_0000: leaf.eax = min(leaf.eax, 0x8000_0008)
            default: break
            }
            return leaf
        }
    }
    /// State components: x87, SSE, and AVX from level 3.
    private func limitState(_ leaf: inout CPUIDLeaf) {
        switch (leaf.subleaf, baseline) {
        case (0, .v3): (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (7, 832, 832, 0)
        case (2, .v3): break
        default: (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0)
        }
    }
}
