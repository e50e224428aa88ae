import CLinux
import Foundation
import Testing

@Suite(.serialized) struct ColdCodeTests {
    /// Resident memory of files, in KiB.
    private func resident() throws -> Int {
        let line = try String(contentsOfFile: "/proc/self/status", encoding: .utf8).split(separator: "\n").first { $0.hasPrefix("RssFile") }
        return try #require(line?.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Int($0) })
    }
    /// What was forgotten comes back as it was, also under a thread that runs in it.
    @Test func codeGoesAndComesBack() throws {
        @Sendable func work() -> String {
            let date = ISO8601DateFormatter().string(from: Date(timeIntervalSince1970: 1_700_000_000))
            let numbers = try? JSONDecoder().decode([Double].self, from: Data("[1.5, 2.25e3]".utf8))
            return "\(date) \(numbers ?? []) \("äöü".uppercased())"
        }
        let before = work()
        let full = try resident()
        clinux_forget_cold_code()
        let left = try resident()
        #expect(left < full * 3 / 4, "\(full) KiB, then \(left) KiB")
        #expect(work() == before)
        let group = DispatchGroup()
        let results = (0..<2).map { _ in UnsafeMutablePointer<Int>.allocate(capacity: 1) }
        for result in results {
            result.initialize(to: 0)
            nonisolated(unsafe) let result = result
            DispatchQueue.global().async(group: group) { for _ in 0..<200 where work() == before { result.pointee += 1 } }
        }
        for _ in 0..<200 { clinux_forget_cold_code() }
        group.wait()
        #expect(results.allSatisfy { $0.pointee == 200 })
        for result in results { result.deallocate() }
    }
}
