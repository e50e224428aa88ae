import CX86
import Synchronization

/// The doors through which the CPU reaches everything that is not a register or RAM. Called on the vCPU's thread, in the
/// middle of an instruction.
package protocol X86Environment: AnyObject {
    func portRead(_ port: UInt16, size: Int) -> UInt32
    func portWrite(_ port: UInt16, _ value: UInt32, size: Int)
    func memoryRead(_ address: UInt64, size: Int) -> UInt64
    func memoryWrite(_ address: UInt64, _ value: UInt64, size: Int)
    /// Model-specific registers that are not the core's own (local APIC, clocks); nil makes the access fault.
    func readMSR(_ index: UInt32) -> UInt64?
    func writeMSR(_ index: UInt32, _ value: UInt64) -> Bool
    /// VMCALL or VMMCALL of privilege 0, with what RAX, RBX, RCX, RDX and RSI hold; what RAX holds then.
    func hypercall(_ number: UInt64, _ arguments: (UInt64, UInt64, UInt64, UInt64)) -> UInt64
    func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> (eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32)
    /// The vector of the highest-priority interrupt that may be taken now, acknowledged; nil when there is none.
    func acknowledgeInterrupt() -> UInt8?
    var taskPriority: UInt64 { get set }
}

/// Guest RAM as the cores of one machine see it, and which parts of it hold decoded code.
///
/// Code is tracked in granules of 64 bytes. A page with any marked granule never gets a write tag in a TLB, so each store
/// to it comes by `noteWrite`, which raises the page's version when it touches a marked granule; blocks remember the
/// versions they were decoded at.
package final class PhysicalMemory: @unchecked Sendable {  // tables are fixed after init; their cells are atomic
    struct Region {
        var base: UInt64
        var size: UInt64
        var host: UInt
        var firstPage: Int
    }
    let regions: [Region]
    private let versions: UnsafeMutablePointer<Atomic<UInt32>>
    private let granules: UnsafeMutablePointer<Atomic<UInt64>>
    let pageCount: Int
    /// What the cores have translated.
    let translations = SharedTranslations()
    private let splitUpdates = Atomic<Bool>(false)
    // SAFETY: a core takes itself off this list when it goes, and the machine that owns memory and cores lets go of them only
    // when no thread of it runs any more. No weak references: they would make each retain in the handlers a slow one.
    private let cores = Mutex<[Unmanaged<X86Core>]>([])

    /// - Parameter regions: guest-physical base, size and host address of each piece of RAM, page aligned; the caller
    ///   keeps the mappings alive as long as this object.
    package init(regions: [(base: UInt64, size: UInt64, host: UnsafeMutableRawPointer)]) {
        var first = 0
        self.regions = regions.map { region in
            defer { first += Int(region.size >> 12) }
            return Region(base: region.base, size: region.size, host: UInt(bitPattern: region.host), firstPage: first)
        }
        pageCount = first
        // calloc: untouched pages of the tables cost nothing.
        versions = Self.zeroed(max(first, 1))
        granules = Self.zeroed(max(first, 1))
    }
    private static func zeroed<T: ~Copyable>(_ count: Int) -> UnsafeMutablePointer<T> {
        let bytes = count * MemoryLayout<T>.stride
        let raw = cx_allocate_zeroed(bytes)
        return raw.bindMemory(to: T.self, capacity: count)
    }
    deinit {
        cx_free(versions)
        cx_free(granules)
    }

    func register(_ core: X86Core) { cores.withLock { $0.append(.passUnretained(core)) } }
    func unregister(_ core: X86Core) {
        let address = Unmanaged.passUnretained(core).toOpaque()
        cores.withLock { $0.removeAll { $0.toOpaque() == address } }
    }
    private var allCores: [X86Core] { cores.withLock { $0.map { $0.takeUnretainedValue() } } }

    @inline(__always) func region(at gpa: UInt64) -> Region? {
        for region in regions where gpa &- region.base < region.size { return region }
        return nil
    }
    /// The host address of a guest-physical byte of RAM, or nil.
    @inline(__always) func host(_ gpa: UInt64) -> UnsafeMutableRawPointer? {
        guard let region = region(at: gpa) else { return nil }
        return UnsafeMutableRawPointer(bitPattern: region.host &+ UInt(gpa &- region.base))
    }
    @inline(__always) func page(_ gpa: UInt64) -> Int? {
        guard let region = region(at: gpa) else { return nil }
        return region.firstPage &+ Int((gpa &- region.base) >> 12)
    }
    /// The guest-physical address of the page that a version cell belongs to.
    func address(ofCell cell: UInt) -> UInt64? {
        let page = (Int(bitPattern: cell) - Int(bitPattern: versions)) / MemoryLayout<UInt32>.stride
        for region in regions where page >= region.firstPage && UInt64(page - region.firstPage) << 12 < region.size {
            return region.base + UInt64(page - region.firstPage) << 12
        }
        return nil
    }
    func versionCell(_ page: Int) -> UInt { UInt(bitPattern: versions + page) }
    func version(_ page: Int) -> UInt32 { versions[page].load(ordering: .acquiring) }
    func holdsCode(_ page: Int) -> Bool { granules[page].load(ordering: .sequentiallyConsistent) != 0 }

    static func mask(_ gpa: UInt64, _ count: Int) -> UInt64 {
        let first = (gpa & 4095) >> 6
        let last = min((gpa & 4095) + UInt64(max(count, 1)) - 1, 4095) >> 6
        return (UInt64.max >> (63 - last)) & (UInt64.max << first)
    }

    /// Marks bytes of one page as decoded by `core`. Returns once no other core can write the page unnoticed, with the page's
    /// version from now on.
    func markCode(_ page: Int, _ gpa: UInt64, _ count: Int, by core: X86Core) -> UInt32 {
        let mask = Self.mask(gpa, count)
        while true {
            let before = granules[page].bitwiseOr(mask, ordering: .sequentiallyConsistent).oldValue
            if before == 0 {
                core.dropWriteTags(gpa & ~4095, page)
                let others = allCores.filter { $0 !== core && $0.writtenPages.contains(page) }
                for other in others { other.requestWriteTagFlush(from: core) }
            }
            let version = versions[page].load(ordering: .sequentiallyConsistent)
            // A write that took the marks away before we read the version changed it unnoticed.
            if granules[page].load(ordering: .sequentiallyConsistent) & mask == mask { return version }
        }
    }

    private static let often: UInt32 = 8

    /// To be called for every write to RAM that does not go through a write tag. True when it hit decoded code.
    @discardableResult @inline(__always) func noteWrite(_ gpa: UInt64, _ count: Int) -> Bool {
        guard let page = page(gpa) else { return false }
        let marked = granules[page].load(ordering: .sequentiallyConsistent)
        if marked == 0 || marked & Self.mask(gpa, count) == 0 { return false }
        // Code that is rewritten time and again keeps its other marks, and with them its place among the pages whose writes
        // are looked at: taking that and giving it back costs more than the write.
        let kept = versions[page].load(ordering: .relaxed) < Self.often ? 0 : ~Self.mask(gpa, count)
        granules[page].bitwiseAnd(kept, ordering: .sequentiallyConsistent)
        versions[page].add(1, ordering: .sequentiallyConsistent)
        codeChanged(page)
        return true
    }

    /// For atomic updates of operands that lie in two pages: one at a time.
    func lockSplitUpdates() { while splitUpdates.exchange(true, ordering: .acquiring) { cx_yield() } }
    func unlockSplitUpdates() { splitUpdates.store(false, ordering: .releasing) }

    @inline(never) private func codeChanged(_ page: Int) {
        for core in allCores { core.requestUnlink(versionCell(page)) }  // arrays only: no arithmetic that would touch MXCSR
    }

    /// The same for a device's write of any length, from any thread.
    package func noteDeviceWrite(_ gpa: UInt64, _ count: Int) {
        var address = gpa
        var left = count
        while left > 0 {
            let step = min(left, 4096 - Int(address & 4095))
            noteWrite(address, step)
            address &+= UInt64(step)
            left -= step
        }
    }
}
