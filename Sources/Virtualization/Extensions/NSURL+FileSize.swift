import Foundation

extension NSURL {
    /// The guide's way of giving a disk image its size, which Foundation on Linux accepts and ignores: sets the length of
    /// the file for `.fileSizeKey`.
    public func setResourceValue(_ value: UInt64, forKey key: URLResourceKey) throws {
        guard key == .fileSizeKey else {
            try setResourceValue(value as Any?, forKey: key)
            return
        }
        guard let path, truncate(path, off_t(clamping: value)) == 0 else {
            throw NSError(domain: NSPOSIXErrorDomain, code: Int(errno), userInfo: [NSFilePathErrorKey: path ?? ""])
        }
    }
}
