import Foundation

// Key-value observing as Mac programs write it: `vm.observe(\.state) { vm, change in … }`. Foundation on Linux has none, so
// these names are free.

/// Ends an observation when it is invalidated or released.
public final class NSKeyValueObservation: NSObject {
    private var end: (() -> Void)?
    init(_ end: @escaping () -> Void) {
        self.end = end
        super.init()
    }
    public func invalidate() {
        end?()
        end = nil
    }
    deinit { end?() }
}

public struct NSKeyValueObservingOptions: OptionSet, Sendable {
    public let rawValue: UInt
    public init(rawValue: UInt) { self.rawValue = rawValue }
    public static let new = NSKeyValueObservingOptions(rawValue: 1)
    public static let old = NSKeyValueObservingOptions(rawValue: 2)
    public static let initial = NSKeyValueObservingOptions(rawValue: 4)
    public static let prior = NSKeyValueObservingOptions(rawValue: 8)
}

public enum NSKeyValueChange: UInt, Sendable { case setting = 1, insertion, removal, replacement }

public struct NSKeyValueObservedChange<Value> {
    public let kind: NSKeyValueChange
    public let newValue: Value?
    public let oldValue: Value?
    public let indexes: IndexSet?
    public let isPrior: Bool
}

extension VZVirtualMachine {
    /// Calls `changeHandler` on the machine's queue whenever the machine's state, and with it `keyPath`'s value, changes.
    public func observe<Value>(
        _ keyPath: KeyPath<VZVirtualMachine, Value>, options: NSKeyValueObservingOptions = [],
        changeHandler: @escaping (VZVirtualMachine, NSKeyValueObservedChange<Value>) -> Void
    ) -> NSKeyValueObservation {
        func change(_ old: Value?, _ new: Value, isPrior: Bool = false) -> NSKeyValueObservedChange<Value> {
            NSKeyValueObservedChange(
                kind: .setting, newValue: options.contains(.new) && !isPrior ? new : nil, oldValue: options.contains(.old) ? old : nil,
                indexes: nil, isPrior: isPrior)
        }
        var last = self[keyPath: keyPath]
        if options.contains(.initial) { changeHandler(self, change(nil, last)) }
        let identifier = addStateObserver { machine in
            let new = machine[keyPath: keyPath]
            let old = last
            last = new
            if let a = old as? AnyHashable, let b = new as? AnyHashable, a == b { return }
            changeHandler(machine, change(old, new))
        }
        return NSKeyValueObservation { [weak self] in self?.removeStateObserver(identifier) }
    }

    /// Beyond Apple's API: the machine's states from now on, the current one first. Ends when the machine is released.
    public var states: AsyncStream<State> {
        AsyncStream { continuation in
            continuation.yield(state)
            let identifier = addStateObserver({ continuation.yield($0.state) }, ended: { continuation.finish() })
            let machine = WeakMachine(self)
            continuation.onTermination = { _ in
                guard let queue = machine.queue else { return }
                queue.async { machine.value?.removeStateObserver(identifier) }
            }
        }
    }
}
