import LinuxSystem
import Synchronization

/// A console with one port or many. VIRTIO 1.2 § 5.3. Its work is done on the machine's event loop.
package final class ConsoleDevice: VirtioDevice {
    /// One port as configured.
    package struct PortConfiguration: Sendable {
        package var name: String?
        package var isConsole: Bool
        package var endpoint: ConsoleEndpoint
        package init(name: String?, isConsole: Bool, endpoint: ConsoleEndpoint) {
            self.name = name
            self.isConsole = isConsole
            self.endpoint = endpoint
        }
    }
    private enum Feature {
        static let size: UInt64 = 1 << 0
        static let multiPort: UInt64 = 1 << 1
    }
    /// Control messages. § 5.3.6.2.
    private enum Control {
        static let deviceReady: UInt16 = 0
        static let deviceAdd: UInt16 = 1
        static let portReady: UInt16 = 3
        static let consolePort: UInt16 = 4
        static let resize: UInt16 = 5
        static let portOpen: UInt16 = 6
        static let portName: UInt16 = 7
    }
    private struct State {
        var queues: [Virtqueue?] = []
        var multiPort = false
        var columns: UInt16 = 0
        var rows: UInt16 = 0
        var activation: VirtioActivation?
        var messages: [[UInt8]] = []
    }
    private let ports: [Int: ConsolePort]
    private let configuration: [Int: PortConfiguration]
    private let maximumPorts: Int
    private let offersMultiPort: Bool
    private let loop: EventLoop
    private let state = Mutex(State())
    /// The guest opened (true) or closed a port.
    private let portChanged: @Sendable (Int, Bool) -> Void

    /// - Parameters:
    ///   - ports: by port number.
    ///   - multiPort: false for a plain serial console with port 0 only.
    package init(
        ports: [Int: PortConfiguration], maximumPorts: Int, multiPort: Bool, loop: EventLoop,
        portChanged: @escaping @Sendable (Int, Bool) -> Void = { _, _ in }
    ) {
        self.loop = loop
        self.maximumPorts = max(maximumPorts, 1)
        configuration = ports
        offersMultiPort = multiPort
        self.portChanged = portChanged
        self.ports = ports.mapValues { ConsolePort(endpoint: $0.endpoint, loop: loop) }
    }

    package var deviceType: UInt16 { 3 }
    package var pciClass: UInt32 { 0x078000 }
    package var features: UInt64 { Feature.size | (offersMultiPort ? Feature.multiPort : 0) }
    package var queueSizes: [UInt16] { Array(repeating: 64, count: offersMultiPort ? 2 + 2 * max(maximumPorts, 1) : 2) }
    package func configRead(_ offset: Int, size: Int) -> UInt64 {
        let (columns, rows) = state.withLock { ($0.columns, $0.rows) }
        var bytes: [UInt8] = []
        for value in [columns, rows] { bytes += [UInt8(truncatingIfNeeded: value), UInt8(value >> 8)] }
        for shift in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: maximumPorts >> shift)) }
        return configField(bytes + [0, 0, 0, 0], offset, size)
    }

    /// Queue numbers: port 0 has 0 and 1, the control queues are 2 and 3, port n has 2n + 2 and 2n + 3. § 5.3.2.
    private static func receiveQueue(_ port: Int) -> Int { port == 0 ? 0 : 2 * port + 2 }
    private static func port(ofQueue queue: Int) -> Int { queue < 2 ? 0 : (queue - 2) / 2 }

    package func queueNotified(_ index: Int) {
        loop.async { [weak self] in self?.serve(index) }
    }
    private func serve(_ index: Int) {
        let (multiPort, active) = state.withLock { ($0.multiPort, $0.activation != nil) }
        guard active else { return }
        if multiPort, index == 2 { return sendMessages() }
        if multiPort, index == 3 { return receiveControl() }
        guard let port = ports[Self.port(ofQueue: index)] else { return }
        if index & 1 == 0 { port.pumpInput() } else { port.pumpOutput() }
    }

    package func activate(_ activation: VirtioActivation) {
        loop.async { [self] in
            let multiPort = activation.features & Feature.multiPort != 0
            state.withLock {
                $0.activation = activation
                $0.queues = activation.queues
                $0.multiPort = multiPort
                $0.messages = activation.image?.lists["messages"] ?? []
                if let image = activation.image {
                    $0.columns = UInt16(clamping: image.numbers["columns"] ?? 0)
                    $0.rows = UInt16(clamping: image.numbers["rows"] ?? 0)
                }
            }
            for (number, port) in ports {
                let receive = Self.receiveQueue(number)
                guard receive + 1 < activation.queues.count, multiPort || number == 0 else { continue }
                if !multiPort { port.isOpen = true }
                if let image = activation.image {
                    port.isOpen = image.numbers["open \(number)"] == 1
                    port.skip = Int(clamping: image.numbers["sent \(number)"] ?? 0)
                }
                // The end of a one-way channel is an end of file for its reader in the guest.
                if multiPort, let configured = configuration[number], !configured.isConsole, configured.endpoint.output < 0 {
                    port.inputFinished = { [weak self] in
                        guard let self else { return }
                        post(message(number, Control.portOpen, 0))
                    }
                }
                port.connect(receive: activation.queues[receive], transmit: activation.queues[receive + 1], needsReset: activation.needsReset)
            }
            if multiPort, activation.image != nil { sendMessages() }
        }
    }
    package func reset() {
        let done: @Sendable () -> Void = { [self] in
            state.withLock {
                $0.activation = nil
                $0.queues = []
                $0.messages = []
            }
            for port in ports.values { port.disconnect() }
        }
        if loop.isCurrent { return done() }
        guard let finished = try? EventFD() else { return }
        loop.async {
            done()
            finished.signal()
        }
        finished.wait()
    }

    package func makeImage() -> DeviceImage {
        var image = DeviceImage()
        state.withLock { state in
            image.numbers["columns"] = UInt64(state.columns)
            image.numbers["rows"] = UInt64(state.rows)
            image.lists["messages"] = state.messages
        }
        for (number, port) in ports {
            image.numbers["open \(number)"] = port.isOpen ? 1 : 0
            image.numbers["sent \(number)"] = UInt64(port.sentOfPending)
        }
        return image
    }

    /// Tells the guest the size of the terminal behind port 0.
    package func resize(columns: UInt16, rows: UInt16) {
        loop.async { [self] in
            let (activation, multiPort) = state.withLock { state in
                (state.columns, state.rows) = (columns, rows)
                return (state.activation, state.multiPort)
            }
            guard let activation else { return }
            if multiPort {
                for (number, port) in configuration where port.isConsole { post(resizeMessage(number)) }
            } else {
                activation.configurationChanged()
            }
        }
    }
    /// Puts other descriptors behind a port of the running machine.
    package func replace(port number: Int, _ endpoint: ConsoleEndpoint) {
        let port = ports[number]
        loop.async { port?.replace(endpoint) }
    }

    // MARK: control queues

    private func message(_ port: Int, _ event: UInt16, _ value: UInt16, _ tail: [UInt8] = []) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: port >> (8 * $0)) }
            + [UInt8(truncatingIfNeeded: event), UInt8(event >> 8), UInt8(truncatingIfNeeded: value), UInt8(value >> 8)] + tail
    }
    private func resizeMessage(_ port: Int) -> [UInt8] {
        let (columns, rows) = state.withLock { ($0.columns, $0.rows) }
        return message(port, Control.resize, 0, [UInt8(truncatingIfNeeded: columns), UInt8(columns >> 8), UInt8(truncatingIfNeeded: rows), UInt8(rows >> 8)])
    }
    private func post(_ message: [UInt8]) {
        // A driver that posts no buffers cannot make us keep more than this.
        state.withLock { if $0.messages.count < 1024 { $0.messages.append(message) } }
        sendMessages()
    }
    private func sendMessages() {
        let (queue, activation) = state.withLock { ($0.queues.count > 2 ? $0.queues[2] : nil, $0.activation) }
        guard let queue, let activation else { return }
        let chain = DescriptorChain(capacity: 8)
        do throws(QueueError) {
            while let next = state.withLock({ $0.messages.first }) {
                guard try queue.pop(chain) else {
                    if queue.enableNotifications() { continue }
                    return
                }
                state.withLock { _ = $0.messages.removeFirst() }
                let count = min(next.count, chain.writableCount)
                let written = next.withUnsafeBytes { raw in raw.baseAddress.map { chain.write(at: 0, from: $0, count: count) } ?? false }
                queue.complete(chain, written: written ? count : 0)
                queue.notify()
            }
        } catch {
            activation.needsReset()
        }
    }
    private func receiveControl() {
        let (queue, activation) = state.withLock { ($0.queues.count > 3 ? $0.queues[3] : nil, $0.activation) }
        guard let queue, let activation else { return }
        let chain = DescriptorChain(capacity: 8)
        do throws(QueueError) {
            repeat {
                while try queue.pop(chain) {
                    if let port: UInt32 = chain.load(at: 0), let event: UInt16 = chain.load(at: 4), let value: UInt16 = chain.load(at: 6) {
                        handle(Int(port), event, value)
                    }
                    queue.complete(chain, written: 0)
                    queue.notify()
                }
            } while queue.enableNotifications()
        } catch {
            activation.needsReset()
        }
    }
    private func handle(_ number: Int, _ event: UInt16, _ value: UInt16) {
        switch event {
        case Control.deviceReady:
            guard value == 1 else { return }
            for number in configuration.keys.sorted() { post(message(number, Control.deviceAdd, 1)) }
        case Control.portReady:
            guard value == 1, let port = configuration[number] else { return }
            if port.isConsole {
                post(message(number, Control.consolePort, 1))
                post(resizeMessage(number))
            }
            if let name = port.name { post(message(number, Control.portName, 1, Array(name.utf8))) }
            post(message(number, Control.portOpen, 1))
        case Control.portOpen:
            guard let port = ports[number] else { return }
            port.isOpen = value == 1
            portChanged(number, value == 1)
        default: break
        }
    }
}
