import Foundation

extension VZVirtualMachineConfiguration {
    /// Throws `VZError.invalidVirtualMachineConfiguration` with the reason when no machine can be made of this. Has no
    /// effects; the kernel's file is not looked at.
    public func validate() throws {
        try validateProcessorsAndMemory()
        try validateBoot()
        try validateConsoles()
        try validateStorage()
        try validateNetwork()
        guard memoryBalloonDevices.count <= 1 else { throw VZError.configuration("Number of memory balloon devices is greater than the maximum number supported.") }
        for device in memoryBalloonDevices where !(device is VZVirtioTraditionalMemoryBalloonDeviceConfiguration) {
            throw VZError.configuration("A memory balloon device of type \(type(of: device)) is not supported yet.")
        }
        try validateSockets()
        try validateSharing()
        if let label {
            guard (1...64).contains(label.count), label.contains(where: { !$0.isWhitespace }) else {
                throw VZError.configuration("The label must have 1 to 64 characters and one that is not blank.")
            }
        }
    }

    private func validateProcessorsAndMemory() throws {
        let cpus = Self.minimumAllowedCPUCount...Self.maximumAllowedCPUCount
        guard cpus.contains(cpuCount) else {
            throw VZError.configuration("The CPU count \(cpuCount) is outside the allowed range of \(cpus.lowerBound) to \(cpus.upperBound).")
        }
        guard memorySize % (1 << 20) == 0 else { throw VZError.configuration("The memory size \(memorySize) is not a multiple of 1 MiB.") }
        let sizes = Self.minimumAllowedMemorySize...Self.maximumAllowedMemorySize
        guard sizes.contains(memorySize) else {
            throw VZError.configuration(
                "The memory size of \(memorySize >> 20) MiB is outside the allowed range of \(sizes.lowerBound >> 20) to \(sizes.upperBound >> 20) MiB.")
        }
    }
    private func validateBoot() throws {
        guard let bootLoader else { throw VZError.configuration("The boot loader is invalid.") }
        guard bootLoader is VZLinuxBootLoader else { throw VZError.configuration("The boot loader is not supported.") }
        guard let platform = platform as? VZGenericPlatformConfiguration else {
            throw VZError.configuration("The platform does not match the boot loader.")
        }
        if platform.isNestedVirtualizationEnabled, !VZGenericPlatformConfiguration.isNestedVirtualizationSupported {
            throw VZError.configuration("Nested virtualization is not supported on this host.")
        }
    }
    private func validateConsoles() throws {
        guard serialPorts.count <= 10 else {
            throw VZError.configuration("Number of Virtio console serial port devices is greater than the maximum number supported.")
        }
        for port in serialPorts { try check(port.attachment) }
        for case let console as VZVirtioConsoleDeviceConfiguration in consoleDevices {
            let highest = console.ports.ports.keys.max() ?? -1
            guard (console.ports.ports.keys.min() ?? 0) >= 0, Int(console.ports.maximumPortCount) > highest, console.ports.maximumPortCount <= 31 else {
                throw VZError.configuration("The maximum port count of a console device must be greater than its highest port index and at most 31.")
            }
            for port in console.ports.ports.values { try check(port.attachment) }
        }
    }
    private func check(_ attachment: VZSerialPortAttachment?) throws {
        guard let endpoint = try attachment?.makeEndpoint() else { return }
        if endpoint.input >= 0 { close(endpoint.input) }
        if endpoint.output >= 0 { close(endpoint.output) }
    }
    private func validateStorage() throws {
        for device in storageDevices {
            if device is VZNVMExpressControllerDeviceConfiguration {
                try device.attachment.validate()
                guard !(device.attachment is VZNetworkBlockDeviceStorageDeviceAttachment) else {
                    throw VZError.configuration("An NVM Express controller cannot have a network block device yet.")
                }
                continue
            }
            guard let device = device as? VZVirtioBlockDeviceConfiguration else {
                throw VZError.configuration("A storage device of type \(type(of: device)) is not supported yet.")
            }
            try device.attachment.validate()
            try VZVirtioBlockDeviceConfiguration.validateBlockDeviceIdentifier(device.blockDeviceIdentifier)
        }
    }
    private func validateNetwork() throws {
        var addresses: Set<VZMACAddress> = []
        for device in networkDevices {
            guard device is VZVirtioNetworkDeviceConfiguration else {
                throw VZError.configuration("A network device of type \(type(of: device)) is not supported yet.")
            }
            guard let attachment = device.attachment else { throw VZError.configuration("A network device has no attachment.") }
            guard device.macAddress.isUnicastAddress else {
                throw VZError.configuration("The MAC address \(device.macAddress) of a network device is not a unicast address.")
            }
            guard addresses.insert(device.macAddress).inserted else {
                throw VZError.configuration("Two network devices have the MAC address \(device.macAddress).")
            }
            try attachment.validate()
        }
    }
    private func validateSockets() throws {
        guard socketDevices.count <= 1 else { throw VZError.configuration("Number of socket devices is greater than the maximum number supported.") }
        for device in socketDevices where !(device is VZVirtioSocketDeviceConfiguration) {
            throw VZError.configuration("A socket device of type \(type(of: device)) is not supported.")
        }
    }
    private func validateSharing() throws {
        var tags: Set<String> = []
        for device in directorySharingDevices {
            guard let device = device as? VZVirtioFileSystemDeviceConfiguration else {
                throw VZError.configuration("A directory sharing device of type \(type(of: device)) is not supported.")
            }
            try VZVirtioFileSystemDeviceConfiguration.validateTag(device.tag)
            guard tags.insert(device.tag).inserted else { throw VZError.configuration("Two file system devices have the tag \"\(device.tag)\".") }
            try device.share?.validate()
        }
    }
}
