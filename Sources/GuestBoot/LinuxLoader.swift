import CLinux
import Glibc
import GuestMemory
import Hypervisor

/// Puts a Linux kernel, its initial RAM disk, command line and boot parameters into guest memory and says how the boot
/// processor starts. Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
package struct LinuxLoader {
    package var kernel: KernelImage
    package var initialRamdisk: [UInt8]?
    package var commandLine: String

    package init(kernel: KernelImage, initialRamdisk: [UInt8]?, commandLine: String) {
        self.kernel = kernel
        self.initialRamdisk = initialRamdisk
        self.commandLine = commandLine
    }

    /// Offsets in the boot parameters ("zero page"). Linux arch/x86/include/uapi/asm/bootparam.h.
    private enum Parameter {
        static let acpiRSDP: UInt64 = 0x070
        static let extRamdiskImage: UInt64 = 0x0C0
        static let e820Count: UInt64 = 0x1E8
        static let setupHeader: UInt64 = 0x1F1
        static let vidMode: UInt64 = 0x1FA
        static let typeOfLoader: UInt64 = 0x210
        static let loadFlags: UInt64 = 0x211
        static let ramdiskImage: UInt64 = 0x218
        static let ramdiskSize: UInt64 = 0x21C
        static let commandLinePointer: UInt64 = 0x228
        static let setupData: UInt64 = 0x250
        static let e820Table: UInt64 = 0x2D0
    }

    package func load(into memory: GuestMemory, cpuCount: Int) throws -> VCPUState {
        let end = try loadKernel(memory)
        let ramdisk = try loadRamdisk(memory, above: end)
        try writeCommandLine(memory)
        try ACPITables.write(to: memory, cpuCount: cpuCount)
        try writeParameters(memory, ramdisk: ramdisk)
        try writePageTables(memory)
        try writeResetCode(memory)
        return try startState(memory)
    }

    /// Returns the first address behind the kernel and what it needs to start.
    private func loadKernel(_ memory: GuestMemory) throws -> UInt64 {
        var end: UInt64 = 0
        for segment in kernel.segments {
            guard segment.address >= MachineLayout.highMemoryStart, memory.pointer(segment.address, Int(segment.memorySize)) != nil else {
                throw KernelError("it needs memory up to \((segment.address + segment.memorySize) >> 20) MiB; the machine has \(memory.size >> 20) MiB")
            }
            try kernel.content.withUnsafeBytes { try memory.write(UnsafeRawBufferPointer(rebasing: $0[segment.fileRange]), at: segment.address) }
            end = max(end, segment.address + segment.memorySize)
        }
        let start = kernel.segments.map(\.address).min() ?? 0
        end = max(end, (kernel.selfExtracting ? 0x1000000 : start) + kernel.initSize)
        guard memory.pointer(MachineLayout.highMemoryStart, Int(min(end, 1 << 40) - MachineLayout.highMemoryStart)) != nil else {
            throw KernelError("it needs \(end >> 20) MiB of memory to start; the machine has \(memory.size >> 20) MiB")
        }
        return end
    }

    private func loadRamdisk(_ memory: GuestMemory, above kernelEnd: UInt64) throws -> (address: UInt64, size: UInt64)? {
        guard let initialRamdisk, !initialRamdisk.isEmpty else { return nil }
        let size = UInt64(initialRamdisk.count)
        let top = min(memory.ramRegions[0].size, kernel.highestInitialRamdiskAddress + 1)
        guard top > size, (top - size) & ~0xFFF >= kernelEnd else {
            throw KernelError(
                "the initial RAM disk of \((size + 0xFFFFF) >> 20) MiB does not fit beside the kernel into \(memory.size >> 20) MiB of memory; give the machine more")
        }
        let address = (top - size) & ~0xFFF
        try memory.write(initialRamdisk, at: address)
        return (address, size)
    }

    private func writeCommandLine(_ memory: GuestMemory) throws {
        let bytes = Array(commandLine.utf8)
        guard bytes.count <= kernel.maximumCommandLineLength, bytes.count < Int(MachineLayout.commandLineSize) else {
            throw KernelError("the command line is \(bytes.count) bytes long; the kernel takes \(kernel.maximumCommandLineLength)")
        }
        try memory.write(bytes + [0], at: MachineLayout.commandLine)
    }

    private func writeParameters(_ memory: GuestMemory, ramdisk: (address: UInt64, size: UInt64)?) throws {
        let page = MachineLayout.bootParameters
        try memory.write([UInt8](repeating: 0, count: 4096), at: page)
        try memory.write(kernel.setupHeader, at: page + Parameter.setupHeader)
        try memory.store(UInt32(0x5372_6448), at: page + 0x202)
        try memory.store(UInt16(0xAA55), at: page + 0x1FE)
        if kernel.setupHeader.isEmpty { try memory.store(UInt16(0x20F), at: page + 0x206) }
        try memory.store(UInt8(0xFF), at: page + Parameter.typeOfLoader)
        let flags: UInt8 = try memory.load(page + Parameter.loadFlags)
        try memory.store(flags | 1, at: page + Parameter.loadFlags)
        try memory.store(UInt16(0xFFFF), at: page + Parameter.vidMode)
        try memory.store(UInt32(MachineLayout.commandLine), at: page + Parameter.commandLinePointer)
        try memory.store(UInt64(MachineLayout.acpi), at: page + Parameter.acpiRSDP)
        if let ramdisk {
            try memory.store(UInt32(truncatingIfNeeded: ramdisk.address), at: page + Parameter.ramdiskImage)
            try memory.store(UInt32(truncatingIfNeeded: ramdisk.size), at: page + Parameter.ramdiskSize)
        }
        try memory.store(try writeRandomSeed(memory), at: page + Parameter.setupData)
        var map: [(UInt64, UInt64, UInt32)] = [
            (0, MachineLayout.lowMemoryEnd, 1), (MachineLayout.lowMemoryEnd, MachineLayout.highMemoryStart - MachineLayout.lowMemoryEnd, 2),
            (MachineLayout.highMemoryStart, memory.ramRegions[0].size - MachineLayout.highMemoryStart, 1),
            (MachineLayout.ecam, MachineLayout.ecamSize, 2),
        ]
        for region in memory.ramRegions.dropFirst() { map.append((region.base, region.size, 1)) }
        try memory.store(UInt8(map.count), at: page + Parameter.e820Count)
        for (index, entry) in map.enumerated() {
            let at = page + Parameter.e820Table + UInt64(index) * 20
            try memory.store(entry.0, at: at)
            try memory.store(entry.1, at: at + 8)
            try memory.store(entry.2, at: at + 16)
        }
    }

    /// 32 random bytes as SETUP_RNG_SEED, so that the guest's generator is ready at once.
    private func writeRandomSeed(_ memory: GuestMemory) throws -> UInt64 {
        var seed = [UInt8](repeating: 0, count: 32)
        getrandom(&seed, seed.count, 0)
        let address = MachineLayout.setupData
        try memory.store(UInt64(0), at: address)
        try memory.store(UInt32(9), at: address + 8)
        try memory.store(UInt32(32), at: address + 12)
        try memory.write(seed, at: address + 16)
        return address
    }

    /// Identity map of the first 4 GiB.
    private func writePageTables(_ memory: GuestMemory) throws {
        let base = MachineLayout.pageTables
        try memory.store(base + 0x1000 | 3, at: base)
        for directory in 0..<UInt64(4) {
            try memory.store(base + 0x2000 + directory * 0x1000 | 3, at: base + 0x1000 + directory * 8)
            for entry in 0..<UInt64(512) {
                try memory.store((directory << 30 + entry << 21) | 0x83, at: base + 0x2000 + directory * 0x1000 + entry * 8)
            }
        }
    }

    /// mov al, 1; mov dx, reset port; out dx, al; 1: hlt; jmp 1b
    private func writeResetCode(_ memory: GuestMemory) throws {
        let port = MachineLayout.acpiPort + 2
        try memory.write(
            [0xB0, 0x01, 0xBA, UInt8(port & 0xFF), UInt8(port >> 8), 0xEE, 0xF4, 0xEB, 0xFD], at: MachineLayout.resetVector)
    }

    private func startState(_ memory: GuestMemory) throws -> VCPUState {
        // Null, unused, __BOOT_CS (0x10), __BOOT_DS (0x18).
        for (index, descriptor) in [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF].enumerated() {
            try memory.store(UInt64(descriptor), at: MachineLayout.gdt + UInt64(index) * 8)
        }
        var state = VCPUState()
        state.rip = kernel.entry
        state.gpr[6] = MachineLayout.bootParameters
        state.gpr[4] = MachineLayout.bootStackTop
        state.gpr[5] = MachineLayout.bootStackTop
        state.cr0 = 0x8000_0011
        state.cr3 = MachineLayout.pageTables
        state.cr4 = 0x20
        state.efer = 0x500
        state.gdtBase = MachineLayout.gdt
        state.gdtLimit = 0x1F
        let code = SegmentState(selector: 0x10, base: 0, limit: .max, attributes: 0xA9B)
        let data = SegmentState(selector: 0x18, base: 0, limit: .max, attributes: 0xC93)
        state.segments = [data, code, data, data, data, data]
        return state
    }
}
