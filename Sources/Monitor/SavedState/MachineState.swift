import Hypervisor
import NVMe
import PlatformDevices
import VirtioDevices

/// All of a paused machine but its memory: what a saved state holds beside the pages.
package struct MachineState: Equatable, Sendable, Codable {
    package var memorySize: UInt64
    package var machine: MachineImage
    package var pci: PCIHost.Image
    /// In the order of their slots.
    package var devices: [VirtioPCITransport.Image]
    package var controllers: [NVMeController.Image]
    package var uart: UART16550.Image
    package var platformEvents: UInt32
    package var rtcRegister: UInt8
    /// What the machine's owner wants to find again, such as its identifier.
    package var owner: [String: [UInt8]]
    /// Whether file system devices have windows; nil in states of before there were any.
    package var mapsFiles: Bool?
}

/// Why a machine cannot be saved or restored, in a sentence.
package struct SavedStateError: Error, CustomStringConvertible, Equatable, Sendable {
    package enum Kind: Equatable, Sendable {
        /// The file is no saved state, or a damaged one.
        case damaged
        /// It was written by a newer version.
        case newer
        /// The machine is another one than the saved one.
        case mismatch
        case system
    }
    package let kind: Kind
    package let description: String
    package init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}
