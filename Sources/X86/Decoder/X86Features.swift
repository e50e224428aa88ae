import CX86

/// What a processor has beyond x86-64-v1 with SSE3 and CMPXCHG16B. Intel SDM vol. 2 CPUID; x86-64 psABI, micro-architecture levels.
package struct X86Features: OptionSet, Sendable, Hashable {
    package let rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let ssse3 = X86Features(rawValue: 1 << 0)
    package static let sse41 = X86Features(rawValue: 1 << 1)
    package static let sse42 = X86Features(rawValue: 1 << 2)
    package static let popcnt = X86Features(rawValue: 1 << 3)
    package static let movbe = X86Features(rawValue: 1 << 4)
    package static let aes = X86Features(rawValue: 1 << 5)
    package static let pclmul = X86Features(rawValue: 1 << 6)
    package static let sha = X86Features(rawValue: 1 << 7)
    /// AVX with XSAVE.
    package static let avx = X86Features(rawValue: 1 << 8)
    package static let avx2 = X86Features(rawValue: 1 << 9)
    package static let f16c = X86Features(rawValue: 1 << 10)
    package static let fma = X86Features(rawValue: 1 << 11)
    package static let bmi1 = X86Features(rawValue: 1 << 12)
    package static let bmi2 = X86Features(rawValue: 1 << 13)
    package static let lzcnt = X86Features(rawValue: 1 << 14)
    /// Process-context identifiers and INVPCID: done here, whatever the host has. In no level, as many processors that a machine may move to
    /// have none (AMD's until Zen 3).
    package static let pcid = X86Features(rawValue: 1 << 15)

    /// The levels of the psABI.
    package static let v1: X86Features = []
    package static let v2: X86Features = [.ssse3, .sse41, .sse42, .popcnt]
    package static let v3: X86Features = [.ssse3, .sse41, .sse42, .popcnt, .movbe, .avx, .avx2, .f16c, .fma, .bmi1, .bmi2, .lzcnt]

    /// By name, in the order of their bits.
    package static let names = [
        "ssse3", "sse4.1", "sse4.2", "popcnt", "movbe", "aes", "pclmulqdq", "sha", "avx", "avx2", "f16c", "fma", "bmi1", "bmi2", "lzcnt", "pcid",
    ]
    package init(names: Set<String>) {
        self.init(rawValue: Self.names.indices.reduce(0) { names.contains(Self.names[$1]) ? $0 | 1 << UInt32($1) : $0 })
    }
    package var names: [String] { Self.names.indices.filter { rawValue >> UInt32($0) & 1 != 0 }.map { Self.names[$0] } }

    /// What this machine's processor and kernel let a program use.
    package static let host: X86Features = {
        func cpuid(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
            var out: [UInt32] = [0, 0, 0, 0]
            cx_cpuid(leaf, subleaf, &out)
            return out
        }
        let one = cpuid(1)[2]
        let seven = cpuid(0)[0] >= 7 ? cpuid(7)[1] : 0
        let extended = cpuid(0x8000_0000)[0] >= 0x8000_0001 ? cpuid(0x8000_0001)[2] : 0
        let savesVectors = one >> 27 & 1 != 0 && cx_xgetbv() & 6 == 6
        var features: X86Features = [.pcid]
        func has(_ word: UInt32, _ bit: UInt32, _ feature: X86Features, if condition: Bool = true) {
            if condition, word >> bit & 1 != 0 { features.insert(feature) }
        }
        has(one, 9, .ssse3)
        has(one, 19, .sse41)
        has(one, 20, .sse42)
        has(one, 23, .popcnt)
        has(one, 22, .movbe)
        has(one, 25, .aes)
        has(one, 1, .pclmul)
        has(seven, 29, .sha)
        has(one, 28, .avx, if: savesVectors)
        let avx = features.contains(.avx)
        has(seven, 5, .avx2, if: avx)
        has(one, 29, .f16c, if: avx)
        has(one, 12, .fma, if: avx)
        has(seven, 3, .bmi1)
        has(seven, 8, .bmi2)
        has(extended, 5, .lzcnt)
        return features
    }()
}
