/// One answer of CPUID, as a guest's processor gives it.
package struct CPUIDLeaf: Equatable, Sendable, Codable {
    package enum Register: Sendable { case eax, ebx, ecx, edx }

    package var leaf: UInt32
    package var subleaf: UInt32
    package var eax: UInt32
    package var ebx: UInt32
    package var ecx: UInt32
    package var edx: UInt32
    package init(_ leaf: UInt32, _ subleaf: UInt32, _ values: (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32)) {
        self.leaf = leaf
        self.subleaf = subleaf
        (eax, ebx, ecx, edx) = values
    }
    /// Whether the leaf's answer depends on ECX.
    package static func isIndexed(_ leaf: UInt32) -> Bool {
        switch leaf {
        case 4, 7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1A...0x20, 0x8000_001D, 0x8000_0020, 0x8000_0026: true
        default: false
        }
    }
    package func answers(_ leaf: UInt32, _ subleaf: UInt32) -> Bool { self.leaf == leaf && (self.subleaf == subleaf || !Self.isIndexed(leaf)) }
    package var values: (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32) { (eax, ebx, ecx, edx) }
    package subscript(_ register: Register) -> UInt32 {
        get {
            switch register {
            case .eax: eax
            case .ebx: ebx
            case .ecx: ecx
            case .edx: edx
            }
        }
        set {
            switch register {
            case .eax: eax = newValue
            case .ebx: ebx = newValue
            case .ecx: ecx = newValue
            case .edx: edx = newValue
            }
        }
    }
}
