import Foundation

/// Describes a machine. `VZVirtualMachine` takes a copy.
open class VZVirtualMachineConfiguration: NSObject, NSCopying {
    /// nil by default, which does not validate.
    open var bootLoader: VZBootLoader?
    /// Number of virtual processors; by default as many as the host has, four at most.
    open var cpuCount: Int = min(max(ProcessInfo.processInfo.activeProcessorCount, 1), 4)
    /// Bytes, a multiple of 1 MiB; 1 GiB by default. The host gives memory only as the guest uses it.
    open var memorySize: UInt64 = 1 << 30
    open var platform: VZPlatformConfiguration = VZGenericPlatformConfiguration()
    open var consoleDevices: [VZConsoleDeviceConfiguration] = []
    open var directorySharingDevices: [VZDirectorySharingDeviceConfiguration] = []
    open var entropyDevices: [VZEntropyDeviceConfiguration] = []
    open var memoryBalloonDevices: [VZMemoryBalloonDeviceConfiguration] = []
    open var networkDevices: [VZNetworkDeviceConfiguration] = []
    /// In the order of hvc0, hvc1, …; at most ten.
    open var serialPorts: [VZSerialPortConfiguration] = []
    open var socketDevices: [VZSocketDeviceConfiguration] = []
    /// In the order of vda, vdb, ….
    open var storageDevices: [VZStorageDeviceConfiguration] = []
    /// 1 to 64 characters, not all blank; nil by default.
    open var label: String?

    /// Beyond Apple's API (Extensions/MachineEngine.swift).
    var chosenEngine: MachineEngine = .automatic
    var chosenSerialOutput: FileHandle?
    var chosenProcessorLevel = ProcessorLevel.host

    public override init() { super.init() }

    open class var minimumAllowedMemorySize: UInt64 { 4 << 20 }
    /// What the host has.
    open class var maximumAllowedMemorySize: UInt64 { max((ProcessInfo.processInfo.physicalMemory >> 20) << 20, minimumAllowedMemorySize) }
    open class var minimumAllowedCPUCount: Int { 1 }
    /// Eight, also where the host has fewer.
    open class var maximumAllowedCPUCount: Int { 8 }

    public func copy(with zone: NSZone? = nil) -> Any {
        func copies<T: NSObject & NSCopying>(_ items: [T]) -> [T] { items.map { $0.copy(with: nil) as? T ?? $0 } }
        let copy = VZVirtualMachineConfiguration()
        copy.bootLoader = bootLoader.flatMap { $0.copy() as? VZBootLoader }
        copy.cpuCount = cpuCount
        copy.memorySize = memorySize
        copy.platform = platform.copy() as? VZPlatformConfiguration ?? platform
        copy.consoleDevices = copies(consoleDevices)
        copy.directorySharingDevices = copies(directorySharingDevices)
        copy.entropyDevices = copies(entropyDevices)
        copy.memoryBalloonDevices = copies(memoryBalloonDevices)
        copy.networkDevices = copies(networkDevices)
        copy.serialPorts = copies(serialPorts)
        copy.socketDevices = copies(socketDevices)
        copy.storageDevices = copies(storageDevices)
        copy.label = label
        copy.chosenEngine = chosenEngine
        copy.chosenSerialOutput = chosenSerialOutput
        copy.chosenProcessorLevel = chosenProcessorLevel
        return copy
    }
}
