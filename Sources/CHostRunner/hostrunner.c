#define _GNU_SOURCE
#include "include/hostrunner.h"
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

static uint8_t *base_code;
static host_registers *regs;
static uint64_t *host_rsp;
static uint8_t *instruction;
static uint8_t *epilogue_start;
static sigjmp_buf escape;
static uint8_t *data_area;

int host_has_avx(void) { return __builtin_cpu_supports("avx") != 0; }
static uint8_t *emit(uint8_t *p, const void *b, int n) { memcpy(p, b, n); return p + n; }
static uint8_t *rel(uint8_t *p, const void *target) {  // rip-relative displacement: the last 4 bytes of an instruction
  int32_t d = (int32_t)((const uint8_t *)target - (p + 4));
  memcpy(p, &d, 4);
  return p + 4;
}
static uint8_t *mov_gpr(uint8_t *p, int store, int n) {
  uint8_t b[3] = {(uint8_t)(0x48 | (n > 7 ? 4 : 0)), store ? 0x89 : 0x8B, (uint8_t)((n & 7) << 3 | 5)};
  return rel(emit(p, b, 3), &regs->gpr[n]);
}
static uint8_t *mov_xmm(uint8_t *p, int store, int n) {
  if (host_has_avx()) p = emit(p, n > 7 ? "\xC5\x7C" : "\xC5\xFC", 2);
  else p = emit(p, "\x44\x0F" + (n < 8), n < 8 ? 1 : 2);
  uint8_t b[2] = {store ? 0x11 : 0x10, (uint8_t)((n & 7) << 3 | 5)};
  return rel(emit(p, b, 2), &regs->vectors[n * 32]);
}
static uint8_t *epilogue(uint8_t *p) {
  for (int i = 0; i < 16; i++) p = mov_gpr(p, 1, i);
  for (int i = 0; i < 16; i++) p = mov_xmm(p, 1, i);
  p = rel(emit(p, "\x48\x8B\x25", 3), host_rsp);            // mov rsp, [host_rsp]
  p = emit(p, "\x9C\x8F\x05", 3);                            // pushfq; pop [rflags]
  p = rel(p, &regs->rflags);
  p = emit(p, "\xFC\x41\x5F\x41\x5E\x41\x5D\x41\x5C\x5D\x5B\xC3", 12);
  return p;
}
static volatile int running;
static void on_signal(int sig) {
  if (running) siglongjmp(escape, sig);
  signal(sig, SIG_DFL);  // not ours: the default deals with it
}

int host_runner_init(uint64_t base, uint64_t data_size) {
  void *m = mmap((void *)base, 0x2000 + data_size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (m != (void *)base) return -1;
  base_code = m;
  regs = (host_registers *)(base_code + 0x1000);
  host_rsp = (uint64_t *)(base_code + 0x1F00);
  data_area = base_code + 0x2000;
  uint8_t *p = base_code;
  p = emit(p, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57", 10);
  p = rel(emit(p, "\x48\x89\x25", 3), host_rsp);            // mov [host_rsp], rsp
  for (int i = 0; i < 16; i++) p = mov_xmm(p, 0, i);
  p = emit(p, "\xFF\x35", 2); p = rel(p, &regs->rflags);    // push [rflags]
  *p++ = 0x9D;                                              // popfq
  for (int i = 0; i < 16; i++) p = mov_gpr(p, 0, i);
  instruction = p;
  epilogue_start = p + 16;
  memset(instruction, 0x90, 16);
  epilogue(epilogue_start);
  static uint8_t alt[65536];
  stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt};
  sigaltstack(&ss, 0);
  struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_NODEFER};
  sigaction(SIGFPE, &sa, 0); sigaction(SIGSEGV, &sa, 0); sigaction(SIGILL, &sa, 0); sigaction(SIGBUS, &sa, 0);
  return 0;
}
void *host_runner_data(void) { return data_area; }

int host_runner_run(const uint8_t *code, int count, host_registers *r) {
  memset(instruction, 0x90, 16);
  memcpy(instruction, code, count);
  memcpy(regs, r, sizeof *r);
  int sig = sigsetjmp(escape, 0);
  if (sig == 0) {
    running = 1;
    ((void (*)(void))base_code)();
    memcpy(r, regs, sizeof *r);
  } else {
    __asm__ volatile("cld");
  }
  running = 0;
  return sig;
}
