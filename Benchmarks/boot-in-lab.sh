#!/bin/sh
# usage: boot-in-lab.sh ROUNDS     (runs inside the KVM lab: see Benchmarks/run boot --engine kvm)
# From exec to init, our KVM engine against QEMU's microvm on the same KVM; uptime counts in hundredths of a second.
assets=/work/assets
run=$(echo true | base64)
now() { tr -d . </proc/uptime | cut -d' ' -f1; }
measure() { # name, command…
    name=$1
    shift
    rm -f /tmp/out
    begin=$(now)
    "$@" </dev/null >/tmp/out 2>/tmp/err &
    pid=$!
    while ! grep -q INIT-REACHED /tmp/out 2>/dev/null; do
        if [ $(($(now) - begin)) -gt 6000 ]; then
            echo "$name did not boot"
            tail -n 5 /tmp/err
            break
        fi
        usleep 10000
    done
    echo "$name $(($(now) - begin))"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
}
for round in $(seq "$1"); do
    measure vz vz run --engine kvm --memory 512MiB --kernel $assets/vmlinuz --initrd $assets/initrd --cmdline "console=hvc0 quiet panic=-1 run=$run"
    measure qemu qemu-system-x86_64 -L /work -M microvm,acpi=on -accel kvm -cpu host -m 512 -nodefaults -no-user-config -display none \
        -no-reboot -serial stdio -kernel $assets/vmlinuz -initrd $assets/initrd -append "console=ttyS0 quiet panic=-1 run=$run"
done
