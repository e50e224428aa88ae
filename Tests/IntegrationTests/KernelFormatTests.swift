import Foundation
import GuestBoot
import Testing
import Virtualization

@Suite(.serialized) struct KernelFormatTests {
    /// The ELF file that Debian's bzImage unpacks to is started as a kernel of its own.
    @Test func plainELFKernelBoots() throws {
        let scratch = try TestAssets.scratch()
        defer { try? FileManager.default.removeItem(at: scratch) }
        let elf = scratch.appendingPathComponent("vmlinux")
        try Data(try KernelImage([UInt8](try Data(contentsOf: TestAssets.kernel))).content).write(to: elf)
        let guest = try TestGuest("uname -m") {
            let loader = VZLinuxBootLoader(kernelURL: elf)
            loader.initialRamdiskURL = TestAssets.initialRamdisk
            loader.commandLine = ($0.configuration.bootLoader as? VZLinuxBootLoader)?.commandLine ?? ""
            $0.configuration.bootLoader = loader
        }
        defer { guest.finish() }
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("x86_64"))
    }
}
