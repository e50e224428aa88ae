/// One instruction of a block that is translated, and what was found out about it.
struct TranslationLine {
    var op: Op
    var handler: UInt
    var instruction: Instruction
    var plan: TranslationPlan
    var offset: Int
    /// Whether something may read the flags behind it.
    var liveAfter = true
    /// Its number in an `AccessTrial`.
    var site: Int8 = -1
    /// The conditional jump of a loop whose next turn follows in the segment.
    var isTurn = false
    /// A jump whose target follows in the segment.
    var isFollowed = false
    var memory: AccessWindow.Use?
    var stack: AccessWindow.Use?
}
