import Foundation

/// Copies a file with its holes.
enum SparseCopy {
    static func copy(from source: URL, to target: URL) throws {
        let input = open(source.path, O_RDONLY | O_CLOEXEC)
        guard input >= 0 else { throw LibraryError("cannot open \(source.path): \(String(cString: strerror(errno)))") }
        defer { close(input) }
        let output = open(target.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard output >= 0 else { throw LibraryError("cannot create \(target.path): \(String(cString: strerror(errno)))") }
        defer { close(output) }
        let size = lseek(input, 0, SEEK_END)
        func fail() -> LibraryError { LibraryError("cannot copy \(source.path) to \(target.path): \(String(cString: strerror(errno)))") }
        guard ftruncate(output, size) == 0 else { throw fail() }
        if ioctl(output, 0x4004_9409, input) == 0 { return }  // FICLONE
        var position: off_t = 0
        while position < size {
            let start = lseek(input, position, Int32(SEEK_DATA))
            if start < 0 { break }
            let end = lseek(input, start, Int32(SEEK_HOLE))
            var from = start
            var to = start
            while from < end {
                let count = copy_file_range(input, &from, output, &to, Int(end - from), 0)
                if count < 0, errno == EINTR { continue }
                guard count > 0 else { throw fail() }
            }
            position = end
        }
    }
}
