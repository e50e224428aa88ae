import Foundation
import MachineLibrary

/// A pseudo-terminal for a console that another program connects to.
enum PseudoTerminal {
    static func open() throws -> (handle: FileHandle, path: String) {
        let primary = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)
        guard primary >= 0, grantpt(primary) == 0, unlockpt(primary) == 0, let name = ptsname(primary) else {
            throw LibraryError("cannot open a pseudo-terminal: \(String(cString: strerror(errno)))")
        }
        let path = String(cString: name)
        // Held open, so that the guest's output is kept until somebody connects.
        let secondary = Foundation.open(path, O_RDWR | O_NOCTTY | O_CLOEXEC)
        var settings = termios()
        if tcgetattr(secondary, &settings) == 0 {
            cfmakeraw(&settings)
            tcsetattr(secondary, TCSANOW, &settings)
        }
        return (FileHandle(fileDescriptor: primary, closeOnDealloc: true), path)
    }
}
