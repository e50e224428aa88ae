import CX86

/// Where the guest's calls will return to, in translated code: the host's own stack of return addresses, so that the host
/// predicts the guest's returns.
///
/// A call in translated code pushes the linear address of its page and calls the target's code; a return takes the guest's
/// return address from the guest's stack and returns on the host. Where that lands, the page and the offset of the call must
/// agree with the address; if not, the target is looked for as any other branch's. So the stack is only a guess, of which
/// nothing the guest can see depends. Each privilege has its own: no guest's return ends in code of the other.
///
/// The stack is 256 KiB at a multiple of its size. It is used from 64 bytes below the end down to 64 KiB below, then begun
/// anew. What lies below is for signal handlers, which run on it.
struct ReturnStack {
    static let size = 256 << 10
    /// Whether there is room: bit 16 of the stack pointer.
    static let room: Int32 = 0x1_0000
    private static let reserve: UInt64 = 64
    static let last = UInt64(size - 1)
    /// The stack pointer of the empty stack that `pointer` belongs to.
    @inline(__always) static func base(_ pointer: UInt64) -> UInt64 { (pointer | last) + 1 - reserve }

    private let memory = cx_map_zeroed(UInt(3 * size))
    /// The empty stacks of the supervisor and of the user.
    private let base: (UInt64, UInt64)
    /// The stack pointer of the privilege that does not run.
    private var other: UInt64
    private var isUser = false

    init() {
        let start = (UInt64(UInt(bitPattern: memory)) | Self.last) + 1
        base = (start + UInt64(Self.size) - Self.reserve, start + UInt64(2 * Self.size) - Self.reserve)
        other = base.1
    }
    func deallocate() { cx_unmap(memory, UInt(3 * Self.size)) }

    /// - Parameters:
    ///   - empty: where a return goes that has no call. It lies at the base.
    ///   - unknown: where one goes whose call was interpreted.
    func prepare(_ s: CPU, empty: Int, unknown: Int) {
        for base in [base.0, base.1] {
            let cells = UnsafeMutablePointer<Int>(bitPattern: UInt(base)).unsafelyUnwrapped
            cells[0] = empty
            cells[2] = unknown
        }
        s.pointee.return_stack = isUser ? base.1 : base.0
    }
    mutating func select(_ s: CPU, user: Bool) {
        if user == isUser { return }
        isUser = user
        (s.pointee.return_stack, other) = (other, s.pointee.return_stack)
    }
    /// Forgets all calls of a privilege: its code may be elsewhere now.
    mutating func forget(_ s: CPU, user: Bool) {
        if user == isUser { s.pointee.return_stack = user ? base.1 : base.0 } else { other = user ? base.1 : base.0 }
    }
}

/// What interpreted calls and returns do, so that the depth stays right.
@inline(__always) func noteCall(_ s: CPU) {
    var top = s.pointee.return_stack
    let base = ReturnStack.base(top)
    if top & UInt64(ReturnStack.room) == 0 { top = base }
    // SAFETY: the stack's memory, see ReturnStack; its last 64 bytes hold the address of `unknown`.
    let unknown = UnsafePointer<UInt64>(bitPattern: UInt(base + 16)).unsafelyUnwrapped.pointee
    UnsafeMutablePointer<UInt64>(bitPattern: UInt(top - 16)).unsafelyUnwrapped.pointee = unknown
    s.pointee.return_stack = top - 16
}
@inline(__always) func noteReturn(_ s: CPU) {
    let top = s.pointee.return_stack
    if top != ReturnStack.base(top) { s.pointee.return_stack = top + 16 }
}
