import ArgumentParser
import Foundation
import MachineLibrary
import Virtualization

struct Doctor: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show what this host offers: engine, tools, versions.")
    @Option(help: "table or json.") var format: String = "table"

    func run() throws {
        let report = MachineEngine.report
        let home = Home()
        if format == "json" {
            let tools = Dictionary(uniqueKeysWithValues: Tool.all.map { ($0.name, $0.path ?? "") })
            let value: [String: Any] = [
                "version": VZ.configuration.version, "engine": report.chosen, "reason": report.reason, "home": home.url.path, "tools": tools,
                "processors": ProcessInfo.processInfo.activeProcessorCount, "memory": ProcessInfo.processInfo.physicalMemory,
            ]
            print(String(decoding: try JSONSerialization.data(withJSONObject: value, options: [.prettyPrinted, .sortedKeys]), as: UTF8.self))
            return
        }
        print("vz         \(VZ.configuration.version)")
        print("engine     \(report.chosen): \(report.reason)")
        print("host       \(ProcessInfo.processInfo.activeProcessorCount) processors, \(ProcessInfo.processInfo.physicalMemory >> 30) GiB of memory")
        print("home       \(home.url.path)")
        for tool in Tool.all {
            let place = tool.path ?? "missing; needed for `vz image build` (apt-get install \(tool.package))"
            print("\(tool.name)\(String(repeating: " ", count: max(11 - tool.name.count, 1)))\(place)")
        }
    }
}
