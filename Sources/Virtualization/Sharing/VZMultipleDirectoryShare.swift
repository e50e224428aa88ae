import Foundation

/// Several directories, each under its name in the root of the mount.
open class VZMultipleDirectoryShare: VZDirectoryShare {
    public let directories: [String: VZSharedDirectory]
    public override init() {
        directories = [:]
        super.init()
    }
    public init(directories: [String: VZSharedDirectory]) {
        self.directories = directories
        super.init()
    }
    /// Throws `VZError.invalidVirtualMachineConfiguration` for a name that cannot be a directory entry.
    open class func validateName(_ name: String) throws {
        guard !name.isEmpty else { throw VZError.configuration("The directory share name is empty.") }
        guard name != ".", name != ".." else { throw VZError.configuration("The directory share name \"\(name)\" is reserved.") }
        guard !name.contains("/"), !name.utf8.contains(0) else {
            throw VZError.configuration("The directory share name \"\(name)\" contains unsafe characters.")
        }
        guard name.utf8.count <= 255 else { throw VZError.configuration("The directory share name is longer than 255 bytes.") }
    }
    /// A valid name made from `name`, or nil when nothing is left of it.
    open class func canonicalizedName(from name: String) -> String? {
        var result = ""
        for character in name where character != "/" && character != "\0" && result.utf8.count + String(character).utf8.count <= 255 {
            result.append(character)
        }
        return (try? validateName(result)) == nil ? nil : result
    }
}
