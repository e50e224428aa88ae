import Foundation

/// What a file-system device shows. Use a subclass.
open class VZDirectoryShare: NSObject {
    override init() { super.init() }
}
