import Foundation
import Testing
import Virtualization

@Suite(.serialized) struct BadInputTests {
    /// The reason of the failing start, for a kernel with these bytes (nil: no such file).
    private func startFailure(kernel: Data?, initrdSize: Int = 0, memory: UInt64 = 256 << 20) throws -> String {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let file = scratch.appendingPathComponent("kernel")
        try kernel?.write(to: file)
        let ramdisk = scratch.appendingPathComponent("initrd")
        if initrdSize > 0 { try TestAssets.disk(ramdisk, size: initrdSize) }
        let guest = try TestGuest("", memory: memory) { guest in
            let loader = VZLinuxBootLoader(kernelURL: file)
            if initrdSize > 0 { loader.initialRamdiskURL = ramdisk }
            guest.configuration.bootLoader = loader
        }
        let error = #expect(throws: VZError.self) { try guest.start() }
        #expect(error?.code == .internalError)
        #expect(guest.state == .stopped)
        return error?.localizedDescription ?? ""
    }

    @Test func missingKernelIsNamed() throws { #expect(try startFailure(kernel: nil).contains("No such file")) }
    @Test func emptyKernelIsRefused() throws { #expect(try startFailure(kernel: Data()).contains("empty")) }
    @Test func textIsNoKernel() throws { #expect(try startFailure(kernel: Data(repeating: 0x41, count: 4096)).contains("neither")) }
    @Test func truncatedKernelIsRefused() throws {
        let whole = try Data(contentsOf: TestAssets.kernel)
        #expect(try startFailure(kernel: whole.prefix(whole.count / 2)).contains("truncated"))
    }
    @Test func damagedPayloadIsRefused() throws {
        var kernel = try Data(contentsOf: TestAssets.kernel)
        for offset in 200_000..<260_000 { kernel[offset] = 0xFF }
        #expect(try startFailure(kernel: kernel).contains("damaged"))
    }
    @Test func arm64KernelIsNamed() throws {
        var image = Data(repeating: 0, count: 4096)
        image.replaceSubrange(0x38..<0x3C, with: [0x41, 0x52, 0x4D, 0x64])
        #expect(try startFailure(kernel: image).contains("arm64"))
    }
    @Test func tooLargeRamdiskSaysWhatToDo() throws {
        let text = try startFailure(kernel: try Data(contentsOf: TestAssets.kernel), initrdSize: 200 << 20, memory: 128 << 20)
        #expect(text.contains("does not fit") && text.contains("more"))
    }
    @Test func tooLittleMemoryForTheKernelIsSaid() throws {
        #expect(try startFailure(kernel: try Data(contentsOf: TestAssets.kernel), memory: 16 << 20).contains("16 MiB"))
    }

    @Test func directoryEmptyOddAndUnreadableFilesAreNoDisks() throws {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let odd = scratch.appendingPathComponent("odd")
        try Data(repeating: 0, count: 1000).write(to: odd)
        let empty = scratch.appendingPathComponent("empty")
        try Data().write(to: empty)
        for (url, word) in [(scratch, "directory"), (odd, "multiple of 512"), (empty, "empty")] {
            let error = #expect(throws: VZError.self) { _ = try VZDiskImageStorageDeviceAttachment(url: url, readOnly: false) }
            #expect(error?.code == .invalidDiskImage)
            #expect(error?.localizedDescription.contains(word) == true)
        }
        #expect(throws: NSError.self) { _ = try VZDiskImageStorageDeviceAttachment(url: scratch.appendingPathComponent("none"), readOnly: false) }
    }

    @Test func writableDiskInTwoMachinesIsRefusedAndNamesTheHolder() throws {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let url = scratch.appendingPathComponent("disk.img")
        try TestAssets.disk(url, size: 1 << 20)
        func guest() throws -> TestGuest {
            try TestGuest("sleep 1000") { guest in
                guest.configuration.storageDevices = [
                    VZVirtioBlockDeviceConfiguration(attachment: try VZDiskImageStorageDeviceAttachment(url: url, readOnly: false))
                ]
            }
        }
        let first = try guest()
        try first.start()
        let second = try guest()
        let error = #expect(throws: VZError.self) { try second.start() }
        #expect(error?.localizedDescription.contains("in use") == true)
        #expect(error?.localizedDescription.contains("process \(getpid())") == true)
        first.finish()
        try second.start()
        second.finish()
    }

    @Test func closedConsoleHandleDoesNotValidate() throws {
        let pipe = Pipe()
        let configuration = VZVirtualMachineConfiguration()
        configuration.bootLoader = VZLinuxBootLoader(kernelURL: TestAssets.kernel)
        let port = VZVirtioConsoleDeviceSerialPortConfiguration()
        let descriptor = dup(pipe.fileHandleForWriting.fileDescriptor)
        let handle = FileHandle(fileDescriptor: descriptor, closeOnDealloc: false)
        port.attachment = VZFileHandleSerialPortAttachment(fileHandleForReading: nil, fileHandleForWriting: handle)
        configuration.serialPorts = [port]
        try configuration.validate()
        close(descriptor)
        let error = #expect(throws: VZError.self) { try configuration.validate() }
        #expect(error?.localizedDescription.contains("not open") == true)
    }
}
