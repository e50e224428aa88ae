import CX86

/// A translated block as other processors can take it over: where it lies in its processor's code cache, and what in it depends on that. Further
/// operations with which translated code begins (`Head`) and the places that name something (`Fixup`) follow behind it, a word each.
///
/// Only first translations have one. What is translated again (`AccessTrial`) is a thousandth of all, and differs by what its processor has
/// seen of the operands.
struct TranslationImage {
    /// How far the parts of a code cache are filled. What a block has in each of them lies together.
    struct Extent {
        var code: Int32
        var cold: Int32
        var slots: Int32
        var executions: Int32
        var crossings: Int32
        var edges: Int32
    }
    /// What a place names.
    enum Target: UInt32 { case shared, code, cold, slots, executions, crossings, edge, operation, exit }
    /// A place in one of the block's two pieces, and what that names.
    struct Fixup {
        let word: UInt32
        init(_ place: Int, isCold: Bool, _ target: Target) { word = UInt32(truncatingIfNeeded: place) << 5 | (isCold ? 16 : 0) | target.rawValue }
        init(word: UInt32) { self.word = word }
        var place: Int { Int(word >> 5) }
        var isCold: Bool { word & 16 != 0 }
        var target: Int { Int(word & 15) }
    }
    /// An operation's number, and where it enters the second of the block's pieces.
    struct Head {
        let word: UInt32
        init(operation: Int, entry: Int) { word = UInt32(truncatingIfNeeded: entry) << 6 | UInt32(truncatingIfNeeded: operation) & 63 }
        init(word: UInt32) { self.word = word }
        var operation: Int { Int(word & 63) }
        var entry: Int { Int(word >> 6) }
    }

    /// Whose: see `SharedTranslations.join`.
    let owner: Int32
    /// Places in the owner's buffer where the block can be entered, if it begins with translated code.
    let entry: Int32
    let checked: Int32
    let flags: Int32
    let begin: Extent
    let end: Extent
    /// The block's first operation, and where that is.
    let first: x86_op
    let firstOffset: UInt32
    let operations: Int16
    /// What its counter begins with, if it has one.
    let executions: Int16
    let heads: UInt16
    let fixups: UInt16
}
