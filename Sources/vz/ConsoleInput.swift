import Foundation

/// Hands standard input on to a guest's console and watches for the escape sequence: Ctrl-] three times.
final class ConsoleInput: @unchecked Sendable {  // its thread is the only user after init
    private static let escape: UInt8 = 0x1D
    let pipe = Pipe()

    /// - Parameter escaped: called on the reading thread.
    init(escaped: @escaping @Sendable () -> Void) {
        let output = pipe.fileHandleForWriting.fileDescriptor
        signal(SIGPIPE, SIG_IGN)
        let thread = Thread {
            var buffer = [UInt8](repeating: 0, count: 1024)
            var count = 0
            while true {
                let done = read(0, &buffer, buffer.count)
                if done < 0, errno == EINTR { continue }
                if done <= 0 { break }
                for byte in buffer.prefix(done) {
                    count = byte == Self.escape ? count + 1 : 0
                    if count == 3 { escaped() }
                }
                _ = write(output, buffer, done)
            }
            close(output)
        }
        thread.start()
    }
}
