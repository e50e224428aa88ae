# What Scripts/guest-selfcheck runs, in a guest and natively on the same file tree: every line must be the same in both.
cd "$(mktemp -d)" || exit 1
export LC_ALL=C

echo "== compiler"
cat >program.c <<'C'
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int ascending(const void *a, const void *b) { return *(int *)a - *(int *)b; }
int main(void) {
    int v[1000]; unsigned s = 1; double d = 0; long double l = 1; char text[64];
    for (int i = 0; i < 1000; i++) { s = s * 1664525 + 1013904223; v[i] = s >> 8; }
    qsort(v, 1000, sizeof *v, ascending);
    for (int i = 0; i < 1000; i++) { d += sqrt(v[i]) * sin(i); l = l * 1.0001L + i; }
    snprintf(text, sizeof text, "%.6f %d %.10Lg %zu", d, v[500], l, strlen(text));
    puts(text);
    return 0;
}
C
for options in -O0 -O1 -O2 "-O3 -march=x86-64-v3 -ffp-contract=off" "-O2 -flto" "-O2 -m32 -msse2 -mfpmath=sse" "-O2 -m32 -mno-sse"; do
    echo "$options: $(gcc $options -o program program.c -lm && ./program) $(gcc $options -fno-lto -S -o - program.c | md5sum)"
done

echo "== sqlite"
sqlite3 t.db "create table t(a integer primary key,b text,c real);
with recursive n(i) as (select 1 union all select i+1 from n where i<20000) insert into t select i, hex(i*7919), i*0.5 from n;
create index x on t(b); select count(*), sum(a), total(c), max(b) from t;
update t set c = c * 1.1 where a % 3 = 0; delete from t where a % 7 = 0;
select count(*), total(c) from t where b between '33' and '34'; select avg(c), group_concat(substr(b,1,2)) from (select * from t limit 40);
pragma integrity_check;"

echo "== openssl"
head -c 1000003 /dev/zero | openssl enc -aes-256-ctr -K 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff -iv 0 -out data 2>/dev/null
for digest in md5 sha1 sha256 sha512 sha3-256 blake2b512; do openssl dgst -$digest data; done
for cipher in aes-128-cbc aes-256-ctr aes-128-ofb chacha20 camellia-256-cbc aria-128-cbc; do
    echo "$cipher $(openssl enc -$cipher -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000001 -in data 2>/dev/null | md5sum)"
done
openssl genrsa -out rsa 2048 2>/dev/null; openssl rsa -in rsa -pubout -out rsa.pub 2>/dev/null
openssl dgst -sha256 -sign rsa -out s data; openssl dgst -sha256 -verify rsa.pub -signature s data
for curve in prime256v1 secp384r1 secp521r1; do
    openssl ecparam -genkey -name $curve -out ec 2>/dev/null; openssl ec -in ec -pubout -out ec.pub 2>/dev/null
    openssl dgst -sha256 -sign ec -out s data; openssl dgst -sha256 -verify ec.pub -signature s data
done
openssl genpkey -algorithm ed25519 -out ed; openssl pkey -in ed -pubout -out ed.pub
openssl pkeyutl -sign -rawin -inkey ed -in program.c -out s; openssl pkeyutl -verify -rawin -pubin -inkey ed.pub -in program.c -sigfile s
openssl speed -seconds 1 sha256 aes-128-gcm 2>/dev/null | grep -c '^\(sha256\|AES-128-GCM\)'

echo "== python"
cat >p.py <<'P'
import cmath, decimal, fractions, hashlib, json, math, random, re, statistics, struct, sys, zlib
sys.set_int_max_str_digits(0)
random.seed(1)
x = [random.random() for _ in range(20000)]
print(repr(math.fsum(math.sin(v) * math.exp(v) / math.sqrt(v + 1) for v in x)), repr(sum(x)), repr(statistics.stdev(x)))
print(hashlib.sha256(str(3 ** 20000 * 7 ** 10000 // 11 ** 5000).encode()).hexdigest())
print(math.factorial(1000) % 1000000007, pow(3, 10 ** 6, 2 ** 127 - 1), (1 << 4000) // (3 ** 500) % 10 ** 9, math.isqrt(10 ** 400) % 10 ** 9)
print(len(json.dumps(json.loads(json.dumps({str(i): [i, i * 0.1, str(i)] for i in range(2000)})))))
print(zlib.crc32(zlib.compress(bytes(random.getrandbits(8) for _ in range(50000)))))
print(repr(float.fromhex('0x1.fffffffffffffp+1023')), 0.1 + 0.2, 1e16 + 1, 5e-324 / 2, repr(decimal.Decimal(2).sqrt()), float('nan') != float('nan'))
print(struct.pack('<d', math.pi ** 20).hex(), struct.pack('<f', math.e ** 7).hex(), sorted(re.findall(r'\d+', ' '.join(map(str, range(500)))))[:5])
print([repr(f(v)) for f in (math.tan, math.atan, math.log1p, math.expm1, math.gamma, math.erf, math.cbrt) for v in (0.1, 1.5, 30.25)])
print(repr(cmath.exp(1 + 2j)), fractions.Fraction(0.3).limit_denominator(1000), [round(v * 0.5) for v in range(-5, 6)], [math.fmod(-v, 3.3) for v in (1, 5, 1e300)])
digest = hashlib.md5()
for _ in range(20000):
    a = struct.unpack('<d', struct.pack('<Q', random.getrandbits(64)))[0]
    b = struct.unpack('<d', struct.pack('<Q', random.getrandbits(64)))[0]
    for value in (a + b, a - b, a * b, a / b if b else 0.0): digest.update(repr(value).encode())
    digest.update(str([a < b, a == b, int(a) if abs(a) < 1e30 else 0]).encode())
    n, m = random.getrandbits(200), random.getrandbits(90) + 1
    digest.update(f"{n // m} {n % m} {n * m} {n ^ m} {n >> 13}".encode())
print(digest.hexdigest())
P
python3 p.py

echo "== signals, ptrace, children, code that changes"
strace -f -c -o trace sh -c 'for i in 1 2 3; do /bin/true; done' && grep -c execve trace
cat >s.c <<'C'
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static sigjmp_buf back; static volatile int caught, ticks; static volatile long shared;
static void fault(int s) { caught++; siglongjmp(back, s); }
static void tick(int s) { (void)s; ticks++; }
static void *add(void *p) { for (int i = 0; i < 200000; i++) __atomic_fetch_add(&shared, 1, __ATOMIC_SEQ_CST); return p; }
int main(void) {
    signal(SIGSEGV, fault); signal(SIGFPE, fault); signal(SIGILL, fault); signal(SIGTRAP, fault); signal(SIGALRM, tick);
    for (int i = 0; i < 2000; i++) if (!sigsetjmp(back, 1)) *(volatile int *)8 = 1;
    for (int i = 0; i < 100; i++) { volatile int z = 0; if (!sigsetjmp(back, 1)) z = 1 / z; }
    for (int i = 0; i < 100; i++) if (!sigsetjmp(back, 1)) __asm__("ud2");
    for (int i = 0; i < 100; i++) if (!sigsetjmp(back, 1)) __asm__("int3");
    ualarm(1000, 1000); double d = 0; while (ticks < 200) d += 1.0 / (d + 1); ualarm(0, 0);
    for (int i = 0; i < 300; i++) {
        pid_t p = vfork();
        if (!p) { execl("/bin/true", "true", (char *)0); _exit(1); }
        int status; waitpid(p, &status, 0); if (status) return 1;
    }
    unsigned char *c = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); int sum = 0;
    for (int i = 0; i < 20000; i++) { c[0] = 0xb8; memcpy(c + 1, &i, 4); c[5] = 0xc3; sum += ((int (*)(void))c)(); }
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(t + i, 0, add, 0);
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    printf("%d %d %ld\n", caught, sum, shared);
    return 0;
}
C
gcc -O1 -pthread -o s s.c && ./s
gcc -m32 -O1 -pthread -o s32 s.c && ./s32
cat >t.c <<'C'
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int watched, other;
static void child(void) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    __asm__ volatile("int3; mov $100, %%ecx; 1: call 2f; dec %%ecx; jnz 1b; jmp 3f; 2: nop; ret; 3: int3" : : : "ecx", "memory");
    for (int i = 0; i < 1000; i++) { other += i; if (i % 10 == 0) watched = i; if (other < 0) watched++; }
    __asm__ volatile("int3");
    _exit(0);
}
int main(void) { // steps one by one between the first two stops, watches a variable up to the third
    pid_t p = fork(); if (!p) child();
    int status, steps = 0, changes = 0; long sum = 0;
    waitpid(p, &status, 0);
    for (;; steps++) {
        ptrace(PTRACE_SINGLESTEP, p, 0, 0); waitpid(p, &status, 0);
        if (steps > 5 && (ptrace(PTRACE_PEEKTEXT, p, (void *)(ptrace(PTRACE_PEEKUSER, p, offsetof(struct user_regs_struct,
#ifdef __x86_64__
            rip
#else
            eip
#endif
            ), 0) - 1), 0) & 255) == 0xCC) break;
    }
    ptrace(PTRACE_POKEUSER, p, offsetof(struct user, u_debugreg[0]), &watched);
    if (ptrace(PTRACE_POKEUSER, p, offsetof(struct user, u_debugreg[7]), 0xD0001)) puts("no debug registers");
    for (;;) {
        ptrace(PTRACE_CONT, p, 0, 0); waitpid(p, &status, 0);
        if (WIFEXITED(status) || !(ptrace(PTRACE_PEEKUSER, p, offsetof(struct user, u_debugreg[6]), 0) & 1)) break;
        changes++; sum += ptrace(PTRACE_PEEKDATA, p, (void *)&watched, 0) & 0xFFFFFFFF;
        ptrace(PTRACE_POKEUSER, p, offsetof(struct user, u_debugreg[6]), 0);
    }
    printf("%d steps, %d changes, %ld\n", steps, changes, sum);
    ptrace(PTRACE_KILL, p, 0, 0);
    return 0;
}
C
gcc -O1 -o t t.c && timeout 20 ./t
gcc -m32 -O1 -o t32 t.c && timeout 20 ./t32
i=0; while [ $i -lt 300 ]; do (exec true) & i=$((i + 1)); done; wait; echo stormed
