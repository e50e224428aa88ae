/// What a frame still needs before it could go over a wire. As in VIRTIO 1.2 § 5.1.6.
package struct FrameOffload: Equatable, Sendable {
    package enum Segmentation: Sendable { case none, tcp4, tcp6 }
    /// The 16 bits at `checksumStart + checksumOffset` hold the sum of the pseudo header only.
    package var needsChecksum = false
    package var checksumStart = 0
    package var checksumOffset = 0
    /// The frame is to be cut into TCP segments of `segmentSize` bytes.
    package var segmentation = Segmentation.none
    package var segmentSize = 0

    package init() {}
    package var isNone: Bool { !needsChecksum && segmentation == .none }
}

/// What a receiver takes in an unfinished frame.
package struct AcceptedOffloads: OptionSet, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    package static let checksum = AcceptedOffloads(rawValue: 1)
    package static let tcp4 = AcceptedOffloads(rawValue: 2)
    package static let tcp6 = AcceptedOffloads(rawValue: 4)
}
