import Foundation
import Testing
import Virtualization

/// Files that integration tests boot: made by Scripts/test-assets.
enum TestAssets {
    static let directory: URL = {
        if let path = ProcessInfo.processInfo.environment["VZ_TEST_ASSETS"] { return URL(fileURLWithPath: path) }
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let process = Process()
        process.executableURL = root.appendingPathComponent("Scripts/test-assets")
        process.standardOutput = FileHandle.standardError
        do {
            try process.run()
            process.waitUntilExit()
        } catch { Issue.record("Scripts/test-assets cannot be run: \(error)") }
        return root.appendingPathComponent(".build/test-assets")
    }()
    static var kernel: URL { directory.appendingPathComponent("vmlinuz") }
    /// Debian's kernel for all machines, which has drivers built in that the one for clouds lacks; the RAM disk's modules are not for it.
    static var genericKernel: URL { directory.appendingPathComponent("vmlinuz-generic") }
    static var initialRamdisk: URL { directory.appendingPathComponent("initrd") }

    /// A fresh directory for one test, gone when the process ends: a test's disks and states are hundreds of megabytes.
    static func scratch() throws -> URL {
        let url = scratchOfProcess.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        return url
    }
    private static let scratchOfProcess: URL = {
        atexit { try? FileManager.default.removeItem(at: TestAssets.scratchName) }
        return scratchName
    }()
    private static let scratchName = FileManager.default.temporaryDirectory.appendingPathComponent("vz-tests-\(getpid())")
    static func disk(_ url: URL, size: Int) throws {
        _ = FileManager.default.createFile(atPath: url.path, contents: nil)
        try #require(truncate(url.path, size) == 0)
    }
}

/// A machine that runs a shell script in a busybox guest, driven from a test's thread.
final class TestGuest: NSObject, VZVirtualMachineDelegate, @unchecked Sendable {  // machine on `queue`, the rest locked
    let queue = DispatchQueue(label: "test-guest")
    let configuration = VZVirtualMachineConfiguration()
    private(set) var machine: VZVirtualMachine!
    private let input = Pipe()
    private let output = Pipe()
    private let lock = NSCondition()
    private var text = ""
    private var stops = 0
    private var failure: (any Error)?
    private var disconnections: [String] = []

    /// - Parameter script: run by the guest's init; then it powers off.
    init(_ script: String, cpus: Int = 1, memory: UInt64 = 256 << 20, arguments: String = "", configure: (TestGuest) throws -> Void = { _ in }) throws {
        super.init()
        let loader = VZLinuxBootLoader(kernelURL: TestAssets.kernel)
        loader.initialRamdiskURL = TestAssets.initialRamdisk
        loader.commandLine = "console=hvc0 quiet panic=-1 \(arguments) run=\(Data(script.utf8).base64EncodedString())"
        configuration.bootLoader = loader
        configuration.cpuCount = cpus
        configuration.memorySize = memory
        configuration.entropyDevices = [VZVirtioEntropyDeviceConfiguration()]
        let port = VZVirtioConsoleDeviceSerialPortConfiguration()
        port.attachment = VZFileHandleSerialPortAttachment(fileHandleForReading: input.fileHandleForReading, fileHandleForWriting: output.fileHandleForWriting)
        configuration.serialPorts = [port]
        try configure(self)
        machine = queue.sync { VZVirtualMachine(configuration: configuration, queue: queue) }
        queue.sync { machine.delegate = self }
        collect(output.fileHandleForReading)
    }

    /// A kernel without virtio drivers writes to the first serial port, and reads nothing. In `configure`.
    func boot(_ kernel: URL) {
        guard let old = configuration.bootLoader as? VZLinuxBootLoader else { return }
        let loader = VZLinuxBootLoader(kernelURL: kernel)
        loader.initialRamdiskURL = old.initialRamdiskURL
        loader.commandLine = old.commandLine.replacingOccurrences(of: "console=hvc0", with: "console=ttyS0")
        configuration.bootLoader = loader
        configuration.legacySerialOutput = output.fileHandleForWriting
    }

    /// Collects what a guest writes, until the pipe ends.
    private func collect(_ handle: FileHandle) {
        let descriptor = dup(handle.fileDescriptor)
        let box = WeakBox(self)
        Thread {
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = read(descriptor, &buffer, buffer.count)
                if count <= 0 { break }
                guard let guest = box.value else { break }
                guest.lock.withLock {
                    guest.text += String(decoding: buffer.prefix(count), as: UTF8.self)
                    guest.lock.broadcast()
                }
            }
            close(descriptor)
        }.start()
    }
    private final class WeakBox: @unchecked Sendable {
        weak var value: TestGuest?
        init(_ value: TestGuest) { self.value = value }
    }

    var transcript: String { lock.withLock { text } }
    func send(_ line: String) { input.fileHandleForWriting.write(Data((line + "\n").utf8)) }

    /// Waits until `condition` holds; false after the time.
    private func wait(_ seconds: Double, _ condition: () -> Bool) -> Bool {
        let end = Date().addingTimeInterval(seconds)
        lock.lock()
        defer { lock.unlock() }
        while !condition() { if !lock.wait(until: end) { return condition() } }
        return true
    }
    func waitFor(_ pattern: String, seconds: Double = 120) -> Bool { wait(seconds) { text.contains(pattern) } }
    /// False, too, when the machine stops with an error.
    func waitForStop(_ count: Int = 1, seconds: Double = 120) -> Bool {
        _ = wait(seconds) { stops >= count || failure != nil }
        if let failure = lock.withLock({ failure }) { Issue.record("the machine stopped: \(failure)") }
        return lock.withLock { stops >= count }
    }
    func waitForFailure(seconds: Double = 120) -> (any Error)? {
        _ = wait(seconds) { failure != nil }
        return lock.withLock { failure }
    }
    /// Reads up to `count` bytes of a pipe whose writing end this process holds, too: what has come when the guest has
    /// stopped, or when nothing has come for two minutes, is all there is.
    func readBytes(_ count: Int, from handle: FileHandle) -> [UInt8] {
        var bytes: [UInt8] = []
        var silence = 0
        while bytes.count < count, silence < 1200 {
            var request = pollfd(fd: handle.fileDescriptor, events: Int16(POLLIN), revents: 0)
            let stopped = lock.withLock { stops > 0 || failure != nil }
            guard poll(&request, 1, 100) > 0 else {
                if stopped { break }
                silence += 1
                continue
            }
            silence = 0
            bytes += handle.availableData
        }
        return bytes
    }
    func clearTranscript() { lock.withLock { text = "" } }

    // MARK: operations, waiting for their handlers

    private func perform(_ body: @escaping @Sendable (@escaping @Sendable ((any Error)?) -> Void) -> Void) throws {
        let done = DispatchSemaphore(value: 0)
        nonisolated(unsafe) var result: (any Error)?
        queue.async {
            body { error in
                result = error
                done.signal()
            }
        }
        try #require(done.wait(timeout: .now() + 60) == .success, "the completion handler did not come")
        if let result { throw result }
    }
    func start() throws {
        lock.withLock { failure = nil }
        try perform { done in self.machine.start { done($0.failure) } }
    }
    func stop() throws { try perform { done in self.machine.stop { done($0) } } }
    func pause() throws { try perform { done in self.machine.pause { done($0.failure) } } }
    func save(to url: URL) throws { try perform { done in self.machine.saveMachineStateTo(url: url) { done($0) } } }
    /// Returns how long the guest did not run, in seconds.
    func snapshot(to url: URL, disks: [URL]) throws -> TimeInterval {
        nonisolated(unsafe) var pause: TimeInterval = 0
        try perform { done in
            self.machine.takeSnapshot(to: url, disks: disks) {
                if case .success(let time) = $0 { pause = time }
                done($0.failure)
            }
        }
        return pause
    }
    func restore(from url: URL) throws {
        lock.withLock { failure = nil }
        try perform { done in self.machine.restoreMachineStateFrom(url: url) { done($0) } }
    }
    func resume() throws { try perform { done in self.machine.resume { done($0.failure) } } }
    var state: VZVirtualMachine.State { queue.sync { machine.state } }

    func guestDidStop(_ virtualMachine: VZVirtualMachine) {
        lock.withLock {
            stops += 1
            lock.broadcast()
        }
    }
    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error) {
        lock.withLock {
            failure = error
            lock.broadcast()
        }
    }
    func virtualMachine(_ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice, attachmentWasDisconnectedWithError error: any Error) {
        lock.withLock {
            disconnections.append(error.localizedDescription)
            lock.broadcast()
        }
    }
    /// Why network devices were disconnected: the sentence of the `count`th time.
    func waitForDisconnection(_ count: Int = 1, seconds: Double = 30) -> String? {
        _ = wait(seconds) { disconnections.count >= count }
        return lock.withLock { disconnections.count >= count ? disconnections[count - 1] : nil }
    }
    /// Switches a machine that still runs off.
    func finish() { if [.running, .paused].contains(state) { try? stop() } }
}

extension Result {
    var failure: (any Error)? { if case .failure(let error) = self { return error } else { return nil } }
}
