/// Linked edges of programs to other pages, by what they stand on: that two pages lie at a distance. See `TranslationCache.keep`.
struct UserCrossings {
    /// What edges of a page that lead to one other page stand on.
    struct Neighbour {
        /// The other page, and how far it lies from the first.
        let page: Int
        let distance: Int64
        var edges: [Int]
    }
    /// By the page that the edges lie in.
    private var neighbours: [UInt: [Neighbour]] = [:]
    /// Those that lead to an instruction that goes on in the page behind their target's.
    private var leadingOn: [Int] = []
    /// Neighbours in the order in which they came, as what an address space has in place has to be asked of new ones only. All of those
    /// there are have come since the first of these, which is the n-th of all.
    private var news: [(source: UInt, page: Int, distance: Int64)] = []
    private var firstNews = 0
    private static let mostNews = 1 << 16

    /// How many neighbours there have been so far.
    var newest: Int { firstNews + news.count }
    /// Whether it is time to begin anew.
    var isLong: Bool { news.count > Self.mostNews }

    /// - Parameter isNew: false for an edge that is already among those to this page.
    mutating func add(_ edge: Int, from source: UInt, to page: Int, distance: Int64, isNew: Bool, leadsOn: Bool) {
        if leadsOn { leadingOn.append(edge) }
        if isNew, add(edge, to: &neighbours[source, default: []], page, distance) { news.append((source, page, distance)) }
    }
    /// True for a new neighbour.
    private func add(_ edge: Int, to list: inout [Neighbour], _ page: Int, _ distance: Int64) -> Bool {
        guard let known = list.firstIndex(where: { $0.page == page && $0.distance == distance }) else {
            list.append(Neighbour(page: page, distance: distance, edges: [edge]))
            return true
        }
        list[known].edges.append(edge)
        return false
    }
    mutating func takeAll() -> [Neighbour] {
        defer { removeAll() }
        return Array(neighbours.values.joined())
    }
    mutating func removeAll() {
        neighbours.removeAll(keepingCapacity: true)
        firstNews += news.count
        news.removeAll(keepingCapacity: true)
        leadingOn.removeAll(keepingCapacity: true)
    }
    mutating func takeLeadingOn() -> [Int] {
        guard !leadingOn.isEmpty else { return [] }
        defer { leadingOn.removeAll(keepingCapacity: true) }
        return leadingOn
    }
    /// Neighbours of a page at an address that are not where they should be.
    mutating func takeMisplaced(from source: UInt, at linear: UInt64, _ place: (UInt) -> UInt64?) -> [Neighbour] {
        guard let list = neighbours[source] else { return [] }
        var taken: [Neighbour] = []
        for neighbour in list where place(UInt(bitPattern: neighbour.page)) != linear &+ UInt64(bitPattern: neighbour.distance) {
            if let neighbour = take(source, neighbour.page, neighbour.distance) { taken.append(neighbour) }
        }
        return taken
    }
    /// The same of all that came behind the n-th and whose first page is in place.
    mutating func takeMisplaced(since: Int, _ place: (UInt) -> UInt64?) -> [Neighbour] {
        var taken: [Neighbour] = []
        for (source, page, distance) in news.dropFirst(max(since - firstNews, 0)) {
            guard let linear = place(source), place(UInt(bitPattern: page)) != linear &+ UInt64(bitPattern: distance) else { continue }
            if let neighbour = take(source, page, distance) { taken.append(neighbour) }
        }
        return taken
    }
    private mutating func take(_ source: UInt, _ page: Int, _ distance: Int64) -> Neighbour? {
        guard let number = neighbours[source]?.firstIndex(where: { $0.page == page && $0.distance == distance }) else { return nil }
        return neighbours[source]?.remove(at: number)
    }
}
