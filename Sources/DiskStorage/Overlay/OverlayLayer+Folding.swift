import Glibc
import LinuxSystem

/// Layers that become one. Nothing else may use either of them.
extension OverlayLayer {
    /// Writes what the layer has into its base; the layer is of no use then, and so is every other one over that base.
    func merge(progress: (Double) -> Void) throws(DiskError) {
        let target = try openTarget()
        var result: Int32 = 0
        forEachOwnCluster { index, count in
            result = copy(index, from: self, to: target)
            progress(Double(index + 1) / Double(count))
            return result == 0
        }
        if result == 0 { result = target.flush() }
        guard result == 0 else { throw DiskError(.system, "cannot write \(header.basePath): \(String(cString: strerror(result)).lowercased())", errno: result) }
        target.finish()
    }
    private func openTarget() throws(DiskError) -> any BlockBackend {
        (base as? RawDisk)?.unlock()
        (base as? OverlayLayer)?.unlock()
        if header.baseIsOverlay {
            guard header.diskSize == header.baseSize else { throw DiskError(.notADisk, "the overlay \(path) is larger than its base, which is an overlay: it cannot be merged") }
            let target = try OverlayLayer(path: header.basePath, readOnly: false)
            try target.lock()
            return target
        }
        let raw = try RawDisk(path: header.basePath, readOnly: false)
        try raw.lock(path: header.basePath)
        guard header.diskSize > header.baseSize else { return raw }
        // The image grows with the disk; opened anew, it knows its size.
        guard truncate(header.basePath, off_t(header.diskSize)) == 0 else {
            throw DiskError(.system, "cannot enlarge \(header.basePath): \(String(cString: strerror(errno)).lowercased())", errno: errno)
        }
        raw.unlock()
        let larger = try RawDisk(path: header.basePath, readOnly: false)
        try larger.lock(path: header.basePath)
        return larger
    }

    /// Puts a layer in its place that has what its base, an overlay, has as well, and that stands on the base's base. The disk's contents,
    /// and the file's time of modification, by which layers above know it, are the same. The new file is complete when it takes the
    /// name; this object still is the old one.
    func absorbBase(progress: (Double) -> Void) throws(DiskError) {
        guard let lower = base as? OverlayLayer else { throw DiskError(.notADisk, "the base of \(path) is no overlay") }
        try replace(over: lower.header, size: byteCount, also: lower, progress)
    }
    /// Puts a layer of a larger disk in its place; behind the old end it has zeroes. As with `absorbBase`, this object is the old one.
    func grow(to size: UInt64, progress: (Double) -> Void) throws(DiskError) {
        guard size >= byteCount else { throw DiskError(.notADisk, "the disk \(path) has \(byteCount) bytes already; it can only grow") }
        try replace(over: header, size: size, also: nil, progress)
    }
    /// - Parameter also: a layer whose clusters are taken where this one has none.
    private func replace(over other: OverlayHeader, size: UInt64, also lower: OverlayLayer?, _ progress: (Double) -> Void) throws(DiskError) {
        let temporary = path + ".new"
        unlink(temporary)
        try Self.create(path: temporary, base: other.basePath, baseIsOverlay: other.baseIsOverlay, size: size)
        do throws(DiskError) {
            let target = try OverlayLayer(path: temporary, readOnly: false)
            var result: Int32 = 0
            for index in 0..<table.count where result == 0 {
                if table[index] != OverlayTable.inBase {
                    result = copy(index, from: self, to: target)
                } else if let lower, index < lower.table.count, lower.table[index] != OverlayTable.inBase {
                    result = copy(index, from: lower, to: target)
                }
                progress(Double(index + 1) / Double(table.count))
            }
            if result == 0 { result = target.flush() }
            guard result == 0 else { throw failure(result) }
            var info = stat()
            guard fstat(file, &info) == 0 else { throw failure(errno) }
            let times = [timespec(tv_sec: 0, tv_nsec: 0x3FFF_FFFE), info.st_mtim]  // UTIME_OMIT
            guard futimens(target.file, times) == 0, fsync(target.file) == 0, rename(temporary, path) == 0 else { throw failure(errno) }
            HostDirectory.synchronize(of: path)
        } catch {
            unlink(temporary)
            throw error
        }
    }
    private func failure(_ code: Int32) -> DiskError {
        DiskError(.system, "cannot write the overlay \(path): \(String(cString: strerror(code)).lowercased())", errno: code)
    }

    /// Calls `body` with the cluster's index and the number of all, until it returns false.
    private func forEachOwnCluster(_ body: (Int, Int) -> Bool) {
        for index in 0..<table.count where table[index] != OverlayTable.inBase { if !body(index, table.count) { return } }
    }
    private func copy(_ index: Int, from source: OverlayLayer, to target: any BlockBackend) -> Int32 {
        let at = UInt64(index) * UInt64(Self.cluster)
        guard at < target.byteCount else { return 0 }
        let size = min(Self.cluster, Int(min(source.byteCount, target.byteCount) - at))
        if source.table[index] == OverlayTable.zeroes { return target.writeZeroes(at: at, count: UInt64(size), mayUnmap: true) }
        return withUnsafeTemporaryAllocation(byteCount: Self.cluster, alignment: 4096) { buffer in
            var vector = iovec(iov_base: buffer.baseAddress, iov_len: size)
            let result = source.read(at: at, &vector, 1)
            vector = iovec(iov_base: buffer.baseAddress, iov_len: size)
            return result == 0 ? target.write(at: at, &vector, 1) : result
        }
    }
}
