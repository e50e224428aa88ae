/// Jumps forward to one place that is not written yet: never more than four.
struct Jumps {
    private var places: InlineArray<4, UnsafeMutablePointer<UInt8>?> = InlineArray(repeating: nil)
    private var count = 0

    init() {}
    init(_ jump: UnsafeMutablePointer<UInt8>) { append(jump) }
    mutating func append(_ jump: UnsafeMutablePointer<UInt8>) {
        places[count] = jump
        count += 1
    }
    /// They lead to where `code` goes on.
    func patch(_ code: inout Assembler) {
        for index in 0..<count { if let jump = places[index] { code.patch(jump) } }
    }
}
