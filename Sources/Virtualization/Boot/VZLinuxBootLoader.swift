import Foundation

/// Starts a Linux kernel directly: a bzImage or an ELF vmlinux for x86-64.
open class VZLinuxBootLoader: VZBootLoader {
    /// The kernel's file. It is read when the machine starts, not before.
    open var kernelURL: URL
    /// The kernel command line; the default is empty.
    open var commandLine: String = ""
    /// A file loaded into memory before the kernel starts, or nil.
    open var initialRamdiskURL: URL?

    public init(kernelURL: URL) {
        self.kernelURL = kernelURL
        super.init()
    }
    public override func copy(with zone: NSZone? = nil) -> Any {
        let copy = VZLinuxBootLoader(kernelURL: kernelURL)
        copy.commandLine = commandLine
        copy.initialRamdiskURL = initialRamdiskURL
        return copy
    }
}
