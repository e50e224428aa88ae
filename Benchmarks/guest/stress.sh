# What Benchmarks/run stress runs in the guest: what stress-ng's stressors do, each for a second, so with what runs cold. One line a
# stressor and round: TASK name, microseconds that 1,000 of its operations take, 0.
cd /tmp
for round in $(seq "$1"); do
    for name in \
        affinity clone close dnotify eventfd fault fifo fork futex hrtimers inotify mq msg mutex nanosleep poll pthread sem sem-sysv switch tee vfork yield sleep \
        sigfd sigio signal sigpipe sigq sigsegv sigtrap sigfpe sigrt timer timerfd itimer pipe pipeherd splice vm-splice sendfile sockpair sock sockfd udp epoll \
        rawsock zero null urandom getrandom get getdent link symlink chdir chmod chown dir dirdeep dentry rename utime touch xattr flock fcntl mmapaddr \
        mmapfixed mmapmany mremap mprotect msync madvise shm shm-sysv pagemove malloc memfd bigheap brk stack stackmmap mincore vma memcpy stream lockbus \
        atomic cache icache tlb-shootdown membarrier bsearch hsearch qsort mergesort heapsort radixsort str wcs crypt hash zlib matrix matrix-3d fp vecmath vecfp \
        vecwide vecshuf nop prefetch longjmp getpid sysinfo key ptrace seccomp aio io-uring seek hdd iomix readahead fallocate randlist list skiplist judy trig \
        regs besselmath goto branch funccall funcret x86cpuid clock context; do
        timeout 20 stress-ng "--$name" 1 -t 1 --metrics-brief 2>&1 | sed -n 's/^stress-ng: metrc: *\[[0-9]*\] *//p' \
            | awk '$2 ~ /^[0-9]+$/ && $2 > 0 { print "TASK", $1, int(1e9 * $3 / $2) + 1, 0 }'
    done
done
