extension VZVirtualMachine {
    /// Beyond Apple's API: called on the machine's queue each time that the guest has restarted the machine, which goes on by itself.
    /// To be set on that queue.
    public var guestDidRestart: (() -> Void)? {
        get { restarted }
        set { restarted = newValue }
    }
}
