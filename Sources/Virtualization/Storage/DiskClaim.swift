import Foundation

/// The machines of this process that run with a disk. Only the first takes the disk's lock, which others see. Any queue.
final class DiskClaim: @unchecked Sendable {  // locked
    private let lock = NSLock()
    private var count = 0

    /// - Parameters:
    ///   - isShared: whether several machines may have it.
    ///   - name: for the error.
    ///   - take: takes the disk's lock.
    func claim(isShared: Bool, _ name: @autoclosure () -> String, _ take: () throws -> Void) throws {
        lock.lock()
        defer { lock.unlock() }
        if count > 0, !isShared {
            throw VZError.configuration("The storage device attachment is invalid. The \(name()) is in use by another virtual machine of this process.")
        }
        if count == 0 {
            do { try take() } catch { throw VZError.configuration("The storage device attachment is invalid. \("\(error)".capitalizedFirst).") }
        }
        count += 1
    }
    func release(_ give: () -> Void) {
        lock.lock()
        defer { lock.unlock() }
        count -= 1
        if count == 0 { give() }
    }
}
