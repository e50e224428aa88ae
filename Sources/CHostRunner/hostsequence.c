#define _GNU_SOURCE
#include "include/hostsequence.h"
#include "include/hostrunner.h"
#include <setjmp.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static uint8_t *area;
static host_sequence_state *state;
static uint64_t *host_rsp;
static uint8_t *prologue;
static uint8_t *last_jump;  // of the prologue
enum { CODE32 = 0x23, CODE64 = 0x33, DATA = 0x2B };  // Linux's segments of programs
static sigjmp_buf escape;
static volatile int running;
static struct sigaction previous[5];
static const int signals[5] = {SIGFPE, SIGSEGV, SIGILL, SIGBUS, SIGTRAP};

static uint8_t *emit(uint8_t *p, const void *b, int n) { memcpy(p, b, n); return p + n; }
static uint8_t *rel(uint8_t *p, const void *target) {
  int32_t d = (int32_t)((const uint8_t *)target - (p + 4));
  memcpy(p, &d, 4);
  return p + 4;
}
static uint8_t *mov_gpr(uint8_t *p, int store, int n) {
  uint8_t b[3] = {(uint8_t)(0x48 | (n > 7 ? 4 : 0)), store ? 0x89 : 0x8B, (uint8_t)((n & 7) << 3 | 5)};
  return rel(emit(p, b, 3), &state->gpr[n]);
}

// VMOVUPS, or nothing where there is no AVX.
static uint8_t *mov_vector(uint8_t *p, int store, int n) {
  if (!host_has_avx()) return p;
  uint8_t b[4] = {0xC5, n > 7 ? 0x7C : 0xFC, store ? 0x11 : 0x10, (uint8_t)((n & 7) << 3 | 5)};
  return rel(emit(p, b, 4), &state->vectors[n * 32]);
}

static void on_signal(int sig, siginfo_t *info, void *context) {
  (void)info;
  if (!running) {  // not ours: the default deals with it
    signal(sig, SIG_DFL);
    return;
  }
  ucontext_t *uc = context;
  static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  for (int i = 0; i < 16; i++) state->gpr[i] = (uint64_t)uc->uc_mcontext.gregs[order[i]];
  state->rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
  state->rflags = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];
  state->cr2 = (uint64_t)uc->uc_mcontext.gregs[REG_CR2];
  state->error = (uint64_t)uc->uc_mcontext.gregs[REG_ERR];
  const uint8_t *fp = (const uint8_t *)uc->uc_mcontext.fpregs;
  memcpy(state->fx, fp, 512);
  // An XSAVE area of the standard form: AVX is component 2, at 576, and zero when its header says so.
  int upper = host_has_avx() && (fp[512] & 4);
  for (int i = 0; i < 16; i++) {
    memcpy(state->vectors + i * 32, fp + 160 + i * 16, 16);
    if (upper) memcpy(state->vectors + i * 32 + 16, fp + 576 + i * 16, 16);
    else memset(state->vectors + i * 32 + 16, 0, 16);
  }
  siglongjmp(escape, 1 + (int)uc->uc_mcontext.gregs[REG_TRAPNO]);
}

// A sequence that overwrites itself can run for ever: after two ticks of CPU time it is given up.
static timer_t watchdog;
static volatile int ticks;
static void on_tick(int sig) {
  (void)sig;
  if (running && ++ticks > 1) siglongjmp(escape, 1 + HOST_SEQUENCE_ENDLESS);
}

// A sequence that overwrites itself can become a system call, whatever that does to this machine: the kernel lets through only
// those that the C library makes (Documentation/admin-guide/syscall-user-dispatch.rst), and such a sequence is given up.
static volatile char selector;
static void on_call(int sig) {
  (void)sig;
  selector = 0;
  if (running) siglongjmp(escape, 1 + HOST_SEQUENCE_ENDLESS);
}
static void forbid_calls(void) {
  struct sigaction call = {.sa_handler = on_call, .sa_flags = SA_ONSTACK | SA_NODEFER};
  sigaction(SIGSYS, &call, 0);
  uintptr_t library = (uintptr_t)&syscall - 0x200000;  // a kernel without this refuses, and nothing is forbidden
  prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, library, 0x400000, &selector);
}

int host_sequence_init(uint64_t code, uint64_t data, uint64_t data_size) {
  if (!area) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, all = PROT_READ | PROT_WRITE | PROT_EXEC;
    if (mmap((void *)data, data_size, PROT_READ | PROT_WRITE, flags, -1, 0) != (void *)data) return -1;
    uint8_t *exit_page = (uint8_t *)code + HOST_SEQUENCE_EXIT, *far = (uint8_t *)code + HOST_SEQUENCE_FAR;
    if (mmap((void *)code, 0x1000, all, flags, -1, 0) != (void *)code || mmap(exit_page, 0x1000, all, flags, -1, 0) != exit_page ||
        mmap(far, HOST_SEQUENCE_FAR_SIZE, all, flags, -1, 0) != far) return -1;
    area = (uint8_t *)code;
    memset((void *)data, 1, data_size);
    prologue = far;
    state = (host_sequence_state *)(far + 0x1000);
    host_rsp = (uint64_t *)(far + 0x1F00);
    uint8_t *p = prologue;
    p = emit(p, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57", 10);
    p = rel(emit(p, "\x48\x89\x25", 3), host_rsp);
    p = rel(emit(p, "\x48\x0F\xAE\x0D", 4), state->fx);       // fxrstor64
    for (int i = 0; i < 16; i++) p = mov_vector(p, 0, i);
    p = rel(emit(p, "\xFF\x35", 2), &state->rflags);
    *p++ = 0x9D;                                              // popfq
    for (int i = 0; i < 16; i++) p = mov_gpr(p, 0, i);
    last_jump = p;
    uint64_t *way = (uint64_t *)(far + 0x1F10);
    *way = (uint64_t)CODE32 << 32 | (uint32_t)(uintptr_t)(area + HOST_SEQUENCE_CODE);
    p = exit_page + HOST_SEQUENCE_EXIT_NARROW - HOST_SEQUENCE_EXIT;
    *p++ = 0xEA;                                              // jmp CODE64:exit_page
    uint64_t back = (uint64_t)CODE64 << 32 | (uint32_t)(uintptr_t)exit_page;
    emit(p, &back, 6);
    p = exit_page;
    for (int i = 0; i < 16; i++) p = mov_gpr(p, 1, i);
    p = rel(emit(p, "\x48\x8B\x25", 3), host_rsp);
    p = emit(p, "\x9C\x8F\x05", 3);
    p = rel(p, &state->rflags);
    p = rel(emit(p, "\x48\x0F\xAE\x05", 4), state->fx);       // fxsave64
    for (int i = 0; i < 16; i++) p = mov_vector(p, 1, i);
    emit(p, "\xFC\x41\x5F\x41\x5E\x41\x5D\x41\x5C\x5D\x5B\xC3", 12);
  }
  static uint8_t alternate[65536];
  stack_t ss = {.ss_sp = alternate, .ss_size = sizeof alternate};
  sigaltstack(&ss, 0);
  struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_ONSTACK | SA_NODEFER | SA_SIGINFO};
  for (int i = 0; i < 5; i++) sigaction(signals[i], &sa, &previous[i]);
  struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_ONSTACK | SA_NODEFER | SA_RESTART};
  sigaction(SIGVTALRM, &tick, 0);
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGVTALRM};
  event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
  if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &watchdog) != 0) return -1;
  struct itimerspec period = {{0, 200000000}, {0, 200000000}};
  timer_settime(watchdog, 0, &period, 0);
  sigset_t mine;
  sigemptyset(&mine);
  sigaddset(&mine, SIGVTALRM);
  pthread_sigmask(SIG_UNBLOCK, &mine, 0);
  forbid_calls();
  return 0;
}
void host_sequence_finish(void) {
  prctl(59, 0, 0, 0, 0);
  timer_delete(watchdog);
}
void host_sequence_protect(uint64_t address, uint64_t size, int access) {
  mprotect((void *)address, size, (access & 1 ? PROT_READ : 0) | (access & 2 ? PROT_WRITE : 0));
}

int host_sequence_run(host_sequence_state *s, int wide) {
  memcpy(state, s, sizeof *s);
  if (wide) rel(emit(last_jump, "\xE9", 1), area + HOST_SEQUENCE_CODE);
  else rel(emit(last_jump, "\xFF\x2D", 2), prologue + 0x1F10);  // jmp far [way]
  // Other than 64-bit code, this one has to have segments.
  if (!wide) __asm__ volatile("movl %0, %%ds\n\tmovl %0, %%es" : : "r"(DATA));
  int vector = sigsetjmp(escape, 0);
  if (vector == 0) {
    ticks = 0;
    running = 1;
    selector = 1;
    ((void (*)(void))prologue)();
  }
  selector = 0;
  running = 0;
  uint32_t mxcsr = 0x1F80;
  __asm__ volatile("cld\n\tfninit\n\tldmxcsr %0" : : "m"(mxcsr));
  memcpy(s, state, sizeof *s);
  return vector - 1;
}
