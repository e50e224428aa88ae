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

/// The host's side of a network device: Ethernet frames go in and come out, without a checksum and in one piece.
/// One thread sends and another receives at the same time.
package protocol NetworkBackend: AnyObject, Sendable {
    /// Largest frame without its Ethernet header, in bytes.
    var maximumTransmissionUnit: Int { get }
    /// Readable while a frame waits, writable while one can be sent.
    var descriptor: Int32 { get }
    func send(_ pieces: UnsafePointer<iovec>, _ count: Int) -> FrameResult
    func receive(_ pieces: UnsafeMutablePointer<iovec>, _ count: Int) -> FrameResult
}

/// Why a network cannot be connected: a sentence for the user.
package struct NetworkError: Error, CustomStringConvertible, Sendable {
    package let description: String
    package init(_ description: String) { self.description = description }
}
