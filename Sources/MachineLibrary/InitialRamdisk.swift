import Foundation

/// Our initial RAM disk: busybox, the modules that reach the root disk and the console, and a script that mounts and goes on.
struct InitialRamdisk {
    /// Modules a guest needs before its root file system is there; those built into the kernel are skipped.
    private static let wanted = ["virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "ext4"]

    /// - Parameter modules: the kernel's module directory (/lib/modules/VERSION) with modules.dep.
    static func make(modules: URL, busybox: URL) throws -> [UInt8] {
        var archive = CPIOArchive()
        for path in ["bin", "dev", "proc", "sys", "root", "modules"] { archive.directory(path) }
        archive.device("dev/console", major: 5, minor: 1)
        archive.file("bin/busybox", Array(try Data(contentsOf: busybox)), executable: true)
        for name in ["sh", "mount", "insmod", "switch_root", "sleep", "echo", "mkdir", "poweroff", "cat", "setsid"] { archive.symbolicLink("bin/\(name)", to: "busybox") }
        var names: [String] = []
        for (index, file) in try loadOrder(modules).enumerated() {
            let module = try KernelModule.read(file)
            names.append("\(index)-\(module.name)")
            archive.file("modules/\(index)-\(module.name)", module.bytes)
        }
        archive.file("init", Array(script(names).utf8), executable: true)
        archive.finish()
        return archive.bytes
    }

    /// Files of the wanted modules and what they depend on, in the order to load them.
    private static func loadOrder(_ modules: URL) throws -> [URL] {
        let text = try String(contentsOf: modules.appendingPathComponent("modules.dep"), encoding: .utf8)
        var dependencies: [String: (file: String, needs: [String])] = [:]
        for line in text.split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 1)
            guard let file = parts.first else { continue }
            let needs = parts.count > 1 ? parts[1].split(separator: " ").map(String.init) : []
            dependencies[name(String(file))] = (String(file), needs)
        }
        var order: [String] = []
        func visit(_ module: String) {
            guard let entry = dependencies[module], !order.contains(entry.file) else { return }
            for need in entry.needs.reversed() { visit(name(need)) }
            order.append(entry.file)
        }
        for module in wanted { visit(module.replacingOccurrences(of: "-", with: "_")) }
        return order.map { modules.appendingPathComponent($0) }
    }
    private static func name(_ path: String) -> String {
        let file = path.split(separator: "/").last.map(String.init) ?? path
        return file.prefix { $0 != "." }.replacingOccurrences(of: "-", with: "_")
    }

    private static func script(_ modules: [String]) -> String {
        """
        #!/bin/sh
        mount -t proc proc /proc
        mount -t sysfs sys /sys
        mount -t devtmpfs dev /dev
        \(modules.map { "insmod /modules/\($0)" }.joined(separator: "\n"))
        root=/dev/vda
        mode=rw
        init=/sbin/init
        for word in $(cat /proc/cmdline); do
            case $word in
            root=*) root=${word#root=} ;;
            ro) mode=ro ;;
            init=*) init=${word#init=} ;;
            esac
        done
        tries=0
        while [ ! -b "$root" ]; do
            tries=$((tries + 1))
            if [ $tries -gt 100 ]; then
                echo "vz: the root disk $root did not appear"
                exec setsid sh -c 'exec sh </dev/console >/dev/console 2>&1'
            fi
            sleep 0.1
        done
        mount -o $mode "$root" /root || { echo "vz: cannot mount $root"; exec sh; }
        mount -o move /dev /root/dev 2>/dev/null || mount -t devtmpfs dev /root/dev
        mount -o move /sys /root/sys
        mount -o move /proc /root/proc
        exec switch_root /root $init

        """
    }
}
