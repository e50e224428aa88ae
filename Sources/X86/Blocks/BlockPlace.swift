import CX86

/// Where a block runs, and as what.
struct BlockPlace {
    /// The linear address of its page.
    let page: UInt64
    let isUser: Bool
    let kind: CodeKind
    init(_ s: CPU) { (page, isUser, kind) = (s.pointee.block_base, s.pointee.cpl == 3, CodeKind(s)) }
}
