// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [.swiftLanguageMode(.v6)]
let linux: [CSetting] = [.define("_GNU_SOURCE")]

let package = Package(
    name: "swift-virtualization",
    targets: [
        .target(name: "CX86"),
        .target(name: "X86", dependencies: ["CX86"], cSettings: linux, swiftSettings: settings),
        .target(name: "CHostRunner"),
        .testTarget(name: "X86Tests", dependencies: ["X86", "CX86", "CHostRunner"], swiftSettings: settings),
    ]
)
