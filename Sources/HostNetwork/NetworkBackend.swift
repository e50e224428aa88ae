import Glibc

/// What became of a frame that was to be sent or received.
package enum FrameResult: Equatable, Sendable {
    /// Done, with this many bytes. A received frame that was longer than the room for it counts its own bytes.
    case done(Int)
    /// Not now: wait for the descriptor.
    case wouldBlock
    /// The frame is lost, as frames may be; the next one may fare better.
    case lost
    /// The other side is gone for good.
    case failed(String)
}

/// The host's side of a network device: Ethernet frames go in and come out.
/// One thread sends and another receives at the same time, on each lane.
package protocol NetworkBackend: AnyObject, Sendable {
    /// Largest frame without its Ethernet header, in bytes, that goes in one piece.
    var maximumTransmissionUnit: Int { get }
    /// Whether frames may go in without checksum and uncut, and may come out so.
    var handlesOffloads: Bool { get }
    /// Readable while a frame waits, writable while one can be sent.
    var descriptor: Int32 { get }
    func send(_ pieces: UnsafePointer<iovec>, _ count: Int, _ offload: FrameOffload) -> FrameResult
    /// - Parameter offload: what the frame still needs; nothing that is not in `accepted`.
    func receive(_ pieces: UnsafeMutablePointer<iovec>, _ count: Int, _ accepted: AcceptedOffloads, _ offload: inout FrameOffload) -> FrameResult
    /// A device with this address (six bytes) and up to so many queue pairs uses the backend from now on.
    func attached(_ address: [UInt8], queuePairs: Int)
    /// Ways in and out that do not wait for each other, for one queue pair each; at least the backend itself.
    var laneCount: Int { get }
    func lane(_ index: Int) -> any NetworkBackend
    /// The driver uses this many queue pairs: no frame is to come out of lanes beyond them.
    func use(lanes: Int)
    /// The guest's driver has let go of the device: what it had going is over.
    func driverLeft()
    /// The connections that the guest has through it, for `end` of another backend when the guest goes on there.
    var openConnections: [[UInt8]] { get }
    /// Tells the guest that connections which it had elsewhere are over.
    func end(_ connections: [[UInt8]])
}
extension NetworkBackend {
    package var handlesOffloads: Bool { false }
    package func attached(_ address: [UInt8], queuePairs: Int) {}
    package var laneCount: Int { 1 }
    package func lane(_ index: Int) -> any NetworkBackend { self }
    package func use(lanes: Int) {}
    package func driverLeft() {}
    package var openConnections: [[UInt8]] { [] }
    package func end(_ connections: [[UInt8]]) {}
}

/// Why a network cannot be connected: a sentence for the user.
package struct NetworkError: Error, CustomStringConvertible, Sendable {
    package let description: String
    package init(_ description: String) { self.description = description }
}
