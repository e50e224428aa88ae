import Foundation

/// Makes an image from Debian's packages.
public struct DebianImageBuilder: Sendable {
    public let store: ImageStore
    public let release: DebianRelease
    /// Called with a sentence at each step.
    public let progress: @Sendable (String) -> Void

    public init(store: ImageStore, release: DebianRelease = .bookworm, progress: @escaping @Sendable (String) -> Void) {
        self.store = store
        self.release = release
        self.progress = progress
    }

    private static let packages = [
        "systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "iputils-ping", "procps", "less", "ca-certificates", "netbase", "util-linux",
    ]

    /// Builds into a temporary directory that becomes the image only when everything is there.
    ///
    /// - Parameter extra: further Debian packages.
    public func build(name: String, diskSize: UInt64 = 4 << 30, extra: [String] = []) throws {
        let mmdebstrap = try Tool.mmdebstrap.require()
        let mke2fs = try Tool.mke2fs.require()
        let busybox = try Tool.busybox.require()
        let depmod = try Tool.depmod.require()
        guard geteuid() == 0 else { return try buildInUserNamespace(name: name, diskSize: diskSize, extra: extra) }
        let manager = FileManager.default
        try manager.createDirectory(at: store.home.images, withIntermediateDirectories: true)
        let work = store.home.images.appendingPathComponent(".building-\(name)-\(getpid())")
        try? manager.removeItem(at: work)
        try manager.createDirectory(at: work, withIntermediateDirectories: true)
        defer { try? manager.removeItem(at: work) }

        progress("Downloading and unpacking packages of Debian \(release.number) (mmdebstrap)")
        let root = work.appendingPathComponent("root")
        let hook = try writeHook(in: work, depmod: depmod)
        try Tool.run(
            mmdebstrap,
            [
                "--variant=minbase", "--mode=root", "--format=directory", "--include=\((Self.packages + extra).joined(separator: ","))",
                "--customize-hook=\(hook.path) \"$1\"", release.rawValue, root.path,
            ], log: work.appendingPathComponent("mmdebstrap.log"))

        progress("Making the initial RAM disk")
        let modules = root.appendingPathComponent("lib/modules")
        guard let version = try manager.contentsOfDirectory(atPath: modules.path).sorted().last else { throw LibraryError("the kernel package holds no modules") }
        let image = work.appendingPathComponent("image")
        try manager.createDirectory(at: image, withIntermediateDirectories: true)
        let ramdisk = try InitialRamdisk.make(modules: modules.appendingPathComponent(version), busybox: URL(fileURLWithPath: busybox))
        try Data(ramdisk).write(to: image.appendingPathComponent("initrd"))
        try manager.moveItem(at: root.appendingPathComponent("vz-kernel"), to: image.appendingPathComponent("vmlinuz"))

        progress("Making the root file system (mke2fs)")
        let disk = image.appendingPathComponent("root.img")
        _ = manager.createFile(atPath: disk.path, contents: nil)
        guard truncate(disk.path, off_t(diskSize)) == 0 else { throw LibraryError("cannot make \(disk.path): \(String(cString: strerror(errno)))") }
        try Tool.run(
            mke2fs, ["-q", "-t", "ext4", "-L", "root", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", root.path, disk.path],
            log: work.appendingPathComponent("mke2fs.log"))
        try finish(name: name, image: image, version: version)
    }

    private func finish(name: String, image: URL, version: String) throws {
        let description = Image(
            name: name, system: release.title, kernelVersion: version, created: Date(), commandLine: "console=hvc0 root=/dev/vda rw quiet")
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        encoder.dateEncodingStrategy = .iso8601
        try encoder.encode(description).write(to: image.appendingPathComponent("image.json"))
        let fd = open(image.path, O_RDONLY | O_DIRECTORY)
        if fd >= 0 {
            syncfs(fd)
            close(fd)
        }
        let target = store.directory(name)
        try? FileManager.default.removeItem(at: target)
        try FileManager.default.moveItem(at: image, to: target)
    }

    /// Runs this program again as root of a user namespace with the user's subordinate ids.
    private func buildInUserNamespace(name: String, diskSize: UInt64, extra: [String]) throws {
        let unshare = try Tool(name: "unshare", package: "util-linux").require()
        _ = try Tool(name: "newuidmap", package: "uidmap").require()
        guard let program = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe") else { throw LibraryError("cannot find this program's file") }
        let log = FileManager.default.temporaryDirectory.appendingPathComponent("vz-image-\(getpid()).log")
        defer { try? FileManager.default.removeItem(at: log) }
        progress("Building in a user namespace")
        try Tool.run(
            unshare,
            [
                "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--mount-proc", program, "image", "build", "debian", "--release", release.rawValue,
                "--name", name, "--size", "\(diskSize >> 10)KiB",
            ]
                + extra.flatMap { ["--include", $0] },
            environment: ["VZ_HOME": store.home.url.path], log: log)
    }

    /// What happens in the unpacked system, as a script: kernel, console, units.
    private func writeHook(in work: URL, depmod: String) throws -> URL {
        let script = """
            #!/bin/sh
            set -eu
            root=$1
            export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
            package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\\(linux-image-[^ ]*\\)$/\\1/p' | head -n 1)
            mkdir -p "$root/tmp/kernel"
            (cd "$root/tmp/kernel" && apt-get download -q "$package")
            for deb in "$root"/tmp/kernel/*.deb; do
                # Modules are in /lib, or since Debian 13 in /usr/lib.
                dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$root" --wildcards './*lib/modules/*' './boot/vmlinuz-*'
            done
            rm -rf "$root/tmp/kernel"
            version=$(ls "$root/lib/modules" | sort | tail -n 1)
            "\(depmod)" -b "$root" "$version"
            mv "$root/boot/vmlinuz-$version" "$root/vz-kernel"

            echo debian >"$root/etc/hostname"
            printf '127.0.0.1 localhost\\n127.0.1.1 debian\\n::1 localhost\\n' >"$root/etc/hosts"
            echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
            chroot "$root" passwd -q -d root
            : >"$root/etc/machine-id"

            # The network: whatever card there is, by DHCP; name servers as the network says. What has a kind is somebody's own, such as
            # containers' ends of cables, which would be taken from their bridges.
            printf '[Match]\nType=ether\nKind=!*\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nLinkLocalAddressing=ipv6\n[DHCPv4]\nUseDomains=yes\n' \
                >"$root/etc/systemd/network/80-vz.network"
            mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
            ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
            ln -sf /dev/null "$root/etc/systemd/system/systemd-networkd-wait-online.service"
            rm -f "$root/etc/resolv.conf"
            echo 'nameserver 192.168.64.1' >"$root/etc/resolv.conf"

            # A root shell on the console, no questions asked.
            mkdir -p "$root/etc/systemd/system/serial-getty@.service.d"
            printf '[Service]\\nExecStart=\\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 %%I $TERM\\n' \\
                >"$root/etc/systemd/system/serial-getty@.service.d/autologin.conf"
            : >"$root/root/.hushlogin"
            for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer dpkg-db-backup.timer fstrim.timer; do
                ln -sf /dev/null "$root/etc/systemd/system/$unit"
            done

            # Mounts the directories that the host shares (vz run IMAGE --mount DIRECTORY).
            mkdir -p "$root/usr/lib/vz" "$root/etc/systemd/system/local-fs.target.wants"
            cat >"$root/usr/lib/vz/mount-shares" <<'END'
            \(Self.mountScript)
            END
            chmod 755 "$root/usr/lib/vz/mount-shares"
            cat >"$root/etc/systemd/system/vz-mounts.service" <<'END'
            [Unit]
            Description=Directories of the host
            ConditionKernelCommandLine=vz.mount
            DefaultDependencies=no
            After=systemd-remount-fs.service
            Before=local-fs.target
            [Service]
            Type=oneshot
            RemainAfterExit=yes
            ExecStart=/usr/lib/vz/mount-shares
            END
            ln -sf ../vz-mounts.service "$root/etc/systemd/system/local-fs.target.wants/vz-mounts.service"

            # The time of day: Linux loses up to a tenth of a second of it while it boots, and all of it while the host sleeps.
            cat >"$root/usr/lib/vz/keep-time" <<'END'
            \(Self.timeScript)
            END
            chmod 755 "$root/usr/lib/vz/keep-time"
            cat >"$root/etc/systemd/system/vz-time.service" <<'END'
            [Unit]
            Description=Time of the host
            [Service]
            Type=forking
            ExecStartPre=-/sbin/modprobe -q ptp_kvm
            ExecStart=/usr/lib/vz/keep-time
            [Install]
            WantedBy=multi-user.target
            END
            ln -sf ../vz-time.service "$root/etc/systemd/system/multi-user.target.wants/vz-time.service"

            # Runs the command that the host sends (vz run IMAGE -- COMMAND) and powers off.
            cat >"$root/usr/lib/vz/run-command" <<'END'
            \(Self.commandScript)
            END
            chmod 755 "$root/usr/lib/vz/run-command"
            cat >"$root/etc/systemd/system/vz-command.service" <<'END'
            [Unit]
            Description=Command from the host
            ConditionKernelCommandLine=vz.command
            After=multi-user.target
            [Service]
            Type=oneshot
            ExecStart=/usr/lib/vz/run-command
            ExecStopPost=/usr/lib/vz/run-command finish
            # Of what the command started something may be killed for memory without its end.
            OOMPolicy=continue
            TasksMax=infinity
            StandardOutput=null
            StandardError=journal
            [Install]
            WantedBy=default.target
            END
            mkdir -p "$root/etc/systemd/system/default.target.wants"
            ln -sf ../vz-command.service "$root/etc/systemd/system/default.target.wants/vz-command.service"
            rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
            """
        let url = work.appendingPathComponent("customize")
        try Data(script.utf8).write(to: url)
        chmod(url.path, 0o755)
        return url
    }

    /// The kernel's arguments say vz.mount=TAG:PATH, the path in base64.
    private static let mountScript = """
        #!/bin/sh
        for word in $(cat /proc/cmdline); do
            case $word in
            vz.mount=*)
                word=${word#vz.mount=}
                path=$(printf %s "${word#*:}" | base64 -d)
                mkdir -p "$path"
                mount -t virtiofs "${word%%:*}" "$path"
                ;;
            esac
        done
        """

    /// Asks KVM's clock. Programs are not to see the time go back: what is small is made up for by and by, as adjtime(3) does.
    private static let timeScript = #"""
        #!/usr/bin/perl
        use strict;
        use integer;
        my ($adjtimex, $gettime) = (159, 228);
        open(my $clock, '<', '/dev/ptp0') or exit 0;
        my $host = ~fileno($clock) << 3 | 3;
        sub now {
            my $time = "\0" x 16;
            syscall($gettime, $_[0], $time) == 0 or exit 1;
            my ($seconds, $nanoseconds) = unpack 'qq', $time;
            return $seconds * 1_000_000_000 + $nanoseconds;
        }
        sub difference {
            my ($least, $difference);
            for (1 .. 5) {
                my ($before, $time, $after) = (now(0), now($host), now(0));
                ($least, $difference) = ($after - $before, $time - ($before + $after) / 2) if !defined $least || $after - $before < $least;
            }
            return $difference;
        }
        # In one step of the kernel's: while a machine starts, milliseconds may pass between two of ours.
        sub step {
            my ($seconds, $nanoseconds) = ($_[0] / 1_000_000_000, $_[0] % 1_000_000_000);
            ($seconds, $nanoseconds) = ($seconds - 1, $nanoseconds + 1_000_000_000) if $nanoseconds < 0;
            my $change = pack 'Lx68qqx120', 0x2100, $seconds, $nanoseconds;
            syscall($adjtimex, $change);
        }
        my $first = difference();
        step($first) if abs($first) > 50_000;
        exit 0 if fork;
        for (my $pause = 1;; $pause = 10) {
            sleep $pause;
            my $difference = difference();
            if (abs($difference) > 200_000_000) {
                step($difference);
            } elsif (abs($difference) > 50_000) {
                my $change = pack 'Lx4qx192', 0x8001, $difference / 1000;
                syscall($adjtimex, $change);
            }
        }
        """#

    /// Ports: vz.control gives the command (base64, one line) and takes the status; vz.stdin, vz.stdout and vz.stderr carry its streams.
    /// `finish` comes when all of that is over, and gives a status if this script was killed before it could.
    private static let commandScript = """
        #!/bin/sh
        ports=/dev/virtio-ports
        if [ "${1-}" = finish ]; then
            if [ ! -e /run/vz-status ]; then
                case $EXIT_STATUS in
                [0-9]*) status=$EXIT_STATUS ;;
                KILL) status=137 ;;
                TERM) status=143 ;;
                *) status=1 ;;
                esac
                echo "vz: the guest ended the command (${SERVICE_RESULT-unknown})" >$ports/vz.stderr
                echo "status $status" >$ports/vz.control
            fi
            # A guest that restarts or goes off already does that now: nobody waits for more.
            [ "$(systemctl is-system-running)" != stopping ] || force=--force
            exec systemctl poweroff --no-block ${force-}
        fi
        # udev makes them one after the other.
        tries=0
        for port in control stdin stdout stderr; do
            until [ -e $ports/vz.$port ] || [ $tries -ge 300 ]; do
                sleep 0.1
                tries=$((tries + 1))
            done
        done
        exec 3<>$ports/vz.control
        echo ready >&3
        read -r encoded <&3
        command=$(printf %s "$encoded" | base64 -d)
        cd /root
        export HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        sh -c "$command" <$ports/vz.stdin >$ports/vz.stdout 2>$ports/vz.stderr 3>&-
        status=$?
        : >/run/vz-status
        echo "status $status" >&3
        """
}
