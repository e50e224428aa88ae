import Foundation
import MachineLibrary
import Virtualization

/// One `vz run`: the machine, its console or command, and the process's exit. On the main queue.
final class Session: NSObject, VZVirtualMachineDelegate, @unchecked Sendable {  // only used on the main queue
    private let options: Run
    private let store = ImageStore(home: Home())
    private var machine: VZVirtualMachine!
    private var scratchDisk: URL?
    private var commandPorts: CommandPorts?
    private var input: ConsoleInput?
    private var signals: [any DispatchSourceSignal] = []
    #if os(Linux)
        private var doors: [SocketDoor] = []
    #endif
    private var isEnding = false
    private let named: NamedMachine?
    private let record: NamedMachine.Record?
    private let isRestoring: Bool
    /// The machine lives on in its saved state.
    private var isSaved = false
    private var control: ControlSocket?
    /// While a snapshot is being written, the process does not end: how it will.
    private var isTakingSnapshot = false
    private var waitingEnd: (status: Int32, message: String?)?

    /// - Parameters:
    ///   - named: the machine's place, for one with a name.
    ///   - restoring: whether it goes on from its saved state.
    init(_ options: Run, as named: NamedMachine? = nil, _ record: NamedMachine.Record? = nil, restoring: Bool = false) throws {
        self.options = options
        self.named = named
        self.record = record
        isRestoring = restoring
        super.init()
        Self.raiseDescriptorLimit()
        do {
            let configuration = try makeConfiguration()
            try configuration.validate()
            if options.suspendable { try configuration.validateSaveRestoreSupport() }
            try noteDisks(configuration)
            machine = VZVirtualMachine(configuration: configuration)
            machine.delegate = self
            #if os(Linux)
                (machine.memoryBalloonDevices.first as? VZVirtioTraditionalMemoryBalloonDevice)?.automaticMinimumMemorySize = options.memoryMin?.bytes
            #endif
            try openSockets()
            try listen()
        } catch {
            removeScratch()
            throw error
        }
    }

    /// Each connection of the guest's is a descriptor of this process: as many as the user may have.
    private static func raiseDescriptorLimit() {
        var limit = rlimit()
        guard getrlimit(RLIMIT_NOFILE, &limit) == 0 else { return }
        limit.rlim_cur = min(limit.rlim_max, 65536)
        setrlimit(RLIMIT_NOFILE, &limit)
    }

    // MARK: configuration

    private func makeConfiguration() throws -> VZVirtualMachineConfiguration {
        let configuration = VZVirtualMachineConfiguration()
        configuration.cpuCount = options.cpus
        if let data = record?.machineIdentifier, let identifier = VZGenericMachineIdentifier(dataRepresentation: data) {
            let platform = VZGenericPlatformConfiguration()
            platform.machineIdentifier = identifier
            configuration.platform = platform
        }
        configuration.memorySize = options.memory.bytes
        configuration.entropyDevices = [VZVirtioEntropyDeviceConfiguration()]
        if options.memoryMin != nil { configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()] }
        #if os(Linux)
            configuration.engine = MachineEngine(rawValue: options.engine) ?? .automatic
            configuration.processorLevel = ProcessorLevel(rawValue: options.cpu) ?? .host
            if ProcessInfo.processInfo.environment["VZ_SERIAL"] == "stderr" { configuration.legacySerialOutput = .standardError }
        #endif
        if let name = options.image { try addImage(name, to: configuration) } else { try addKernel(to: configuration) }
        for disk in options.disk { configuration.storageDevices.append(VZVirtioBlockDeviceConfiguration(attachment: try disk.attachment())) }
        for disk in options.nvme { configuration.storageDevices.append(VZNVMExpressControllerDeviceConfiguration(attachment: try disk.attachment())) }
        if options.net != "none" { configuration.networkDevices = [try makeNetwork()] }
        for (index, mount) in options.mount.enumerated() {
            let device = VZVirtioFileSystemDeviceConfiguration(tag: "share\(index)")
            device.share = VZSingleDirectoryShare(directory: VZSharedDirectory(url: mount.host, readOnly: mount.isReadOnly))
            #if os(Linux)
                device.areFilesMapped = !mount.isCached
            #endif
            configuration.directorySharingDevices.append(device)
        }
        if !options.vsock.isEmpty { configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()] }
        if options.command.isEmpty || options.console != "stdio" { try addConsole(to: configuration) }
        return configuration
    }
    private func openSockets() throws {
        #if os(Linux)
            guard let device = machine.socketDevices.first as? VZVirtioSocketDevice else { return }
            for socket in options.vsock {
                guard socket.listens else {
                    device.carryConnections(toPort: socket.port, toSocketAt: socket.path)
                    continue
                }
                do { doors.append(try device.openDoor(at: socket.path, toPort: socket.port)) } catch {
                    throw LibraryError("cannot listen at \(socket.path): \(error.localizedDescription)")
                }
            }
        #endif
    }
    private func makeNetwork() throws -> VZVirtioNetworkDeviceConfiguration {
        let device = VZVirtioNetworkDeviceConfiguration()
        if let address = record.flatMap({ VZMACAddress(string: $0.macAddress) }) { device.macAddress = address }
        if options.net.hasPrefix("bridged=") {
            let name = options.net.dropFirst("bridged=".count)
            let interfaces = VZBridgedNetworkInterface.networkInterfaces
            guard let interface = interfaces.first(where: { $0.identifier == name }) else {
                let known = interfaces.map(\.identifier).joined(separator: ", ")
                throw LibraryError("there is no bridge \(name) on this host; " + (known.isEmpty ? "it has none" : "it has \(known)"))
            }
            device.attachment = VZBridgedNetworkDeviceAttachment(interface: interface)
            return device
        }
        let attachment = VZNATNetworkDeviceAttachment()
        #if os(Linux)
            for port in options.publish {
                try attachment.publish(
                    PortForward(port.isDatagram ? .udp : .tcp, hostAddress: port.address, hostPort: port.hostPort, guestPort: port.guestPort))
            }
        #endif
        device.attachment = attachment
        return device
    }
    private func addKernel(to configuration: VZVirtualMachineConfiguration) throws {
        guard let kernel = options.kernel else { return }
        for path in [kernel, options.initrd].compactMap({ $0 }) where access(path, R_OK) != 0 {
            throw LibraryError("cannot read \(path): \(String(cString: strerror(errno)))")
        }
        let loader = VZLinuxBootLoader(kernelURL: URL(fileURLWithPath: kernel))
        loader.initialRamdiskURL = options.initrd.map { URL(fileURLWithPath: $0) }
        loader.commandLine = options.cmdline ?? "console=hvc0"
        configuration.bootLoader = loader
    }
    private func addImage(_ name: String, to configuration: VZVirtualMachineConfiguration) throws {
        if store.image(name) == nil {
            guard name == "debian" else { throw LibraryError("there is no image \"\(name)\"; `vz image list` shows those there are") }
            Terminal.say("the image debian is not there yet; building it (once, about a minute)")
            try DebianImageBuilder(store: store) { Terminal.say($0 + "…") }.build(name: "debian")
        }
        guard let image = store.image(name) else { throw LibraryError("the image \"\(name)\" is damaged; remove it with `vz image remove \(name)`") }
        store.collectScratch()
        let disk = try makeDisk(name)
        let loader = VZLinuxBootLoader(kernelURL: store.kernel(name))
        loader.initialRamdiskURL = store.initialRamdisk(name)
        var arguments = [image.commandLine, options.cmdline].compactMap { $0 }
        if !options.command.isEmpty {
            let ports = CommandPorts(command: options.command)
            commandPorts = ports
            configuration.consoleDevices.append(ports.device)
            // A guest that panics restarts, which ends the command, instead of standing still for ever; before what the user may say of that.
            arguments.insert("vz.command panic=-1", at: 1)
        }
        // Base64, as nothing else may be in a word of the kernel's.
        for (index, mount) in options.mount.enumerated() { arguments.append("vz.mount=share\(index):\(Data(mount.guest.utf8).base64EncodedString())") }
        loader.commandLine = arguments.joined(separator: " ")
        configuration.bootLoader = loader
        #if os(Linux)
            // What is thrown away when the machine ends need not survive the host.
            let attachment = try OverlayDiskAttachment(url: disk, synchronizationMode: named == nil ? .none : .full)
            configuration.storageDevices.append(VZVirtioBlockDeviceConfiguration(attachment: attachment))
        #else
            let attachment = try VZDiskImageStorageDeviceAttachment(url: disk, readOnly: false, cachingMode: .cached, synchronizationMode: .full)
            configuration.storageDevices.append(VZVirtioBlockDeviceConfiguration(attachment: attachment))
        #endif
    }
    /// The machine's own disk: a copy of the image's, or with a restored machine the one that it had.
    private func makeDisk(_ image: String) throws -> URL {
        if let named {
            if !isRestoring { try store.makeDisk(image, at: named.disk, keeping: named.base) }
            return named.disk
        }
        let disk = try store.makeScratchDisk(image)
        scratchDisk = disk
        return disk
    }
    private func addConsole(to configuration: VZVirtualMachineConfiguration) throws {
        let port = VZVirtioConsoleDeviceSerialPortConfiguration()
        switch options.console {
        case "stdio":
            let input = ConsoleInput { DispatchQueue.main.async { [weak self] in self?.switchOff(status: 0) } }
            self.input = input
            port.attachment = VZFileHandleSerialPortAttachment(
                fileHandleForReading: input.pipe.fileHandleForReading, fileHandleForWriting: .standardOutput)
        case "pty":
            let (handle, path) = try PseudoTerminal.open()
            Terminal.say("the console is at \(path)")
            port.attachment = VZFileHandleSerialPortAttachment(fileHandleForReading: handle, fileHandleForWriting: handle)
        default:
            port.attachment = try VZFileSerialPortAttachment(url: URL(fileURLWithPath: options.console), append: false)
        }
        configuration.serialPorts = [port]
    }

    // MARK: life

    func start() {
        catchSignals()
        #if os(Linux)
            // One that never comes as far as to be ready for a command restarts for ever.
            if commandPorts != nil { machine.guestDidRestart = { [weak self] in self?.commandNews(.restarted) } }
        #endif
        let interactive = options.command.isEmpty && options.console == "stdio" && Terminal.isInteractive
        let began: (Result<Void, any Error>) -> Void = { [self] result in
            switch result {
            case .success:
                if interactive {
                    Terminal.makeRaw()
                    repeatResize(60)
                }
                commandPorts?.begin { [weak self] in self?.commandNews($0) }
            case .failure(let error):
                end(status: 1, message: error.localizedDescription)
            }
        }
        if isRestoring { restore(began) } else { machine.start(completionHandler: began) }
    }

    // MARK: saved machines

    private func restore(_ began: @escaping (Result<Void, any Error>) -> Void) {
        guard let named else { return }
        isSaved = true  // until it goes on
        machine.restoreMachineStateFrom(url: named.state) { [self] error in
            if let error { return began(.failure(error)) }
            machine.resume { [self] result in
                if case .success = result {
                    isSaved = false
                    // The disk goes on from here: the state is of no use any more. The machine's memory keeps the file itself.
                    unlink(named.state.path)
                }
                began(result)
            }
        }
    }
    private func listen() throws {
        guard let named else { return }
        control = try ControlSocket(at: named.control) { request, answer in
            DispatchQueue.main.async { [weak self] in
                guard let self, !self.isEnding, self.waitingEnd == nil else { return answer("error the machine is ending") }
                guard !self.isTakingSnapshot else { return answer("error a snapshot of the machine is being taken; try again when it is done") }
                let words = request.split(separator: " ").map(String.init)
                switch words.first {
                case "save": self.save(answer)
                case "snapshot": self.takeSnapshot(words.count > 1 ? words[1] : nil, answer)
                default: answer("error this machine does not know \"\(request)\"")
                }
            }
        }
    }
    /// So that snapshots can be made, and gone back to, while the machine does not run.
    private func noteDisks(_ configuration: VZVirtualMachineConfiguration) throws {
        #if os(Linux)
            guard let named else { return }
            let written = configuration.storageDevices.map(\.attachment).filter { attachment in
                switch attachment {
                case let image as VZDiskImageStorageDeviceAttachment: !image.isReadOnly
                case let device as VZDiskBlockDeviceStorageDeviceAttachment: !device.isReadOnly
                case let server as VZNetworkBlockDeviceStorageDeviceAttachment: !server.isForcedReadOnly
                case let overlay as OverlayDiskAttachment: !overlay.isReadOnly
                default: true
                }
            }
            let overlays = written.compactMap { ($0 as? OverlayDiskAttachment)?.url.path }
            try named.update {
                $0.disks = overlays.count == written.count ? overlays : nil
                $0.isOff = false
            }
        #endif
    }
    private func takeSnapshot(_ name: String?, _ answer: @escaping @Sendable (String) -> Void) {
        #if os(Linux)
            guard let named else { return }
            let snapshots = Snapshots(of: named)
            let snapshot: Snapshot
            do { snapshot = try snapshots.begin(name) } catch { return answer("error \(error)") }
            isTakingSnapshot = true
            machine.takeSnapshot(to: snapshots.state(snapshot), disks: snapshots.disks(snapshot), progress: { answer("progress \(Int($0 * 100))") }) { [self] result in
                isTakingSnapshot = false
                do {
                    let pause = try result.get()
                    try snapshots.finish(snapshot)
                    answer("taken \(snapshot.name) \(Int((pause * 1000).rounded()))")
                    answer("done")
                } catch {
                    snapshots.abandon(snapshot)
                    answer("error \(error.localizedDescription)")
                }
                // The answer is on its way before the process ends.
                if let ending = waitingEnd { DispatchQueue.main.asyncAfter(deadline: .now() + 0.05) { [self] in end(status: ending.status, message: ending.message) } }
            }
        #endif
    }
    private func save(_ answer: @escaping @Sendable (String) -> Void) {
        guard let named else { return }
        machine.pause { [self] result in
            if case .failure(let error) = result { return answer("error " + error.localizedDescription) }
            store(named, answer)
        }
    }
    /// The paused machine's state, then its end; it goes on when it cannot be saved.
    private func store(_ named: NamedMachine, _ answer: @escaping @Sendable (String) -> Void) {
        let ended: ((any Error)?) -> Void = { [self] error in
            if let error {
                answer("error " + error.localizedDescription)
                return machine.resume { _ in }
            }
            isSaved = true
            machine.stop { [self] _ in
                control?.close()
                answer("done")
                // The answer is on its way before the process ends.
                DispatchQueue.main.asyncAfter(deadline: .now() + 0.05) { [self] in end(status: 0, message: "\(named.name) is saved; `vz restore \(named.name)` goes on with it") }
            }
        }
        #if os(Linux)
            machine.saveMachineState(to: named.state, progress: { answer("progress \(Int($0 * 100))") }, completionHandler: ended)
        #else
            machine.saveMachineStateTo(url: named.state, completionHandler: ended)
        #endif
    }
    /// Linux forgets a console's size that arrives before a program has the terminal open, so say it again while it boots.
    private func repeatResize(_ times: Int) {
        resize()
        guard times > 0 else { return }
        DispatchQueue.main.asyncAfter(deadline: .now() + 1) { [weak self] in self?.repeatResize(times - 1) }
    }
    private func resize() {
        guard let size = Terminal.size else { return }
        #if os(Linux)
            machine.setTerminalSize(columns: size.columns, rows: size.rows)
        #endif
    }
    private func catchSignals() {
        for (number, action) in [
            (SIGWINCH, { [weak self] in self?.resize() }), (SIGTERM, { [weak self] in self?.switchOff(status: 143) }),
            (SIGHUP, { [weak self] in self?.switchOff(status: 129) }), (SIGINT, { [weak self] in self?.switchOff(status: 130) }),
        ] as [(Int32, () -> Void)] {
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .main)
            source.setEventHandler(handler: action)
            source.resume()
            signals.append(source)
        }
    }
    private func switchOff(status: Int32) {
        guard !isEnding else { return }
        guard machine.canStop else { return end(status: status) }
        machine.stop { [self] _ in end(status: status) }
    }
    private func commandNews(_ news: CommandPorts.News) {
        switch news {
        case .finished:
            // The guest goes down by itself, and has a while for it.
            DispatchQueue.main.asyncAfter(deadline: .now() + 30) { [weak self] in self?.switchOff(status: self?.commandPorts?.status ?? 1) }
        case .restarted:
            // Stopped first: it goes on, and might take the command. It may be heard of twice, from the machine and from the guest.
            guard machine.canStop else { return }
            machine.stop { [self] _ in endCommand("restarted", "; --console FILE shows what its kernel said") }
        }
    }

    func guestDidStop(_ virtualMachine: VZVirtualMachine) {
        if commandPorts == nil { end(status: 0) } else { endCommand("stopped") }
    }
    /// The machine is off.
    private func endCommand(_ what: String, _ hint: String = "") {
        commandPorts?.drain()
        guard let status = commandPorts?.status else { return end(status: 1, message: "the guest \(what) before the command had ended\(hint)") }
        end(status: status)
    }
    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error) {
        end(status: 1, message: error.localizedDescription)
    }
    private func end(status: Int32, message: String? = nil) {
        guard !isEnding else { return }
        guard !isTakingSnapshot else { return waitingEnd = (status, message) }
        isEnding = true
        Terminal.restore()
        removeScratch()
        #if os(Linux)
            doors = []
        #endif
        if let message { Terminal.say(message) }
        exit(status)
    }
    private func removeScratch() {
        if let scratchDisk { unlink(scratchDisk.path) }
        control?.close()
        if let named, !isSaved, !(isRestoring && access(named.state.path, F_OK) == 0) { leave(named) }
    }
    /// A machine that is switched off is gone, unless there are snapshots to go back to.
    private func leave(_ named: NamedMachine) {
        #if os(Linux)
            if !Snapshots(of: named).list.isEmpty, (try? named.update({ $0.isOff = true })) != nil { return }
        #endif
        do { try named.forget() } catch {
            Terminal.say("\(named.name) is kept: \(error.localizedDescription)")
            try? named.update { $0.isOff = true }
        }
    }
}
