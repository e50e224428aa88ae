/// Every guest-physical address, port and interrupt number of the board, and why it is there.
package enum MachineLayout {
    // Below 1 MiB: what the boot protocol hands over.
    /// Boot GDT: out of the way of the zero page, reclaimed by Linux early.
    package static let gdt: UInt64 = 0x500
    package static let gdtSize: UInt64 = 0x20
    /// Boot parameters ("zero page"), 4 KiB. Linux x86 boot protocol.
    package static let bootParameters: UInt64 = 0x7000
    package static let bootParametersSize: UInt64 = 0x1000
    /// Initial stack, grows down from here.
    package static let bootStackTop: UInt64 = 0x8FF0
    /// PML4, PDPT, then four page directories: identity map of the first 4 GiB in 2 MiB pages.
    package static let pageTables: UInt64 = 0x9000
    package static let pageTablesSize: UInt64 = 0x6000
    /// setup_data records: in a page of plain RAM, since Linux maps them again later and page 0 is reserved by then.
    package static let setupData: UInt64 = 0x10000
    package static let setupDataSize: UInt64 = 0x1000
    package static let commandLine: UInt64 = 0x20000
    package static let commandLineSize: UInt64 = 0x10000
    /// End of conventional memory; from here to 1 MiB is reserved in e820.
    package static let lowMemoryEnd: UInt64 = 0x9FC00
    /// RSDP and the other ACPI tables: in the area where kernels look for them anyway.
    package static let acpi: UInt64 = 0xE0000
    package static let acpiSize: UInt64 = 0x1F000
    /// 16 bytes that change whenever the machine goes on from a saved state.
    package static let generationID: UInt64 = 0xFF000
    package static let generationIDSize: UInt64 = 0x1000 - 0x10
    /// Where a processor starts after a reset, in real mode. Linux jumps here to reboot a hardware-reduced machine without
    /// EFI; the code there resets through the ACPI port.
    package static let resetVector: UInt64 = 0xFFFF0
    package static let resetVectorSize: UInt64 = 0x10
    package static let highMemoryStart: UInt64 = 0x100000

    // The hole below 4 GiB.
    /// RAM ends here at the latest and goes on at 4 GiB.
    package static let lowRAMEnd: UInt64 = 0xC000_0000
    /// 32-bit window for BARs: the whole of it fits beside ECAM below the interrupt controllers.
    package static let pciWindow: UInt64 = 0xC000_0000
    package static let pciWindowSize: UInt64 = 0x2000_0000
    /// The upper half of it, where file system devices show files of the host.
    package static let fileWindow: UInt64 = 0xD000_0000
    package static let fileWindowSize: UInt64 = 0x1000_0000
    /// Configuration space of bus 0, 1 MiB.
    package static let ecam: UInt64 = 0xE000_0000
    package static let ecamSize: UInt64 = 0x10_0000
    package static let ioAPIC: UInt64 = 0xFEC0_0000
    package static let localAPIC: UInt64 = 0xFEE0_0000
    package static let apicSize: UInt64 = 0x1000
    /// KVM's identity-map page and TSS pages on Intel hosts: nothing else may be here.
    package static let kvmIdentityMap: UInt64 = 0xFFFB_C000
    package static let kvmTSS: UInt64 = 0xFFFB_D000
    package static let kvmTSSSize: UInt64 = 0x3000
    package static let highRAMStart: UInt64 = 0x1_0000_0000

    // Ports.
    package static let serialPort: UInt16 = 0x3F8
    package static let rtcPort: UInt16 = 0x70
    package static let i8042Port: UInt16 = 0x60
    package static let pciConfigPort: UInt16 = 0xCF8
    package static let acpiPort: UInt16 = 0x600
    package static let acpiPortSize: UInt16 = 8
    /// Guest test programs and benchmarks leave marks here (POST code port).
    package static let debugPort: UInt16 = 0x80

    // Global system interrupts: below 24 on the I/O APIC, edge triggered like ISA.
    package static let serialGSI: UInt32 = 4
    /// The generic event device's interrupt: the power button.
    package static let eventGSI: UInt32 = 5

    /// RAM ranges for a memory size.
    package static func ramLayout(_ size: UInt64) -> [(base: UInt64, size: UInt64)] {
        if size <= lowRAMEnd { return [(0, size)] }
        return [(0, lowRAMEnd), (highRAMStart, size - lowRAMEnd)]
    }

    /// Named ranges, ascending: printed into Documentation/memory-map.md and checked for overlaps by a test.
    package static let ranges: [(name: String, start: UInt64, size: UInt64)] = [
        ("boot GDT", gdt, gdtSize),
        ("boot parameters", bootParameters, bootParametersSize),
        ("boot stack", bootStackTop - 0xFF0, 0xFF0),
        ("boot page tables", pageTables, pageTablesSize),
        ("boot setup data", setupData, setupDataSize),
        ("kernel command line", commandLine, commandLineSize),
        ("ACPI tables", acpi, acpiSize), ("generation ID", generationID, generationIDSize),
        ("reset vector", resetVector, resetVectorSize),
        ("RAM from 1 MiB", highMemoryStart, lowRAMEnd - highMemoryStart),
        ("PCI 32-bit window", pciWindow, fileWindow - pciWindow),
        ("PCI 32-bit window, files of the host", fileWindow, fileWindowSize),
        ("PCI ECAM", ecam, ecamSize),
        ("I/O APIC", ioAPIC, apicSize),
        ("local APIC", localAPIC, apicSize),
        ("KVM identity map", kvmIdentityMap, 0x1000),
        ("KVM TSS", kvmTSS, kvmTSSSize),
    ]

    /// The table of `Documentation/memory-map.md`.
    package static func table() -> String {
        func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        var lines = ["| start | end | what |", "|---|---|---|"]
        for range in ranges { lines.append("| \(hex(range.start)) | \(hex(range.start + range.size - 1)) | \(range.name) |") }
        lines.append("| \(hex(highRAMStart)) | | RAM above 3 GiB |")
        lines += ["", "| port | what |", "|---|---|"]
        let ports: [(UInt16, String)] = [
            (i8042Port, "i8042 (reset only)"), (rtcPort, "RTC"), (debugPort, "debug marks"), (serialPort, "serial port, GSI \(serialGSI)"),
            (acpiPort, "ACPI sleep, reset and event registers, GSI \(eventGSI)"), (pciConfigPort, "PCI configuration"),
        ]
        for (port, name) in ports { lines.append("| \(hex(UInt64(port))) | \(name) |") }
        return lines.joined(separator: "\n") + "\n"
    }
}
