import Synchronization

/// Bus 0 with its functions, reached through ECAM and through ports 0xCF8–0xCFF. PCI Express Base 3.0 § 7.2.2.
package final class PCIHost: Sendable {
    private struct State {
        var functions: [PCIFunction?] = Array(repeating: nil, count: 32)
        var address: UInt32 = 0
        /// Where each slot's BAR 0 is decoded now.
        var windows: [Range<UInt64>?] = Array(repeating: nil, count: 32)
    }
    private let state = Mutex(State())
    private let barBase: UInt64
    private let barEnd: UInt64

    /// - Parameter barWindow: where BARs are placed to begin with.
    package init(barWindow: Range<UInt64>) {
        barBase = barWindow.lowerBound
        barEnd = barWindow.upperBound
        let bridge = PCIFunction(vendor: 0x1B36, device: 0x0008, classCode: 0x060000, revision: 0)
        state.withLock { $0.functions[0] = bridge }
    }

    /// Puts a function into the next free slot and gives its BAR an address; nil when all 31 slots are taken.
    package func add(_ function: PCIFunction) -> Int? {
        state.withLock { state in
            guard let slot = state.functions.firstIndex(where: { $0 == nil }) else { return nil }
            state.functions[slot] = function
            if function.barSize > 0 {
                var place = barBase
                for window in state.windows.compactMap({ $0 }) { place = max(place, window.upperBound) }
                place = (place + function.barSize - 1) & ~(function.barSize - 1)
                function.barAddress = place
                state.windows[slot] = place..<place + function.barSize
            }
            return slot
        }
    }

    // MARK: configuration space

    package func ecamRead(_ offset: UInt64, size: Int) -> UInt64 {
        let slot = Int(offset >> 15 & 31)
        guard offset >> 20 == 0, offset >> 12 & 7 == 0 else { return .max }
        return UInt64(read(slot, Int(offset & 0xFFF), size: size))
    }
    package func ecamWrite(_ offset: UInt64, _ value: UInt64, size: Int) {
        guard offset >> 20 == 0, offset >> 12 & 7 == 0 else { return }
        write(Int(offset >> 15 & 31), Int(offset & 0xFFF), UInt32(truncatingIfNeeded: value), size: size)
    }
    package func portRead(_ port: UInt16, size: Int) -> UInt32 {
        let address = state.withLock { $0.address }
        if port < 0xCFC { return port == 0xCF8 && size == 4 ? address : .max }
        guard let (slot, offset) = Self.target(address, port) else { return .max }
        return read(slot, offset, size: size)
    }
    package func portWrite(_ port: UInt16, _ value: UInt32, size: Int) {
        if port < 0xCFC {
            if port == 0xCF8, size == 4 { state.withLock { $0.address = value } }
            return
        }
        guard let (slot, offset) = Self.target(state.withLock({ $0.address }), port) else { return }
        write(slot, offset, value, size: size)
    }
    private static func target(_ address: UInt32, _ port: UInt16) -> (Int, Int)? {
        guard address >> 31 == 1, address >> 16 & 0xFF == 0, address >> 8 & 7 == 0 else { return nil }
        return (Int(address >> 11 & 31), Int(address & 0xFC) + Int(port & 3))
    }
    private func read(_ slot: Int, _ offset: Int, size: Int) -> UInt32 {
        guard let function = state.withLock({ $0.functions[slot] }) else { return .max }
        return function.configRead(offset, size: min(size, 4))
    }
    private func write(_ slot: Int, _ offset: Int, _ value: UInt32, size: Int) {
        guard let function = state.withLock({ $0.functions[slot] }) else { return }
        if function.configWrite(offset, value, size: min(size, 4)), function.barSize > 0 {
            let base = function.barAddress
            // A guest may put it anywhere, at the very end of the address space too.
            let (end, wraps) = base.addingReportingOverflow(function.barSize)
            state.withLock { $0.windows[slot] = function.isMemoryEnabled && !wraps ? base..<end : nil }
            (function.bar as? any PCIBarRelocation)?.barMoved(to: function.isMemoryEnabled ? base : nil)
        }
    }

    // MARK: images

    package struct Image: Equatable, Sendable, Codable {
        package var address: UInt32
        /// By slot.
        package var functions: [String: PCIFunction.Image]
    }
    package var image: Image {
        let (functions, address) = state.withLock { ($0.functions, $0.address) }
        var images: [String: PCIFunction.Image] = [:]
        for (slot, function) in functions.enumerated() { images[String(slot)] = function?.image }
        return Image(address: address, functions: images)
    }
    /// Writes what the guest had written; false when the functions are others. Before the guest runs.
    package func restore(_ image: Image) -> Bool {
        let functions = state.withLock { state in
            state.address = image.address
            return state.functions
        }
        for (slot, function) in functions.enumerated() {
            guard (function != nil) == (image.functions[String(slot)] != nil) else { return false }
            guard let function, let saved = image.functions[String(slot)] else { continue }
            guard function.matches(saved), (function.msix != nil) == (saved.msix != nil) else { return false }
            if let table = saved.msix { function.msix?.restore(table) }
            // From the end, so that the BAR is in its place before memory accesses are switched on.
            for offset in stride(from: 252, through: 0, by: -4) {
                let value = (0..<4).reduce(0 as UInt32) { $0 | UInt32(saved.configuration[offset + $1]) << UInt32(8 * $1) }
                write(slot, offset, value, size: 4)
            }
        }
        return true
    }

    // MARK: BARs

    /// The function and offset behind a memory address.
    package func decode(_ address: UInt64) -> (PCIFunction, UInt64)? {
        state.withLock { state in
            for (slot, window) in state.windows.enumerated() {
                guard let window, window.contains(address), let function = state.functions[slot] else { continue }
                return (function, address - window.lowerBound)
            }
            return nil
        }
    }
}

/// For BARs whose address an engine was told (ioeventfd).
package protocol PCIBarRelocation: AnyObject {
    /// nil: memory decoding is off.
    func barMoved(to base: UInt64?)
}
