import Foundation
import Virtualization

/// The console ports through which a command runs in a guest: vz.control, vz.stdin, vz.stdout and vz.stderr.
final class CommandPorts: @unchecked Sendable {  // `reported` is behind the lock, everything else fixed after init
    let device = VZVirtioConsoleDeviceConfiguration()
    private var reported: Int32?
    /// The command's, once the guest has said it.
    var status: Int32? { lock.withLock { reported } }
    private let command: [String]
    private let toGuest = Pipe()
    private let fromGuest = Pipe()
    private let lock = NSLock()

    init(command: [String]) {
        self.command = command
        signal(SIGPIPE, SIG_IGN)
        // Port 0 is reserved for a console by the driver's queue layout; it stays silent.
        add(0, nil, nil, nil, isConsole: true)
        add(1, "vz.control", toGuest.fileHandleForReading, fromGuest.fileHandleForWriting)
        add(2, "vz.stdin", .standardInput, nil)
        add(3, "vz.stdout", nil, .standardOutput)
        add(4, "vz.stderr", nil, .standardError)
    }
    private func add(_ number: Int, _ name: String?, _ input: FileHandle?, _ output: FileHandle?, isConsole: Bool = false) {
        let port = VZVirtioConsolePortConfiguration()
        port.name = name
        port.isConsole = isConsole
        if input != nil || output != nil {
            port.attachment = VZFileHandleSerialPortAttachment(fileHandleForReading: input, fileHandleForWriting: output)
        }
        device.ports[number] = port
    }

    /// One argument is a shell command line; several are a program and its arguments.
    private var shellCommand: String {
        if command.count == 1 { return command[0] }
        return command.map { "'" + $0.replacingOccurrences(of: "'", with: "'\\''") + "'" }.joined(separator: " ")
    }

    /// What the guest has come to.
    enum News: Sendable { case finished, restarted }

    /// Sends the command and waits for news on a thread of its own; they come on the main queue. Nobody runs the command a second time:
    /// a guest that restarts has lost it.
    func begin(_ news: @escaping @Sendable (News) -> Void) {
        toGuest.fileHandleForWriting.write(Data((Data(shellCommand.utf8).base64EncodedString() + "\n").utf8))
        let descriptor = fromGuest.fileHandleForReading.fileDescriptor
        Thread { [self] in
            guard let stream = fdopen(descriptor, "r") else { return }
            // A guest may write anything, for ever: longer lines come in pieces.
            var line = [CChar](repeating: 0, count: 256)
            var isReady = false
            while fgets(&line, Int32(line.count), stream) != nil {
                let words = String(decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self).split(whereSeparator: \.isWhitespace)
                if words.first == "ready" {
                    if isReady { return DispatchQueue.main.async { news(.restarted) } }
                    isReady = true
                } else if let value = words.last.flatMap({ Int32($0) }), status == nil {
                    lock.withLock { reported = value }
                    DispatchQueue.main.async { news(.finished) }
                }
            }
        }.start()
    }
    /// The guest is off: whatever it wrote has arrived.
    func drain() {
        for _ in 0..<100 where status == nil { usleep(10_000) }
    }
}
