import CLinux
import Hypervisor

/// What of CPUID a baseline leaves: bits of instructions beyond it go, bits that concern only the kernel stay.
struct KVMBaseline {
    let baseline: ProcessorBaseline

    private struct Word {
        var leaf: UInt32
        /// EBX or ECX of the leaf's first sub-leaf.
        var isEBX: Bool
        /// Bits that only the processor itself shows (`host`).
        var removed: [UInt32]
        var v2: [UInt32]
        var v3: [UInt32]
    }
    private static let words = [
        // PCLMUL SSSE3 FMA SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE OSXSAVE AVX F16C RDRAND
        Word(leaf: 1, isEBX: false, removed: [1, 9, 12, 19, 20, 22, 23, 25, 26, 27, 28, 29, 30], v2: [9, 19, 20, 23], v3: [12, 22, 26, 28, 29]),
        // All but FSGSBASE SMEP ERMS INVPCID SMAP; BMI1 AVX2 BMI2
        Word(leaf: 7, isEBX: true, removed: (0..<32).filter { ![0, 7, 9, 10, 20].contains($0) }, v2: [], v3: [3, 5, 8]),
        Word(leaf: 7, isEBX: false, removed: Array(0..<32), v2: [], v3: []),
        // LZCNT, SSE4A, XOP, FMA4 and the like
        Word(leaf: 0x8000_0001, isEBX: false, removed: [5, 6, 8, 11, 15, 16, 21], v2: [], v3: [5]),
    ]
    private func allowed(_ word: Word) -> [UInt32] {
        switch baseline {
        case .host: return word.removed
        case .v1: return []
        case .v2: return word.v2
        case .v3: return word.v2 + word.v3
        }
    }
    private static func mask(_ bits: [UInt32]) -> UInt32 { bits.reduce(0) { $0 | 1 << $1 } }

    /// Cuts down what KVM offers; throws when it offers too little.
    func apply(to entries: inout [kvm_cpuid_entry2]) throws {
        guard baseline != .host else { return }
        for word in Self.words {
            let wanted = Self.mask(allowed(word))
            guard let index = entries.firstIndex(where: { $0.function == word.leaf && $0.index == 0 }) else {
                if wanted == 0 { continue }
                throw lacking()
            }
            var value = word.isEBX ? entries[index].ebx : entries[index].ecx
            guard value & wanted == wanted else { throw lacking() }
            value &= ~Self.mask(word.removed) | wanted
            if word.isEBX { entries[index].ebx = value } else { entries[index].ecx = value }
        }
        for index in entries.indices where entries[index].function == 0xD { limitState(&entries[index]) }
    }
    private func lacking() -> EngineError { EngineError("KVM on this host does not offer \(baseline.rawValue).") }
    /// State components: x87, SSE, and AVX from level 3.
    private func limitState(_ entry: inout kvm_cpuid_entry2) {
        switch (entry.index, baseline) {
        case (0, .v3): (entry.eax, entry.ebx, entry.ecx, entry.edx) = (7, 832, 832, 0)
        case (2, .v3): break
        default: (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0)
        }
    }
}
