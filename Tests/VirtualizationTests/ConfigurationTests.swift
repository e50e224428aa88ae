import Foundation
import Testing
import Virtualization

struct ConfigurationTests {
    private func valid() -> VZVirtualMachineConfiguration {
        let configuration = VZVirtualMachineConfiguration()
        configuration.bootLoader = VZLinuxBootLoader(kernelURL: URL(fileURLWithPath: "/no/such/kernel"))
        return configuration
    }
    private func reason(_ change: (VZVirtualMachineConfiguration) -> Void) -> String? {
        let configuration = valid()
        change(configuration)
        do {
            try configuration.validate()
            return nil
        } catch VZError.invalidVirtualMachineConfiguration {
            do { try configuration.validate() } catch { return error.localizedDescription }
            return nil
        } catch {
            return "another error: \(error)"
        }
    }

    @Test func plainConfigurationValidatesWithoutLookingAtTheKernel() { #expect(reason { _ in } == nil) }
    @Test func missingBootLoaderIsInvalid() {
        #expect(reason { $0.bootLoader = nil } == "Invalid virtual machine configuration. The boot loader is invalid.")
    }
    @Test(arguments: [0, -1, 9, 1000]) func processorCountOutsideLimitsIsInvalid(count: Int) { #expect(reason { $0.cpuCount = count }?.contains("CPU count") == true) }
    @Test(arguments: [0, 1, 1 << 20, (1 << 30) + 1, (UInt64.max >> 20) << 20] as [UInt64]) func memoryOutsideLimitsIsInvalid(size: UInt64) {
        #expect(reason { $0.memorySize = size }?.contains("memory size") == true)
    }
    @Test func elevenSerialPortsAreTooMany() {
        #expect(
            reason { $0.serialPorts = (0..<11).map { _ in VZVirtioConsoleDeviceSerialPortConfiguration() } }
                == "Invalid virtual machine configuration. Number of Virtio console serial port devices is greater than the maximum number supported.")
    }
    @Test func portCountMustExceedTheHighestIndex() {
        #expect(
            reason {
                let device = VZVirtioConsoleDeviceConfiguration()
                device.ports[4] = VZVirtioConsolePortConfiguration()
                device.ports.maximumPortCount = 4
                $0.consoleDevices = [device]
            } != nil)
    }
    @Test func networkSocketAndSharingDevicesAreValid() {
        let nat = VZVirtioNetworkDeviceConfiguration()
        nat.attachment = VZNATNetworkDeviceAttachment()
        #expect(reason { $0.networkDevices = [nat] } == nil)
        #expect(reason { $0.directorySharingDevices = [VZVirtioFileSystemDeviceConfiguration(tag: "t")] } == nil)
        #expect(reason { $0.socketDevices = [VZVirtioSocketDeviceConfiguration()] } == nil)
        let two = [VZVirtioSocketDeviceConfiguration(), VZVirtioSocketDeviceConfiguration()]
        #expect(reason { $0.socketDevices = two }?.contains("maximum") == true)
    }
    @Test func labelIsChecked() {
        #expect(reason { $0.label = "" } != nil)
        #expect(reason { $0.label = "  " } != nil)
        #expect(reason { $0.label = String(repeating: "x", count: 65) } != nil)
        #expect(reason { $0.label = "build machine" } == nil)
    }
    @Test func blockIdentifierIsAsciiOfTwentyBytes() {
        #expect(throws: VZError.self) { try VZVirtioBlockDeviceConfiguration.validateBlockDeviceIdentifier("123456789012345678901") }
        #expect(throws: VZError.self) { try VZVirtioBlockDeviceConfiguration.validateBlockDeviceIdentifier("é") }
        #expect(throws: Never.self) { try VZVirtioBlockDeviceConfiguration.validateBlockDeviceIdentifier("12345678901234567890") }
    }
    @Test func configurationIsCopiedDeeply() throws {
        let original = valid()
        let device = VZVirtioConsoleDeviceConfiguration()
        device.ports[0] = VZVirtioConsolePortConfiguration()
        original.consoleDevices = [device]
        let copy = try #require(original.copy() as? VZVirtualMachineConfiguration)
        device.ports[0]?.name = "changed"
        (original.bootLoader as? VZLinuxBootLoader)?.commandLine = "changed"
        #expect((copy.consoleDevices[0] as? VZVirtioConsoleDeviceConfiguration)?.ports[0]?.name == nil)
        #expect((copy.bootLoader as? VZLinuxBootLoader)?.commandLine == "")
    }
    @Test func networkDevicesAreChecked() throws {
        func ends(_ kind: __socket_type) throws -> [Int32] {
            var ends: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(kind.rawValue), 0, &ends) == 0)
            return ends
        }
        func device(_ descriptor: Int32, mtu: Int = 1500) -> VZVirtioNetworkDeviceConfiguration {
            let attachment = VZFileHandleNetworkDeviceAttachment(fileHandle: FileHandle(fileDescriptor: descriptor, closeOnDealloc: false))
            attachment.maximumTransmissionUnit = mtu
            let device = VZVirtioNetworkDeviceConfiguration()
            device.attachment = attachment
            return device
        }
        let (datagrams, stream) = (try ends(SOCK_DGRAM), try ends(SOCK_STREAM))
        let lonely = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        defer { for descriptor in datagrams + stream + [lonely] { close(descriptor) } }
        #expect(reason { $0.networkDevices = [device(datagrams[0])] } == nil)
        #expect(reason { $0.networkDevices = [VZVirtioNetworkDeviceConfiguration()] }?.contains("no attachment") == true)
        #expect(reason { $0.networkDevices = [device(stream[0])] }?.contains("not a datagram socket") == true)
        #expect(reason { $0.networkDevices = [device(lonely)] }?.contains("not connected") == true)
        #expect(reason { $0.networkDevices = [device(-1)] }?.contains("not an open socket") == true)
        for mtu in [1499, 65536, -1] { #expect(reason { $0.networkDevices = [device(datagrams[0], mtu: mtu)] }?.contains("between 1500 and 65535") == true) }
        let twin = device(datagrams[1])
        twin.macAddress = try #require(VZMACAddress(string: "02:00:00:00:00:01"))
        let other = device(datagrams[0])
        other.macAddress = twin.macAddress
        #expect(reason { $0.networkDevices = [twin, other] }?.contains("02:00:00:00:00:01") == true)
        other.macAddress = try #require(VZMACAddress(string: "03:00:00:00:00:01"))
        #expect(reason { $0.networkDevices = [other] }?.contains("unicast") == true)
    }
    @Test func macAddressesParseAndPrint() throws {
        let address = try #require(VZMACAddress(string: "02:AB:cd:00:00:01"))
        #expect(address.string == "02:ab:cd:00:00:01")
        #expect(address.isLocallyAdministeredAddress && address.isUnicastAddress && !address.isBroadcastAddress)
        #expect(address == VZMACAddress(string: "02:ab:cd:00:00:01"))
        for bad in ["", "02:ab:cd:00:00", "02:ab:cd:00:00:01:02", "2:ab:cd:00:00:01", "02-ab-cd-00-00-01", "0g:ab:cd:00:00:01", "+2:ab:cd:00:00:01"] {
            #expect(VZMACAddress(string: bad) == nil)
        }
        let random = VZMACAddress.randomLocallyAdministered()
        #expect(random.isLocallyAdministeredAddress && random.isUnicastAddress)
    }
    @Test func machineIdentifiersRoundTripAndCompareByValue() throws {
        let identifier = VZGenericMachineIdentifier()
        let copy = try #require(VZGenericMachineIdentifier(dataRepresentation: identifier.dataRepresentation))
        #expect(copy == identifier)
        #expect(copy.hash == identifier.hash)
        #expect(VZGenericMachineIdentifier() != identifier)
        #expect(VZGenericMachineIdentifier(dataRepresentation: Data([1, 2, 3])) == nil)
    }
    @Test func guidesWayOfSizingADiskWorks() throws {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("size-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: url) }
        _ = FileManager.default.createFile(atPath: url.path, contents: nil)
        let size: UInt64 = 10 * 1024 * 1024 * 1024
        try (url as NSURL).setResourceValue(size, forKey: .fileSizeKey)
        #expect(try FileManager.default.attributesOfItem(atPath: url.path)[.size] as? UInt64 == size)
    }
    @Test func errorsCarryDomainCodeAndReason() {
        do {
            try VZVirtualMachineConfiguration().validate()
            Issue.record("an empty configuration validated")
        } catch {
            let bridged = error as NSError
            #expect(bridged.domain == "VZErrorDomain")
            #expect(bridged.code == 2)
            #expect(error.localizedDescription.hasPrefix("Invalid virtual machine configuration."))
        }
    }
}
