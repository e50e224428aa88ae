import Foundation

/// Files that are not complete: Ctrl-C and a termination remove them, and end the process as ever.
enum Scratch {
    /// A few C strings, since a signal handler may touch little; written before the handler is there.
    private nonisolated(unsafe) static let paths = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>.allocate(capacity: 4)
    private nonisolated(unsafe) static var count = 0

    static func remove(_ files: [URL]) {
        for file in files.prefix(4 - count) {
            paths[count] = strdup(file.path)
            count += 1
        }
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal(number) { number in
                for index in 0..<Scratch.count { if let path = Scratch.paths[index] { unlink(path) } }
                signal(number, SIG_DFL)
                raise(number)
            }
        }
    }
}
