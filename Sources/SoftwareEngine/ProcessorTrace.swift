import Glibc
import LinuxSystem
import X86

/// `VZ_TRACE` in the environment: what a processor does, for whoever hunts a bug in it. A comma-separated list of
/// `faults` (exceptions and interrupts with their addresses), `blocks` (each block as it is decoded), `exits` (why the run
/// loop got the word), `code` (each translated block with its host code, for Scripts/show-code), `costs` (how long translating takes,
/// every 4096 blocks); lines go to the standard error. `VZ_PERF_MAP=1` writes /tmp/perf-PID.map, in which `perf` finds the guest
/// address of each translated block. `VZ_LOCKSTEP=1` runs each translated block interpreted, too, and says what differs: with one
/// processor only.
enum ProcessorTrace {
    static func attach(to core: X86Core, index: Int) {
        let kinds = variable("VZ_TRACE").split(separator: ",")
        func hex(_ value: UInt64) -> String { String(value, radix: 16) }
        if kinds.contains("faults") {
            core.trace = { [unowned core] vector, rip, error in
                say("cpu \(index) exception \(vector) at \(hex(rip)) error \(hex(error)) cr2 \(hex(core.faultAddress)) cpl \(core.privilege)")
            }
        }
        if kinds.contains("blocks") { core.traceBlock = { rip, gpa, count in say("cpu \(index) block \(hex(rip)) physical \(hex(gpa)) operations \(count)") } }
        if kinds.contains("exits") { core.traceExit = { rip, reason in say("cpu \(index) exit \(reason) at \(hex(rip))") } }
        if kinds.contains("code") {
            core.traceTranslation = { start, size, rip in
                // SAFETY: the block's code, just written.
                let bytes = UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: start), count: size)
                say("cpu \(index) code \(hex(rip)) at \(hex(UInt64(start))) \(bytes.map { hex(UInt64($0) + 256).dropFirst() }.joined())")
            }
        }
        if kinds.contains("costs") {
            let cost = TranslationCost(index)
            core.traceCost = { [unowned core] count, bytes in cost.tell(count, bytes, takenOver: core.takenOver) }
        }
        if variable("VZ_LOCKSTEP") == "1" { core.runInLockStep { say("cpu \(index) \($0)") } }
        if variable("VZ_PERF_MAP") == "1" { core.traceTranslation = PerfMap.shared.add }
    }
    private static func variable(_ name: String) -> String { getenv(name).map { String(cString: $0) } ?? "" }
    fileprivate static func say(_ line: String) {
        let bytes = Array((line + "\n").utf8)
        _ = write(STDERR_FILENO, bytes, bytes.count)
    }
}

/// How long translating takes. One processor's.
private final class TranslationCost {
    private let index: Int
    private var began: UInt64 = 0
    private var bytesBefore = 0
    private var (blocks, instructions, bytes, nanoseconds) = (0, 0, 0, UInt64(0))
    init(_ index: Int) { self.index = index }

    /// - Parameters:
    ///   - count: nil before a block is translated, then its instructions.
    ///   - codeBytes: what the processor's translated code takes.
    ///   - takenOver: blocks that other processors have translated.
    func tell(_ count: Int?, _ codeBytes: Int, takenOver: Int) {
        guard let count else {
            bytesBefore = codeBytes
            return began = monotonicNanoseconds()
        }
        nanoseconds += monotonicNanoseconds() &- began
        blocks += 1
        instructions += count
        bytes += codeBytes - bytesBefore
        guard blocks % 4096 == 0 else { return }
        let all = max(instructions, 1)
        ProcessorTrace.say(
            "cpu \(index) translated \(blocks) blocks, \(instructions) instructions, \(Int(nanoseconds) / all) ns and \(bytes / all) bytes each; took over \(takenOver) blocks"
        )
    }
}

/// perf's own format: start, size and name of each piece of code, a line each.
private final class PerfMap: Sendable {
    static let shared = PerfMap()
    private let descriptor = open("/tmp/perf-\(getpid()).map", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)

    func add(_ start: UInt, _ size: Int, _ rip: UInt64) {
        let line = Array("\(String(start, radix: 16)) \(String(size, radix: 16)) guest_\(String(rip, radix: 16))\n".utf8)
        _ = write(descriptor, line, line.count)
    }
}
