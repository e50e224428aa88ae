import Foundation

/// A host directory to share.
open class VZSharedDirectory: NSObject {
    public let url: URL
    public let isReadOnly: Bool
    public init(url: URL, readOnly: Bool) {
        self.url = url
        isReadOnly = readOnly
        super.init()
    }
}
