import Foundation

/// A percentage on the terminal, if there is one, for what takes a while.
final class Percentage {
    private let what: String
    private let begin = Date()
    private var shown = -1
    init(_ what: String) { self.what = what }
    func show(_ part: Int) {
        guard part > shown, isatty(2) == 1, Date().timeIntervalSince(begin) > 0.5 else { return }
        shown = part
        FileHandle.standardError.write(Data("\rvz: \(what) \(part) %".utf8))
    }
    func end() { if shown >= 0 { FileHandle.standardError.write(Data("\r\n".utf8)) } }
}
