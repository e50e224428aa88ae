import Hypervisor
import DiskStorage
import FileServer
import HostNetwork
import VirtioDevices

/// What a machine is made of: everything `Machine` needs, and nothing of Apple's types.
package struct MachineDescription: Sendable {
    package struct Disk: Sendable {
        package var storage: any BlockStorage
        package var identifier: String
        /// The controller that the guest sees.
        package var interface: Interface
        package enum Interface: Sendable { case virtio, nvme }
        package init(storage: any BlockStorage, identifier: String, interface: Interface = .virtio) {
            self.storage = storage
            self.interface = interface
            self.identifier = identifier
        }
    }
    package struct Console: Sendable {
        /// By port number.
        package var ports: [Int: ConsoleDevice.PortConfiguration]
        package var maximumPorts: Int
        package var isMultiPort: Bool
        package init(ports: [Int: ConsoleDevice.PortConfiguration], maximumPorts: Int, isMultiPort: Bool) {
            self.ports = ports
            self.maximumPorts = maximumPorts
            self.isMultiPort = isMultiPort
        }
    }
    package struct Network: Sendable {
        /// Six bytes.
        package var address: [UInt8]
        /// nil: the cable is out.
        package var backend: (any NetworkBackend)?
        package init(address: [UInt8], backend: (any NetworkBackend)?) {
            self.address = address
            self.backend = backend
        }
    }
    package struct FileSystem: Sendable {
        package var tag: String
        package var server: FileServer
        /// Whether the guest may map files.
        package var mapsFiles: Bool
        package init(tag: String, server: FileServer, mapsFiles: Bool) {
            self.tag = tag
            self.server = server
            self.mapsFiles = mapsFiles
        }
    }
    package var cpuCount: Int
    package var memorySize: UInt64
    package var kernelPath: String
    package var initialRamdiskPath: String?
    package var commandLine: String
    package var disks: [Disk] = []
    package var consoles: [Console] = []
    package var networks: [Network] = []
    package var fileSystems: [FileSystem] = []
    /// The host's side of a socket device; nil for no device.
    package var sockets: VsockHost?
    package var entropyDeviceCount = 0
    /// Pages of 4 KiB that the guest is to give back from the start.
    package var balloonPages: UInt32 = 0
    package var processorBaseline = ProcessorBaseline.host
    /// Where the 16550's output goes; -1 for nowhere.
    package var serialOutput: Int32 = -1

    package init(cpuCount: Int, memorySize: UInt64, kernelPath: String, initialRamdiskPath: String?, commandLine: String) {
        self.cpuCount = cpuCount
        self.memorySize = memorySize
        self.kernelPath = kernelPath
        self.initialRamdiskPath = initialRamdiskPath
        self.commandLine = commandLine
    }
}
