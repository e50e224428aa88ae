import Foundation

/// How long tests with random input go on: a fixed number of cases, always the same, or with VZ_FUZZ_SECONDS as many others as fit.
public enum Fuzzing {
    public static func seeds(_ count: Int) -> AnySequence<Int> {
        guard let seconds = ProcessInfo.processInfo.environment["VZ_FUZZ_SECONDS"].flatMap({ Double($0) }) else { return AnySequence(0..<count) }
        let end = Date().addingTimeInterval(seconds)
        var seed = Int(UInt32.random(in: 0...UInt32.max)) << 16
        return AnySequence(
            AnyIterator {
                Date() < end
                    ? {
                        seed += 1; return seed
                    }() : nil
            })
    }
}
