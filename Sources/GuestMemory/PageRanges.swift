import Glibc

/// Where there is something in a file or in a mapping.
enum PageRanges {
    /// The parts of a file that are no holes, from `start` on, as offsets from there.
    static func data(_ descriptor: Int32, from start: Int, count: Int) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        var at = start
        let end = start + count
        while at < end {
            let data = lseek(descriptor, off_t(at), 3)  // SEEK_DATA
            if data < 0 { return Glibc.errno == ENXIO ? ranges : [0..<count] }
            guard data < end else { return ranges }
            let hole = lseek(descriptor, data, 4)  // SEEK_HOLE
            let stop = hole < 0 ? end : min(Int(hole), end)
            ranges.append(Int(data) - start..<stop - start)
            at = stop
        }
        return ranges
    }
    /// Pages of a mapping that are no file's, in memory or swapped out (proc(5), pagemap): those that were written after a mapping
    /// copy-on-write. All of them where the host does not say.
    static func `private`(_ mapping: UnsafeRawPointer, _ range: Range<Int>) -> [Range<Int>] {
        let fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return [range] }
        defer { close(fd) }
        var ranges: [Range<Int>] = []
        var entries = [UInt64](repeating: 0, count: 8192)
        var page = range.lowerBound / 4096
        let last = (range.upperBound + 4095) / 4096
        var first = -1
        while page < last {
            let wanted = min(entries.count, last - page)
            guard pread(fd, &entries, wanted * 8, off_t((Int(bitPattern: mapping) / 4096 + page) * 8)) == wanted * 8 else { return [range] }
            for index in 0..<wanted {
                // Bits 63 and 62: in memory, swapped out; 61: a page of a file, or shared.
                let isPrivate = entries[index] >> 62 != 0 && entries[index] >> 61 & 1 == 0
                if isPrivate, first < 0 { first = page + index }
                if !isPrivate, first >= 0 {
                    ranges.append(first * 4096..<(page + index) * 4096)
                    first = -1
                }
            }
            page += wanted
        }
        if first >= 0 { ranges.append(first * 4096..<last * 4096) }
        return ranges
    }
    /// In ascending order, without overlaps.
    static func merged(_ ranges: [Range<Int>]) -> [Range<Int>] {
        var result: [Range<Int>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) where !range.isEmpty {
            if let last = result.last, range.lowerBound <= last.upperBound {
                result[result.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                result.append(range)
            }
        }
        return result
    }
    /// What of ascending ranges is in none of `others`.
    static func subtracting(_ others: [Range<Int>], from ranges: [Range<Int>]) -> [Range<Int>] {
        let others = merged(others)
        var result: [Range<Int>] = []
        for range in ranges {
            var at = range.lowerBound
            for other in others where other.overlaps(range) {
                if other.lowerBound > at { result.append(at..<other.lowerBound) }
                at = max(at, other.upperBound)
            }
            if at < range.upperBound { result.append(at..<range.upperBound) }
        }
        return result
    }
}
