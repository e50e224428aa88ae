import Foundation
import Virtualization

/// The console ports through which a command runs in a guest: vz.control, vz.stdin, vz.stdout and vz.stderr.
final class CommandPorts: @unchecked Sendable {  // `status` is written by the control thread before `finished` is dispatched
    let device = VZVirtioConsoleDeviceConfiguration()
    private(set) var status: Int32?
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

    /// Sends the command and waits for its status on a thread of its own; `finished` comes on the main queue.
    func begin(_ finished: @escaping @Sendable () -> Void) {
        toGuest.fileHandleForWriting.write(Data((Data(shellCommand.utf8).base64EncodedString() + "\n").utf8))
        let descriptor = fromGuest.fileHandleForReading.fileDescriptor
        Thread { [self] in
            var text = ""
            var buffer = [UInt8](repeating: 0, count: 256)
            while true {
                let count = read(descriptor, &buffer, buffer.count)
                if count < 0, errno == EINTR { continue }
                if count <= 0 { return }
                text += String(decoding: buffer.prefix(count), as: UTF8.self)
                guard text.hasSuffix("\n"), let word = text.split(whereSeparator: \.isWhitespace).last, let value = Int32(word) else { continue }
                lock.withLock { status = value }
                DispatchQueue.main.async(execute: finished)
                return
            }
        }.start()
    }
    /// The guest is off: whatever it wrote has arrived.
    func drain() {
        for _ in 0..<100 where lock.withLock({ status }) == nil { usleep(10_000) }
    }
}
