import DiskStorage
import Foundation
import HostNetwork
import Monitor
import VirtioDevices

/// Descriptors that a machine holds for its ports; closed with it.
final class DescriptorSet {
    private var descriptors: [Int32] = []
    func keep(_ endpoint: (input: Int32, output: Int32)) -> ConsoleEndpoint {
        descriptors += [endpoint.input, endpoint.output].filter { $0 >= 0 }
        return ConsoleEndpoint(input: endpoint.input, output: endpoint.output)
    }
    deinit { for descriptor in descriptors { close(descriptor) } }
}

extension VZVirtualMachineConfiguration {
    var diskAttachments: [VZStorageDeviceAttachment] { storageDevices.map(\.attachment) }

    /// What the Monitor makes of a valid configuration.
    /// - Parameter networkBackends: of the machine's network devices, whose attachments may be others than they began with.
    /// - Parameter queue: the machine's.
    func machineDescription(
        _ descriptors: DescriptorSet, _ networkBackends: [(any NetworkBackend)?], _ queue: DispatchQueue
    ) throws -> MachineDescription {
        guard let bootLoader = bootLoader as? VZLinuxBootLoader else { throw VZError.configuration("The boot loader is invalid.") }
        var description = MachineDescription(
            cpuCount: cpuCount, memorySize: memorySize, kernelPath: bootLoader.kernelURL.path,
            initialRamdiskPath: bootLoader.initialRamdiskURL?.path, commandLine: bootLoader.commandLine)
        description.entropyDeviceCount = entropyDevices.count
        for device in storageDevices {
            let storage = try device.attachment.makeStorage(queue)
            let identifier = (device as? VZVirtioBlockDeviceConfiguration)?.blockDeviceIdentifier ?? ""
            description.disks.append(.init(storage: storage, identifier: identifier, interface: device is VZNVMExpressControllerDeviceConfiguration ? .nvme : .virtio))
        }
        for port in serialPorts {
            let endpoint = descriptors.keep(try port.attachment?.makeEndpoint() ?? (-1, -1))
            description.consoles.append(
                .init(ports: [0: .init(name: nil, isConsole: true, endpoint: endpoint)], maximumPorts: 1, isMultiPort: false))
        }
        try addConsoleDevices(&description, descriptors)
        for (device, backend) in zip(networkDevices, networkBackends) {
            let octets = device.macAddress.ethernetAddress.octet
            description.networks.append(.init(address: withUnsafeBytes(of: octets) { Array($0) }, backend: backend))
        }
        description.processorBaseline = chosenProcessorLevel.baseline
        if let chosenSerialOutput { description.serialOutput = descriptors.keep((-1, fcntl(chosenSerialOutput.fileDescriptor, F_DUPFD_CLOEXEC, 3))).output }
        return description
    }

    private func addConsoleDevices(_ description: inout MachineDescription, _ descriptors: DescriptorSet) throws {
        let devices = consoleDevices.compactMap { $0 as? VZVirtioConsoleDeviceConfiguration }
        // The guide's program has one port and does not say that it is a console, yet expects console=hvc0 on it.
        let hasConsole = !serialPorts.isEmpty || devices.contains { $0.ports.ports.values.contains(where: \.isConsole) }
        for (index, device) in devices.enumerated() {
            var ports: [Int: ConsoleDevice.PortConfiguration] = [:]
            let first = device.ports.ports.keys.min()
            for (number, port) in device.ports.ports {
                let isConsole = port.isConsole || (!hasConsole && index == 0 && number == first)
                ports[number] = .init(
                    name: port.name, isConsole: isConsole, endpoint: descriptors.keep(try port.attachment?.makeEndpoint() ?? (-1, -1)))
            }
            description.consoles.append(.init(ports: ports, maximumPorts: Int(device.ports.maximumPortCount), isMultiPort: true))
        }
    }
}
