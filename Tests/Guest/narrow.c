// A program of 32 bits, with no library under it: computes in all ways that such code has, and is debugged by itself. Prints a line for each.
typedef unsigned int u32;
typedef unsigned long long u64;

static int call(int number, int a, int b, int c, int d, int e) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}
enum { EXIT = 1, FORK = 2, WRITE = 4, WAIT = 7, PTRACE = 26, MPROTECT = 125, SET_THREAD_AREA = 243 };

static void say(const char *name, u32 value) {
    char line[64];
    int n = 0;
    while (name[n]) { line[n] = name[n]; n++; }
    line[n++] = ' ';
    for (int shift = 28; shift >= 0; shift -= 4) line[n++] = "0123456789abcdef"[value >> shift & 15];
    line[n++] = '\n';
    call(WRITE, 1, (int)line, n, 0, 0);
}

static u32 seed = 1;
static u32 next(void) { return seed = seed * 1664525 + 1013904223; }

static u32 calls(u32 n) { return n < 2 ? n : calls(n - 1) + calls(n - 2); }

struct node { struct node *left, *right; u32 key; };
static struct node nodes[20000];
static u32 depth(struct node *n) {
    if (!n) return 0;
    u32 a = depth(n->left), b = depth(n->right);
    return 1 + (a > b ? a : b);
}
static u32 tree(void) {
    struct node *root = 0;
    for (int i = 0; i < 20000; i++) {
        struct node *new = &nodes[i], **place = &root;
        new->key = next() >> 4;
        while (*place) place = new->key < (*place)->key ? &(*place)->left : &(*place)->right;
        *place = new;
    }
    return depth(root);
}
static u32 table[4096];
static u32 arrays(void) {
    for (int i = 0; i < 4096; i++) table[i] = next();
    // Indices that go up from below 0.
    u32 sum = 0, *end = table + 4096;
    for (int round = 0; round < 20; round++)
        for (int i = -4096; i < 0; i++) sum = (sum << 5 | sum >> 27) ^ end[i];
    for (int i = 1; i < 4096; i++) {
        u32 value = table[i];
        int at = i;
        if (i % 64 == 0) continue;
        while (at > (i & ~63) && table[at - 1] > value) { table[at] = table[at - 1]; at--; }
        table[at] = value;
    }
    for (int i = 0; i < 4096; i++) sum = sum * 31 + table[i];
    return sum;
}
static u32 wide(void) { // 64 bits in pairs of registers
    u64 a = 88172645463325252ull, sum = 0;
    for (int i = 0; i < 50000; i++) { a ^= a << 13; a ^= a >> 7; a ^= a << 17; sum += a * (u32)i - (a >> 32); }
    return (u32)(sum ^ sum >> 32);
}
static u32 doubles(void) {
    double d = 0, e = 1;
    for (int i = 1; i < 50000; i++) { d += e / i; e = e * 0.9999 + d; }
    u64 bits;
    __builtin_memcpy(&bits, &d, 8);
    return (u32)(bits ^ bits >> 32);
}
static u32 x87(void) {
    long double d = 1;
    for (int i = 1; i < 20000; i++) d = d * 1.0001L + 1.0L / i;
    u64 bits;
    __builtin_memcpy(&bits, &d, 8);
    return (u32)(bits ^ bits >> 32);
}
static u32 mmx(void) {
    u32 result[2] = {1, 2};
    __asm__ volatile("movq %0, %%mm0; mov $1000, %%ecx; 1: movq %%mm0, %%mm1; pslld $3, %%mm1; paddd %%mm1, %%mm0; pxor %0, %%mm0; dec %%ecx; jnz 1b; movq %%mm0, %0; emms"
                     : "+m"(result) : : "ecx", "mm0", "mm1");
    return result[0] ^ result[1];
}
static u32 strings(void) {
    u32 sum = 0;
    for (int i = 0; i < 200; i++) {
        void *to = table + 100 + i, *from = table + i;
        int count = 1000 + i;
        __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        to = table + i * 7;
        count = i;
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(i) : "memory");
        sum = sum * 31 + table[1000 + i];
    }
    return sum;
}
static u32 segment(void) { // what lies below and above the start of a thread's own
    static u32 own[16];
    struct { u32 entry, base, limit, flags; } area = {-1u, (u32)(own + 8), 0xFFFFF, 0x51};
    if (call(SET_THREAD_AREA, (int)&area, 0, 0, 0, 0)) return 0;
    __asm__ volatile("mov %w0, %%gs" : : "r"(area.entry * 8 + 3));
    for (int i = 0; i < 1000; i++) __asm__ volatile("incl %%gs:0xFFFFFFFC; addl $3, %%gs:4" : : : "memory");
    return own[7] << 16 | own[9];
}
static unsigned char made[4096] __attribute__((aligned(4096)));
static u32 rewritten(void) {
    if (call(MPROTECT, (int)made, 4096, 7, 0, 0)) return 0;
    u32 sum = 0;
    for (u32 i = 0; i < 3000; i++) {
        made[0] = 0xB8; // mov eax, i; ret
        __builtin_memcpy(made + 1, &i, 4);
        made[5] = 0xC3;
        __asm__ volatile("" : : : "memory");
        sum = sum * 31 + ((u32 (*)(void))made)();
    }
    return sum;
}

static volatile u32 watched, other;
static void debugged(void) {
    call(PTRACE, 0, 0, 0, 0, 0);
    __asm__ volatile("int3; mov $50, %%ecx; 1: call 2f; dec %%ecx; jnz 1b; jmp 3f; 2: nop; ret; 3: int3" : : : "ecx", "memory");
    for (int i = 0; i < 1000; i++) { other += i; if (i % 10 == 0) watched = i; if (other > 1000000) watched++; }
    __asm__ volatile("int3");
    call(EXIT, 0, 0, 0, 0, 0);
}
enum { PEEKTEXT = 1, PEEKUSER = 3, POKEUSER = 6, CONT = 7, KILL = 8, STEP = 9, EIP = 12 * 4, DEBUG_REGISTERS = 252 };
static u32 peek(int request, int child, u32 where) {
    u32 value = 0;
    call(PTRACE, request, child, (int)where, (int)&value, 0);
    return value;
}
static void debug(void) {
    int child = call(FORK, 0, 0, 0, 0, 0), status;
    if (!child) debugged();
    u32 steps = 0, changes = 0, sum = 0;
    call(WAIT, child, (int)&status, 0, 0, 0);
    do {
        call(PTRACE, STEP, child, 0, 0, 0);
        call(WAIT, child, (int)&status, 0, 0, 0);
        steps++;
    } while (steps < 10000 && (peek(PEEKTEXT, child, peek(PEEKUSER, child, EIP) - 1) & 255) != 0xCC);
    say("steps", steps);
    call(PTRACE, POKEUSER, child, DEBUG_REGISTERS, (int)&watched, 0);
    call(PTRACE, POKEUSER, child, DEBUG_REGISTERS + 7 * 4, 0xD0001, 0);  // written, four bytes
    while (changes < 10000) {
        call(PTRACE, CONT, child, 0, 0, 0);
        call(WAIT, child, (int)&status, 0, 0, 0);
        if ((status & 127) == 0 || !(peek(PEEKUSER, child, DEBUG_REGISTERS + 6 * 4) & 1)) break;
        call(PTRACE, POKEUSER, child, DEBUG_REGISTERS + 6 * 4, 0, 0);
        changes++;
        sum += peek(PEEKTEXT, child, (u32)&watched);
    }
    say("changes", changes);
    say("sum", sum);
    call(PTRACE, KILL, child, 0, 0, 0);
}

__attribute__((used)) static void run(void) {
    say("calls", calls(22));
    say("tree", tree());
    say("arrays", arrays());
    say("wide", wide());
    say("doubles", doubles());
    say("x87", x87());
    say("mmx", mmx());
    say("strings", strings());
    say("segment", segment());
    say("rewritten", rewritten());
    debug();
    call(EXIT, 0, 0, 0, 0, 0);
}
__asm__(".globl _start\n_start: and $-16, %esp\n call run");
