extension VZVirtioFileSystemDeviceConfiguration {
    /// Beyond Apple's API: whether the guest reads and writes large files (a megabyte and more) where the host has them in its
    /// memory, instead of keeping pages of its own: Linux calls that DAX (`CONFIG_FUSE_DAX`, and 5.17 or newer), and needs no option
    /// of `mount` for it. Default false.
    ///
    /// Then a file that somebody else makes shorter while the guest uses it would raise SIGBUS in this process. So the first machine
    /// with such a device installs a handler of that signal for the whole process, which puts a page of zeroes there and leaves
    /// every other address to the handler that was installed before.
    public var areFilesMapped: Bool {
        get { mapsFiles }
        set { mapsFiles = newValue }
    }
}
