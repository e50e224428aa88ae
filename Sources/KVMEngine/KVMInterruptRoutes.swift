import CLinux
import Glibc
import Hypervisor
import LinuxSystem
import Synchronization

/// KVM's table from interrupt numbers (GSI) to interrupts: the I/O APIC's pins, then one for each message route.
/// Linux Documentation/virt/kvm/api.rst § 4.52 KVM_SET_GSI_ROUTING, § 4.75 KVM_IRQFD. Any thread.
final class KVMInterruptRoutes: Sendable {
    private static let ioapicPins = 24
    private static let ioapic: UInt32 = 2  // KVM_IRQCHIP_IOAPIC
    private static let limit = 1024
    /// Bytes of kvm_irq_routing_entry, whose union Swift does not import.
    private static let entrySize = 48

    private let vm: KVMDescriptor
    /// By GSI - 24; nil when the number is free.
    private let messages = Mutex<[MSIMessage?]>([])

    init(vm: KVMDescriptor) { self.vm = vm }

    /// A new number for messages that an eventfd raises; nil when there are no more.
    func makeRoute() -> (any MessageRoute)? {
        guard let event = try? EventFD() else { return nil }
        let slot = messages.withLock { messages -> Int? in
            let unset = MSIMessage(address: 0, data: 0)
            if let free = messages.firstIndex(of: nil) {
                messages[free] = unset
                return free
            }
            guard messages.count < Self.limit else { return nil }
            messages.append(unset)
            return messages.count - 1
        }
        guard let slot else { return nil }
        return KVMMessageRoute(routes: self, slot: slot, event: event)
    }
    fileprivate func set(_ slot: Int, _ message: MSIMessage?) -> Bool {
        messages.withLock { messages in
            let old = messages[slot]
            messages[slot] = message
            if install(messages) { return true }
            messages[slot] = old
            return false
        }
    }
    fileprivate func bind(_ slot: Int, _ event: EventFD, flags: UInt32) -> Bool {
        var request = kvm_irqfd()
        request.fd = UInt32(bitPattern: event.fileDescriptor)
        request.gsi = UInt32(slot + Self.ioapicPins)
        request.flags = flags
        return (try? vm.exchange(KVMRequest.irqFD, &request, "bind an interrupt to an eventfd")) != nil
    }

    /// The whole table anew: KVM takes no single entries.
    private func install(_ messages: [MSIMessage?]) -> Bool {
        let capacity = Self.ioapicPins + messages.count
        let raw = UnsafeMutableRawPointer.allocate(byteCount: 8 + capacity * Self.entrySize, alignment: 8)
        defer { raw.deallocate() }
        memset(raw, 0, 8 + capacity * Self.entrySize)
        var count = 0
        func add(gsi: Int, type: UInt32, _ a: UInt32, _ b: UInt32, _ c: UInt32 = 0) {
            let entry = raw + 8 + count * Self.entrySize
            entry.storeBytes(of: UInt32(gsi), as: UInt32.self)
            entry.storeBytes(of: type, toByteOffset: 4, as: UInt32.self)
            entry.storeBytes(of: a, toByteOffset: 16, as: UInt32.self)
            entry.storeBytes(of: b, toByteOffset: 20, as: UInt32.self)
            entry.storeBytes(of: c, toByteOffset: 24, as: UInt32.self)
            count += 1
        }
        for pin in 0..<Self.ioapicPins { add(gsi: pin, type: 1, Self.ioapic, UInt32(pin)) }
        for (slot, message) in messages.enumerated() {
            guard let message, message.address != 0 else { continue }
            add(gsi: Self.ioapicPins + slot, type: 2, UInt32(truncatingIfNeeded: message.address), UInt32(truncatingIfNeeded: message.address >> 32), message.data)
        }
        raw.storeBytes(of: UInt32(count), as: UInt32.self)
        return (try? vm.call(KVMRequest.setGSIRouting, pointer: raw, "set the interrupt routes")) != nil
    }
}

/// One number of the table with its eventfd.
final class KVMMessageRoute: MessageRoute, Sendable {
    private let routes: KVMInterruptRoutes
    private let slot: Int
    private let event: EventFD
    private let bound = Atomic<Bool>(false)

    fileprivate init(routes: KVMInterruptRoutes, slot: Int, event: EventFD) {
        self.routes = routes
        self.slot = slot
        self.event = event
    }
    deinit {
        if bound.load(ordering: .relaxed) { _ = routes.bind(slot, event, flags: 1) }  // KVM_IRQFD_FLAG_DEASSIGN
        _ = routes.set(slot, nil)
    }
    func set(_ message: MSIMessage) -> Bool {
        guard routes.set(slot, message) else { return false }
        if bound.load(ordering: .relaxed) { return true }
        // The number has its entry now: an eventfd may be bound to it.
        guard routes.bind(slot, event, flags: 0) else { return false }
        bound.store(true, ordering: .relaxed)
        return true
    }
    func signal() { event.signal() }
}
