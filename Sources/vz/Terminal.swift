import Foundation

/// The terminal of this process, if it has one: raw while a guest's console is on it, as it was on every way out.
enum Terminal {
    nonisolated(unsafe) private static var saved: termios?  // main thread, and the exit handler after it

    static var isInteractive: Bool { isatty(0) == 1 && isatty(1) == 1 }

    static func makeRaw() {
        var settings = termios()
        guard tcgetattr(0, &settings) == 0 else { return }
        if saved == nil {
            saved = settings
            atexit { Terminal.restore() }
        }
        cfmakeraw(&settings)
        tcsetattr(0, TCSANOW, &settings)
    }
    static func restore() {
        guard var settings = saved else { return }
        tcsetattr(0, TCSANOW, &settings)
    }
    static var size: (columns: Int, rows: Int)? {
        var size = winsize()
        guard ioctl(1, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return nil }
        return (Int(size.ws_col), Int(size.ws_row))
    }
    /// Progress and errors, never on standard output. Carriage returns in case the terminal is raw.
    static func say(_ text: String) { FileHandle.standardError.write(Data("vz: \(text)\r\n".utf8)) }
}
