// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [.swiftLanguageMode(.v6)]
/// Glibc shows its Linux interface only with _GNU_SOURCE; a define is no unsafe flag.
let linux: [CSetting] = [.define("_GNU_SOURCE")]

func room(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, cSettings: linux, swiftSettings: settings)
}

let package = Package(
    name: "swift-virtualization",
    products: [
        .library(name: "Virtualization", type: .dynamic, targets: ["Virtualization"]),
        .executable(name: "vz", targets: ["vz"]),
    ],
    dependencies: [.package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2")],
    targets: [
        // C: layouts and calls that Swift cannot import.
        .target(name: "CX86"),
        .target(name: "CLinux"),
        .target(name: "CCompression", linkerSettings: [.linkedLibrary("z"), .linkedLibrary("lzma"), .linkedLibrary("zstd"), .linkedLibrary("lz4")]),
        // The rooms, lowest first: each may import those above it in this list.
        room("LinuxSystem", ["CLinux"]),
        room("GuestMemory", ["CLinux", "LinuxSystem"]),
        room("Hypervisor", ["GuestMemory", "LinuxSystem"]),
        .target(name: "X86", dependencies: ["CX86"], exclude: ["README.md"], cSettings: linux, swiftSettings: settings),
        room("SoftwareEngine", ["CLinux", "X86", "Hypervisor", "GuestMemory", "LinuxSystem"]),
        room("KVMEngine", ["CLinux", "Hypervisor", "GuestMemory", "LinuxSystem"]),
        room("DiskStorage", ["CLinux", "LinuxSystem"]),
        room("GuestBoot", ["CCompression", "CLinux", "GuestMemory", "Hypervisor"]),
        room("PlatformDevices", ["Hypervisor", "LinuxSystem"]),
        room("HostNetwork", ["CLinux", "LinuxSystem"]),
        room("UserNetwork", ["CLinux", "HostNetwork", "LinuxSystem"]),
        room("FileServer", ["CLinux", "LinuxSystem"]),
        room("VirtioDevices", ["CLinux", "FileServer", "PlatformDevices", "DiskStorage", "HostNetwork", "GuestMemory", "Hypervisor", "LinuxSystem"]),
        room("NVMe", ["CLinux", "PlatformDevices", "DiskStorage", "GuestMemory", "Hypervisor", "LinuxSystem"]),
        room(
            "Monitor",
            [
                "NVMe", "FileServer", "SoftwareEngine", "KVMEngine", "VirtioDevices", "PlatformDevices", "GuestBoot", "DiskStorage", "HostNetwork", "Hypervisor", "GuestMemory",
                "LinuxSystem",
            ]),
        room("Virtualization", ["Monitor", "VirtioDevices", "FileServer", "DiskStorage", "HostNetwork", "UserNetwork", "Hypervisor", "LinuxSystem"]),
        room("MachineLibrary", ["CCompression", "Virtualization"]),
        .executableTarget(
            name: "vz", dependencies: ["MachineLibrary", "Virtualization", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            cSettings: linux, swiftSettings: settings),
        // Tests.
        .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: settings),
        .target(name: "CHostRunner"),
        .target(name: "CAllocationCounter"),
        .target(name: "CZydisOracle", linkerSettings: [.linkedLibrary("Zydis")]),
        .testTarget(
            name: "VirtioDevicesTests",
            dependencies: ["TestSupport", "VirtioDevices", "DiskStorage", "HostNetwork", "GuestMemory", "Hypervisor", "PlatformDevices", "LinuxSystem", "CAllocationCounter"],
            swiftSettings: settings),
        .testTarget(
            name: "UserNetworkTests", dependencies: ["TestSupport", "UserNetwork", "HostNetwork", "CLinux"], cSettings: linux, swiftSettings: settings),
        .testTarget(name: "DiskStorageTests", dependencies: ["TestSupport", "DiskStorage"], swiftSettings: settings),
        .testTarget(
            name: "NVMeTests", dependencies: ["TestSupport", "NVMe", "DiskStorage", "GuestMemory", "Hypervisor", "LinuxSystem"], swiftSettings: settings),
        .testTarget(name: "FileServerTests", dependencies: ["CLinux", "TestSupport", "FileServer"], cSettings: linux, swiftSettings: settings),
        .testTarget(name: "LinuxSystemTests", dependencies: ["LinuxSystem", "CLinux"], cSettings: linux, swiftSettings: settings),
        .testTarget(name: "PlatformDevicesTests", dependencies: ["TestSupport", "PlatformDevices", "Hypervisor", "LinuxSystem"], swiftSettings: settings),
        .testTarget(name: "CommandTests", cSettings: linux, swiftSettings: settings),
        .testTarget(name: "RepositoryTests", swiftSettings: settings),
        .testTarget(name: "GuestBootTests", dependencies: ["GuestBoot"], swiftSettings: settings),
        .testTarget(name: "KVMEngineTests", dependencies: ["KVMEngine", "Hypervisor", "GuestMemory"], swiftSettings: settings),
        .testTarget(name: "VirtualizationTests", dependencies: ["Virtualization"], cSettings: linux, swiftSettings: settings),
        .testTarget(
            name: "IntegrationTests", dependencies: ["CLinux", "TestSupport", "Virtualization", "Monitor", "GuestBoot", "HostNetwork"], cSettings: linux, swiftSettings: settings),
        .testTarget(name: "X86Tests", dependencies: ["TestSupport", "X86", "CX86", "CHostRunner", "CZydisOracle"], swiftSettings: settings),
    ]
)
