/// A release of Debian that images can be built from.
public enum DebianRelease: String, CaseIterable, Sendable {
    case bookworm, trixie

    public var number: Int {
        switch self {
        case .bookworm: 12
        case .trixie: 13
        }
    }
    /// For people: "Debian 12 (bookworm)".
    public var title: String { "Debian \(number) (\(rawValue))" }
}
