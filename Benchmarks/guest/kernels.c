// Compute kernels that Benchmarks/run cpu runs natively, on our software engine and under QEMU.
// usage: kernels SCALE [NAME…]     prints "NAME NANOSECONDS CHECKSUM" a kernel; equal checksums mean equal work.
#define _GNU_SOURCE
#include <emmintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static uint32_t seed = 1;
static uint32_t next_random(void) { return seed = seed * 1664525u + 1013904223u; }

// ---- integer

struct node { struct node *next; int value; };
static uint64_t list_matrix_state(int scale) { // linked list, integer matrix, state machine: what CoreMark is made of
    enum { N = 400, M = 24 };
    static struct node nodes[N];
    static int a[M][M], b[M][M], c[M][M];
    uint64_t sum = 0;
    for (int round = 0; round < 110 * scale; round++) {
        struct node *head = 0;
        for (int i = 0; i < N; i++) {
            nodes[i].value = next_random() >> 16;
            nodes[i].next = head;
            head = &nodes[i];
        }
        for (int pass = 0; pass < 8; pass++) { // reverse and search
            struct node *back = 0;
            while (head) { struct node *n = head->next; head->next = back; back = head; head = n; }
            head = back;
            for (struct node *n = head; n; n = n->next) if ((n->value & 255) == pass) { sum += n->value; break; }
        }
        for (int i = 0; i < M; i++) for (int j = 0; j < M; j++) { a[i][j] = i * j + round; b[i][j] = i - j; }
        for (int i = 0; i < M; i++) for (int j = 0; j < M; j++) {
            int s = 0;
            for (int k = 0; k < M; k++) s += a[i][k] * b[k][j];
            c[i][j] = s;
        }
        sum += c[round % M][3];
        const char *text = "5012,1.234500,-874,+122 abc 0x1f .1e4,-110.700,7.500e-3";
        int state = 0, counts[6] = {0};
        for (int pass = 0; pass < 12; pass++) for (const char *p = text; *p; p++) {
            switch (state) {
            case 0: state = *p >= '0' && *p <= '9' ? 1 : *p == '-' || *p == '+' ? 2 : *p == '.' ? 3 : 5; break;
            case 1: state = *p == '.' ? 3 : *p == ',' ? 0 : *p >= '0' && *p <= '9' ? 1 : 5; break;
            case 2: state = *p == '.' ? 3 : 1; break;
            case 3: state = *p == 'e' ? 4 : *p == ',' ? 0 : 3; break;
            case 4: state = *p == ',' ? 0 : 4; break;
            default: state = *p == ',' || *p == ' ' ? 0 : 5;
            }
            counts[state]++;
        }
        sum += counts[1] * 7 + counts[3];
    }
    return sum;
}
static uint64_t sieve(int scale) {
    enum { N = 200000 };
    static uint8_t composite[N];
    uint64_t sum = 0;
    for (int round = 0; round < 3 * scale; round++) {
        memset(composite, 0, N);
        for (int i = 2; i < N; i++) {
            if (composite[i]) continue;
            sum += i;
            for (int j = i * 2; j < N; j += i) composite[j] = 1;
        }
    }
    return sum;
}
static __attribute__((noinline)) uint64_t fibonacci(unsigned n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
static uint64_t calls(int scale) {
    uint64_t sum = 0;
    for (int round = 0; round < 5 * scale; round++) sum += fibonacci(25 + (round & 1));
    return sum;
}
static uint64_t bytecode(int scale) { // a stack machine with computed dispatch
    static const uint8_t program[] = {0, 10, 1, 2, 3, 1, 4, 5, 3, 6, 1, 7};
    static const void *const labels[] = {&&push, &&add, &&dup, &&xor, &&rotate, &&mul, &&mask, &&loop};
    uint64_t stack[16] = {1, 2, 3, 4}, *sp = stack + 3, left = 300000ull * scale;
    const uint8_t *pc = program;
    goto *labels[*pc];
push: *++sp = pc[1]; pc += 2; goto *labels[*pc];
add: sp[-1] += *sp; sp--; pc++; goto *labels[*pc];
dup: sp[1] = *sp; sp++; pc++; goto *labels[*pc];
xor: sp[-1] ^= *sp; sp--; *++sp = left; pc++; goto *labels[*pc];
rotate: *sp = *sp << 7 | *sp >> 57; pc++; goto *labels[*pc];
mul: sp[-1] *= *sp | 1; sp--; *++sp = 3; pc++; goto *labels[*pc];
mask: *sp &= 0xFFFFFFFFFFFF; pc++; goto *labels[*pc];
loop: if (--left == 0) return *sp + stack[0];
    { uint64_t top = *sp; sp = stack + 3; *sp = top; }
    pc = program; goto *labels[*pc];
}
static uint64_t op0(uint64_t x) { return x + 3; }
static uint64_t op1(uint64_t x) { return x ^ 0x55; }
static uint64_t op2(uint64_t x) { return x * 5; }
static uint64_t op3(uint64_t x) { return x >> 1; }
static uint64_t indirect(int scale) {
    static uint64_t (*volatile table[4])(uint64_t) = {op0, op1, op2, op3};
    uint64_t x = 1;
    for (int i = 0; i < 200000 * scale; i++) x = table[(x ^ i) & 3](x);
    return x;
}
static uint64_t sha256(int scale) {
    static uint32_t k[64];
    static uint8_t data[65536];
    if (!k[1]) for (int i = 0; i < 64; i++) k[i] = next_random();
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8};
#define R(x, n) ((x) >> (n) | (x) << (32 - (n)))
    for (int round = 0; round < 5 * scale; round++) for (int at = 0; at < (int)sizeof data; at += 64) {
        uint32_t w[64], s[8];
        for (int i = 0; i < 16; i++) w[i] = __builtin_bswap32(*(uint32_t *)(data + at + i * 4)) + round;
        for (int i = 16; i < 64; i++) w[i] = w[i - 16] + w[i - 7] + (R(w[i - 15], 7) ^ R(w[i - 15], 18) ^ w[i - 15] >> 3) + (R(w[i - 2], 17) ^ R(w[i - 2], 19) ^ w[i - 2] >> 10);
        memcpy(s, h, 32);
        for (int i = 0; i < 64; i++) {
            uint32_t t1 = s[7] + (R(s[4], 6) ^ R(s[4], 11) ^ R(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            uint32_t t2 = (R(s[0], 2) ^ R(s[0], 13) ^ R(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s[7] = s[6]; s[6] = s[5]; s[5] = s[4]; s[4] = s[3] + t1; s[3] = s[2]; s[2] = s[1]; s[1] = s[0]; s[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
    return h[0] ^ (uint64_t)h[5] << 32;
}
static uint64_t gzip(int scale) {
    static uint8_t in[20000], out[24000];
    for (size_t i = 0; i < sizeof in; i++) in[i] = "the quick brown fox "[next_random() >> 28] + (i % 97 == 0);
    uint64_t sum = 0;
    for (int round = 0; round < scale; round++) {
        uLongf size = sizeof out;
        compress2(out, &size, in, sizeof in, 6);
        sum += size;
    }
    return sum;
}
static uint64_t copy(int scale) { // a byte loop, then the library's memcpy
    static uint8_t a[65536], b[65536];
    for (size_t i = 0; i < sizeof a; i++) a[i] = i * 7;
    for (int round = 0; round < 30 * scale; round++) {
        for (size_t i = 0; i < sizeof a; i++) { b[i] = a[i]; __asm__ volatile("" ::: "memory"); }
        memcpy(a + 1, b, sizeof a - 1);
    }
    return b[777];
}
static uint64_t memory(int scale) { // random walk over 16 MiB
    enum { N = 1 << 21 };
    static uint64_t *table;
    if (!table) {
        table = mmap(0, N * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (uint64_t i = 0; i < N; i++) table[i] = (i * 1103515245u + 12345) % N;
    }
    uint64_t at = 0;
    for (int i = 0; i < 50000 * scale; i++) { at = table[at]; table[(at + i) % N] ^= 0; }
    return at;
}

// ---- floating point and SIMD

static uint64_t matrix(int scale) {
    enum { N = 64 };
    static double a[N][N], b[N][N], c[N][N];
    double sum = 0;
    for (int round = 0; round < 25 * scale; round++) {
        for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) { a[i][j] = i + j * 0.5 + round; b[i][j] = i * 0.25 - j; c[i][j] = 0; }
        for (int i = 0; i < N; i++) for (int k = 0; k < N; k++) for (int j = 0; j < N; j++) c[i][j] += a[i][k] * b[k][j];
        sum += c[round % N][5];
    }
    return (uint64_t)(int64_t)sum;
}
static uint64_t scalar_double(int scale) {
    double x = 0.5, y = 0.25, sum = 0;
    for (int i = 0; i < 300000 * scale; i++) {
        double t = x * x - y * y + 0.3;
        y = 2 * x * y + 0.1;
        x = t;
        if (x * x + y * y > 4) { x = 0.1 * (i & 7); y = 0.2; }
        sum += x / (1 + y * y);
    }
    return (uint64_t)(int64_t)(sum * 1000);
}
static uint64_t x87(int scale) {
    volatile long double step = 1e-5L;
    long double sum = 0, x = 0;
    for (int i = 0; i < 200000 * scale; i++) { x += step; sum += x * x / (1.0L + x); }
    return (uint64_t)(sum * 1000);
}
static uint64_t sse2(int scale) {
    static uint8_t a[65536], b[65536];
    for (size_t i = 0; i < sizeof a; i++) { a[i] = i * 7; b[i] = i * 13 >> 3; }
    __m128i sum = _mm_setzero_si128();
    for (int round = 0; round < 400 * scale; round++)
        for (size_t i = 0; i < sizeof a; i += 16) {
            __m128i x = _mm_loadu_si128((__m128i *)(a + i)), y = _mm_loadu_si128((__m128i *)(b + i));
            sum = _mm_add_epi64(sum, _mm_sad_epu8(x, y));
            _mm_storeu_si128((__m128i *)(b + i), _mm_avg_epu8(_mm_adds_epu8(x, y), _mm_max_epu8(x, y)));
        }
    uint64_t out[2];
    _mm_storeu_si128((__m128i *)out, sum);
    return out[0] + out[1];
}

// ---- the kernel's part

static uint64_t getppid_loop(int scale) {
    for (int i = 0; i < 20000 * scale; i++) syscall(SYS_getppid);
    return 0;
}
static const char *self;
static uint64_t fork_exec(int scale) {
    for (int i = 0; i < 5 * scale; i++) {
        pid_t child = fork();
        if (child == 0) { execl(self, self, "nothing", (char *)0); _exit(1); }
        int status;
        waitpid(child, &status, 0);
    }
    return 0;
}
static uint64_t pipe_pong(int scale) {
    int a[2], b[2];
    if (pipe(a) || pipe(b)) return 1;
    pid_t child = fork();
    char c = 0;
    if (child == 0) {
        for (int i = 0; i < 400 * scale; i++) if (read(a[0], &c, 1) != 1 || write(b[1], &c, 1) != 1) _exit(1);
        _exit(0);
    }
    for (int i = 0; i < 400 * scale; i++) if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1) return 1;
    waitpid(child, 0, 0);
    for (int i = 0; i < 2; i++) { close(a[i]); close(b[i]); }
    return 0;
}
static uint64_t rewrite(int scale) { // code that is rewritten before each call
    unsigned char *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t sum = 0;
    for (int i = 0; i < 10000 * scale; i++) {
        code[0] = 0xB8; memcpy(code + 1, &i, 4); code[5] = 0xC3; // mov eax, i; ret
        sum += ((int (*)(void))code)();
    }
    munmap(code, 4096);
    return sum;
}
static uint64_t page_faults(int scale) {
    for (int i = 0; i < scale; i++) {
        char *p = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(p, 4 << 20, MADV_NOHUGEPAGE);
        for (int at = 0; at < 4 << 20; at += 4096) p[at] = 1;
        munmap(p, 4 << 20);
    }
    return 0;
}

static const struct { const char *name; uint64_t (*run)(int); } kernels[] = {
    {"list-matrix-state", list_matrix_state}, {"sieve", sieve}, {"calls", calls}, {"bytecode", bytecode}, {"indirect", indirect},
    {"sha256", sha256}, {"gzip", gzip}, {"copy", copy}, {"memory", memory}, {"matrix", matrix}, {"scalar-double", scalar_double},
    {"x87", x87}, {"sse2", sse2}, {"getppid", getppid_loop}, {"fork-exec", fork_exec}, {"pipe", pipe_pong}, {"page-faults", page_faults}, {"rewrite", rewrite},
};

int main(int argc, char **argv) {
    self = argv[0];
    if (argc > 1 && !strcmp(argv[1], "nothing")) return 0;
    int scale = argc > 1 ? atoi(argv[1]) : 1;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        int wanted = argc <= 2;
        for (int j = 2; j < argc; j++) wanted |= !strcmp(argv[j], kernels[i].name);
        if (!wanted) continue;
        seed = 1;
        kernels[i].run(1); // warm
        uint64_t begin = now();
        uint64_t sum = kernels[i].run(scale);
        printf("%s %llu %llx\n", kernels[i].name, (unsigned long long)(now() - begin), (unsigned long long)sum);
        fflush(stdout);
    }
}
