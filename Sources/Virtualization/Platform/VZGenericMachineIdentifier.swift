import Foundation

/// An opaque, unique name of a machine's hardware; equal when its bytes are.
open class VZGenericMachineIdentifier: NSObject, NSCopying {
    private static let magic = Data("VZGM1".utf8)
    private let identifier: UUID

    public override init() {
        identifier = UUID()
        super.init()
    }
    /// nil for bytes that `dataRepresentation` did not make.
    public init?(dataRepresentation: Data) {
        let bytes = Array(dataRepresentation)
        guard bytes.count == 21, Data(bytes.prefix(5)) == Self.magic else { return nil }
        let b = Array(bytes[5...])
        identifier = UUID(uuid: (b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]))
        super.init()
    }
    open var dataRepresentation: Data { Self.magic + withUnsafeBytes(of: identifier.uuid) { Data($0) } }

    public func copy(with zone: NSZone? = nil) -> Any { self }
    open override func isEqual(_ object: Any?) -> Bool { (object as? VZGenericMachineIdentifier)?.identifier == identifier }
    open override var hash: Int { identifier.hashValue }
}
