import Hypervisor
import X86

/// What CPUID answers: x86-64-v1 with SSE3 and CMPXCHG16B and what the baseline adds, by the name of a processor that no speculation bug affects, so
/// that the kernel switches its mitigations off. Intel SDM vol. 2 CPUID; KVM leaves: Linux Documentation/virt/kvm/x86/cpuid.rst.
struct ProcessorIdentity: Sendable {
    let index: UInt32
    let count: UInt32
    let features: X86Features
    /// Of the time stamp counter, in kHz.
    let frequency: UInt64

    /// All that is not zero.
    var leaves: [CPUIDLeaf] {
        let numbers: [(leaf: UInt32, subleaves: UInt32)] =
            [(0, 1), (1, 1), (2, 1), (4, 3), (6, 1), (7, 1), (0xB, 3), (0xD, 3), (0x15, 1), (0x16, 1), (0x4000_0000, 1), (0x4000_0001, 1)]
            + (0x8000_0000...0x8000_0008).map { ($0, 1) }
        return numbers.flatMap { number in (0..<number.subleaves).map { CPUIDLeaf(number.leaf, $0, cpuid(number.leaf, $0)) } }.filter { $0.values != (0, 0, 0, 0) }
    }

    private func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) {
        switch leaf {
        case 0: return (0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69)  // GenuineIntel
        case 1:
            // Family 6 model 28 (Bonnell) stepping 10. CLFLUSH line 64 bytes.
            let features: [UInt32] = [0, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26]
            // SSE3 CX16 x2APIC TSC-deadline hypervisor; the core adds OSXSAVE
            let more: [UInt32] =
                [0, 13, 21, 24, 31]
                + bits(of: [(.pclmul, 1), (.ssse3, 9), (.fma, 12), (.pcid, 17), (.sse41, 19), (.sse42, 20), (.movbe, 22), (.popcnt, 23)])
                + bits(of: [(.aes, 25), (.avx, 26), (.avx, 28), (.f16c, 29)])
            let threading: UInt32 = count > 1 ? 1 << 28 : 0
            return (0x000106CA, index << 24 | count << 16 | 8 << 8, bits(more), bits(features) | threading)
        case 2: return (0x01, 0, 0, 0)
        case 4: return cache(subleaf)
        case 6: return (4, 0, 0, 0)  // ARAT
        case 7 where subleaf == 0:
            // ERMS and FSRM: REP strings are copied by page.
            return (0, bits([9] + bits(of: [(.bmi1, 3), (.avx2, 5), (.bmi2, 8), (.pcid, 10), (.sha, 29)])), 0, bits([4]))
        case 0xB:
            switch subleaf {
            case 0: return (0, 1, 0x100, index)
            case 1: return (countBits, count, 0x201, index)
            default: return (0, 0, subleaf, index)
            }
        case 0xD where features.contains(.avx): return extendedState(subleaf)
        // The counter's frequency as a multiple of the crystal's, in Hz: as much as fits.
        case 0x15: return frequency < 4_000_000 ? (1, 1, UInt32(frequency) * 1000, 0) : (1, 32, UInt32(truncatingIfNeeded: frequency * 1000 / 32), 0)
        case 0x16: return (UInt32(frequency / 1000), UInt32(frequency / 1000), 100, 0)
        case 0x4000_0000: return (0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x0000_004D)  // KVMKVMKVM
        case 0x4000_0001: return (1 << 1 | 1 << 3 | 1 << 24, 0, 0, 0)  // NOP_IO_DELAY, CLOCKSOURCE2, STABLE
        case 0x8000_0000: return (0x8000_0008, 0, 0, 0)
        case 0x8000_0001: return (0, 0, bits([0] + bits(of: [(.lzcnt, 5)])), 1 << 11 | 1 << 20 | 1 << 29)  // LAHF; SYSCALL NX LM
        case 0x8000_0002...0x8000_0004: return brand(leaf - 0x8000_0002)
        case 0x8000_0006: return (0, 0, 512 << 16 | 8 << 12 | 64, 0)
        case 0x8000_0007: return (0, 0, 0, 1 << 8)  // invariant TSC
        case 0x8000_0008: return (0x3028, 0, 0, 0)  // 40 physical, 48 linear address bits
        default: return (0, 0, 0, 0)
        }
    }

    private func bits(of table: [(X86Features, UInt32)]) -> [UInt32] { table.filter { features.contains($0.0) }.map(\.1) }
    /// x87, SSE and AVX, in the standard form.
    private func extendedState(_ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) {
        switch subleaf {
        case 0: return (7, UInt32(ExtendedStateArea.size), UInt32(ExtendedStateArea.size), 0)
        case 2: return (256, UInt32(ExtendedStateArea.upperVectors), 0, 0)
        default: return (0, 0, 0, 0)
        }
    }
    private func bits(_ positions: [UInt32]) -> UInt32 { positions.reduce(0) { $0 | 1 << $1 } }
    private var countBits: UInt32 { UInt32(32 - (count - 1).leadingZeroBitCount) }
    private func cache(_ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) {
        // type, level, ways, sets: 32 KiB L1, 512 KiB L2; lines of 64 bytes
        let caches: [(UInt32, UInt32, UInt32, UInt32)] = [(1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 8, 1024)]
        guard Int(subleaf) < caches.count else { return (0, 0, 0, 0) }
        let (type, level, ways, sets) = caches[Int(subleaf)]
        return (type | level << 5 | 1 << 8 | (count - 1) << 26, (ways - 1) << 22 | 63, sets - 1, 0)
    }
    private func brand(_ part: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) {
        let text = Array("swift-virtualization software CPU".utf8) + [UInt8](repeating: 0, count: 48)
        func word(_ n: Int) -> UInt32 {
            let at = Int(part) * 16 + n * 4
            return (0..<4).reduce(0) { $0 | UInt32(text[at + $1]) << UInt32(8 * $1) }
        }
        return (word(0), word(1), word(2), word(3))
    }
}
