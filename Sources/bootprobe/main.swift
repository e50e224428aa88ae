import Glibc
import Monitor
import PlatformDevices
import SoftwareEngine
import VirtioDevices
import DiskStorage
let args = CommandLine.arguments
var d = MachineDescription(cpuCount: Int(args[4])!, memorySize: UInt64(args[5])! << 20, kernelPath: args[1], initialRamdiskPath: args[2], commandLine: args[3])
d.serialOutput = 1
d.entropyDeviceCount = 1
d.consoles = [.init(ports: [0: .init(name: nil, isConsole: true, endpoint: .init(input: 0, output: 1))], maximumPorts: 1, isMultiPort: false)]
for p in args.dropFirst(6) { d.disks.append(.init(backend: try! RawDisk(path: p, readOnly: false), identifier: "disk")) }
let engine = SoftwareEngine { try SoftwareInterruptController(cpuCount: $0, clockBase: $1) }
let m = try Machine(d, engine: engine) { event in
    print("EVENT \(event)")
    exit(0)
}
m.start { error in print("start: \(error.map { "\($0)" } ?? "ok")"); if error != nil { exit(1) } }
while true { sleep(100) }
