// swift-tools-version: 5.9
import PackageDescription

// Builds on a Mac as it is, and on Linux against an installed module:
//   swift build $(PREFIX/bin/virtualization-config --swift-build-flags)
let package = Package(
    name: "BootLinux",
    platforms: [.macOS(.v13)],
    targets: [.executableTarget(name: "BootLinux", path: "Sources")]
)
