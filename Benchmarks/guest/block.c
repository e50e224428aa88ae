// Reads and writes a disk past the page cache; run by Benchmarks/run block in the guest.
// usage: block DEVICE     prints "NAME OPERATIONS NANOSECONDS BYTES" a pattern.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}
// Random operations of 4 KiB by many threads: as many are under way at a time.
enum { DEPTH = 32, EACH = 1000 };
static int many_fd, many_write;
static off_t many_size;
static void *many(void *argument) {
    uint32_t seed = 77 + (uint32_t)(uintptr_t)argument;
    char *buffer = aligned_alloc(4096, 4096);
    for (int i = 0; i < 4096; i++) buffer[i] = i * 31;
    for (int i = 0; i < EACH; i++) {
        seed = seed * 1664525u + 1013904223u;
        off_t at = (off_t)(seed >> 4) % (many_size / 4096) * 4096;
        if ((many_write ? pwrite(many_fd, buffer, 4096, at) : pread(many_fd, buffer, 4096, at)) != 4096) { perror("many"); exit(1); }
    }
    return 0;
}
int main(int argc, char **argv) {
    int fd = open(argc > 1 ? argv[1] : "/dev/vda", O_RDWR | O_DIRECT);
    if (fd < 0) { perror("open"); return 1; }
    off_t size = lseek(fd, 0, SEEK_END);
    char *buffer = aligned_alloc(4096, 1 << 20);
    for (int i = 0; i < 1 << 20; i++) buffer[i] = i * 31;
    static const struct { const char *name; int write, random, block, count; } patterns[] = {
        {"sequential-write", 1, 0, 1 << 20, 256}, {"sequential-read", 0, 0, 1 << 20, 256}, {"random-write", 1, 1, 4096, 8000}, {"random-read", 0, 1, 4096, 8000},
    };
    for (int p = 0; p < 4; p++) {
        uint32_t seed = 7;
        uint64_t begin = now();
        for (int i = 0; i < patterns[p].count; i++) {
            seed = seed * 1664525u + 1013904223u;
            off_t at = patterns[p].random ? (off_t)(seed % (size / patterns[p].block)) * patterns[p].block : (off_t)i * patterns[p].block % size;
            ssize_t done = patterns[p].write ? pwrite(fd, buffer, patterns[p].block, at) : pread(fd, buffer, patterns[p].block, at);
            if (done != patterns[p].block) { perror(patterns[p].name); return 1; }
        }
        if (patterns[p].write) fsync(fd);
        printf("%s %d %llu %d\n", patterns[p].name, patterns[p].count, (unsigned long long)(now() - begin), patterns[p].block);
        fflush(stdout);
    }
    many_fd = fd;
    many_size = size;
    for (many_write = 1; many_write >= 0; many_write--) {
        pthread_t threads[DEPTH];
        uint64_t begin = now();
        for (int i = 0; i < DEPTH; i++) pthread_create(&threads[i], 0, many, (void *)(uintptr_t)i);
        for (int i = 0; i < DEPTH; i++) pthread_join(threads[i], 0);
        if (many_write) fsync(fd);
        printf("%s %d %llu 4096\n", many_write ? "deep-write" : "deep-read", DEPTH * EACH, (unsigned long long)(now() - begin));
        fflush(stdout);
    }
}
