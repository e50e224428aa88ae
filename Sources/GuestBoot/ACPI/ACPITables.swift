import GuestMemory

/// The ACPI tables of a hardware-reduced machine. ACPI 6.4 chapter 5.
package enum ACPITables {
    /// Writes all tables at `MachineLayout.acpi`; the RSDP comes first.
    package static func write(to memory: GuestMemory, cpuCount: Int) throws(GuestFault) {
        var next = MachineLayout.acpi + 64
        func place(_ table: [UInt8]) throws(GuestFault) -> UInt64 {
            let address = next
            try memory.write(table, at: address)
            next += UInt64((table.count + 15) & ~15)
            return address
        }
        let dsdt = try place(seal("DSDT", revision: 2, definitionBlock()))
        let fadt = try place(seal("FACP", revision: 6, fixedDescription(dsdt: dsdt)))
        let madt = try place(seal("APIC", revision: 5, interruptControllers(cpuCount)))
        let mcfg = try place(seal("MCFG", revision: 1, configurationSpace()))
        let xsdt = try place(seal("XSDT", revision: 1, [fadt, madt, mcfg].flatMap { little($0, 8) }))
        var rsdp = Array("RSD PTR ".utf8) + [0] + Array("SWIFTV".utf8) + [2] + little(0, 4) + little(36, 4) + little(xsdt, 8) + [0, 0, 0, 0]
        rsdp[8] = checksum(rsdp.prefix(20))
        rsdp[32] = checksum(rsdp[...])
        try memory.write(rsdp, at: MachineLayout.acpi)
    }

    private static func little(_ value: UInt64, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) } }
    private static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }

    /// Puts the common header in front of a table's body. § 5.2.6.
    private static func seal(_ signature: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
        var table = Array(signature.utf8) + little(UInt64(body.count + 36), 4) + [revision, 0]
        table += Array("SWIFTV".utf8) + Array("SWIFTVIR".utf8) + little(1, 4) + Array("SWFT".utf8) + little(1, 4) + body
        table[9] = checksum(table[...])
        return table
    }

    /// A generic address structure in I/O space, byte access. § 5.2.3.2.
    private static func ioRegister(_ port: UInt16) -> [UInt8] { [1, 8, 0, 1] + little(UInt64(port), 8) }

    /// FADT without its header: offsets below are from the table's start. § 5.2.9.
    private static func fixedDescription(dsdt: UInt64) -> [UInt8] {
        var table = [UInt8](repeating: 0, count: 276)
        func put(_ offset: Int, _ bytes: [UInt8]) { table.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
        put(40, little(dsdt, 4))
        put(109, little(0x04, 2))  // IAPC_BOOT_ARCH: no VGA
        // WBINVD, control-method buttons, RESET_REG_SUP, HW_REDUCED_ACPI
        put(112, little(1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20, 4))
        put(116, ioRegister(MachineLayout.acpiPort + 2))
        put(128, [1])
        put(131, [4])
        put(140, little(dsdt, 8))
        put(244, ioRegister(MachineLayout.acpiPort))
        put(256, ioRegister(MachineLayout.acpiPort + 1))
        return Array(table[36...])
    }

    /// § 5.2.12.
    private static func interruptControllers(_ cpuCount: Int) -> [UInt8] {
        var body = little(MachineLayout.localAPIC, 4) + little(0, 4)
        for cpu in 0..<cpuCount { body += [0, 8, UInt8(cpu), UInt8(cpu)] + little(1, 4) }
        body += [1, 12, 0, 0] + little(MachineLayout.ioAPIC, 4) + little(0, 4)
        return body
    }

    private static func configurationSpace() -> [UInt8] {
        little(0, 8) + little(MachineLayout.ecam, 8) + little(0, 2) + [0, 0] + little(0, 4)
    }

    private static func definitionBlock() -> [UInt8] {
        AML { root in
            root.name("_S5_", package: [5, 0, 0, 0])
            root.scope("_SB_") { sb in
                sb.device("PWRB") { device in
                    device.name("_HID", eisaID: "PNP0C0C")
                    device.name("_UID", integer: 0)
                }
                sb.device("GED_") { device in
                    device.name("_HID", string: "ACPI0013")
                    device.name("_UID", integer: 0)
                    device.name("_CRS", resources: ACPIResource.interrupt(MachineLayout.eventGSI))
                    device.ioRegion("EVTR", port: MachineLayout.acpiPort + 4, length: 1)
                    device.field("EVTR", [("EVST", 8)])
                    device.method("_EVT", arguments: 1) { method in
                        method.storeToLocal0("EVST")
                        method.ifLocal0(1, notify: "PWRB", 0x80)
                        method.ifLocal0(2, notify: "VGEN", 0x80)
                    }
                }
                // Virtual Machine Generation ID (Microsoft): kernels that know it make new random numbers when it changes.
                sb.device("VGEN") { device in
                    device.name("_HID", string: "SWFT0001")
                    device.name("_CID", strings: ["VMGENCTR", "VM_Gen_Counter"])
                    device.name("_DDN", string: "VM_Gen_Counter")
                    device.name("_UID", integer: 0)
                    device.name("ADDR", package: [MachineLayout.generationID, 0])
                }
                sb.device("COM1") { device in
                    device.name("_HID", eisaID: "PNP0501")
                    device.name("_UID", integer: 0)
                    device.name("_CRS", resources: ACPIResource.io(MachineLayout.serialPort, 8) + ACPIResource.irq(MachineLayout.serialGSI))
                }
                sb.device("PCI0") { device in
                    device.name("_HID", eisaID: "PNP0A08")
                    device.name("_CID", eisaID: "PNP0A03")
                    device.name("_UID", integer: 0)
                    device.name("_SEG", integer: 0)
                    device.name("_BBN", integer: 0)
                    device.name(
                        "_CRS",
                        resources: ACPIResource.busNumbers(0, 0) + ACPIResource.io(MachineLayout.pciConfigPort, 8)
                            + ACPIResource.memoryWindow(MachineLayout.pciWindow, MachineLayout.pciWindowSize))
                }
                // Without a reservation Linux does not trust MCFG.
                sb.device("RES0") { device in
                    device.name("_HID", eisaID: "PNP0C02")
                    device.name("_UID", integer: 1)
                    device.name("_CRS", resources: ACPIResource.memory32Fixed(MachineLayout.ecam, MachineLayout.ecamSize))
                }
            }
        }.bytes
    }
}
