import Foundation
import Virtualization

// Boots a Linux kernel with its console on standard input and output: BootLinux KERNEL INITRD [COMMAND LINE]
// Written for Apple's framework; nothing in it is Linux-only.

final class Delegate: NSObject, VZVirtualMachineDelegate {
    func guestDidStop(_ virtualMachine: VZVirtualMachine) {
        print("The guest powered off.")
        exit(0)
    }
    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: Error) {
        print("The machine failed: \(error.localizedDescription)")
        exit(1)
    }
}

let arguments = CommandLine.arguments
guard arguments.count >= 3 else {
    print("usage: BootLinux KERNEL INITRD [COMMAND LINE]")
    exit(2)
}

let bootLoader = VZLinuxBootLoader(kernelURL: URL(fileURLWithPath: arguments[1]))
bootLoader.initialRamdiskURL = URL(fileURLWithPath: arguments[2])
bootLoader.commandLine = arguments.count > 3 ? arguments[3] : "console=hvc0"

let serialPort = VZVirtioConsoleDeviceSerialPortConfiguration()
serialPort.attachment = VZFileHandleSerialPortAttachment(
    fileHandleForReading: FileHandle.standardInput, fileHandleForWriting: FileHandle.standardOutput)

let configuration = VZVirtualMachineConfiguration()
configuration.cpuCount = 1
configuration.memorySize = 512 * 1024 * 1024
configuration.bootLoader = bootLoader
configuration.serialPorts = [serialPort]
configuration.entropyDevices = [VZVirtioEntropyDeviceConfiguration()]

let delegate = Delegate()
do {
    try configuration.validate()
    let machine = VZVirtualMachine(configuration: configuration)
    machine.delegate = delegate
    machine.start { result in
        if case .failure(let error) = result {
            print("The machine did not start: \(error.localizedDescription)")
            exit(1)
        }
    }
    RunLoop.main.run()
} catch {
    print("The configuration is not valid: \(error.localizedDescription)")
    exit(1)
}
