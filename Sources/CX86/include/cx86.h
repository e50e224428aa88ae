// The memory layout that the software CPU's handlers share: state, decoded operations, soft TLB.
// Plain C so that handlers can take typed pointers through @convention(c), and so that offsets are fixed
// for the code that Thunks (and later the translator) emit.
#ifndef CX86_H
#define CX86_H
#ifndef _GNU_SOURCE
#define CX86_NEEDS_SYSCALL 1
long syscall(long number, ...);
int ftruncate(int fd, long length);
#endif
#include <stdint.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define X86_TLB_SIZE (1 << 20) // as many pages as 32 bits of an address tell apart
#define X86_JCACHE_BITS 16
#define X86_JCACHE_SIZE (1 << X86_JCACHE_BITS)

struct x86_cpu;
struct x86_op;

typedef uint64_t (*x86_handler)(struct x86_op *_Nonnull, struct x86_cpu *_Nonnull);
typedef void (*x86_thunk)(struct x86_cpu *_Nonnull, void *_Nullable);

/// One decoded operation, or the header in front of a block (fn = nothing callable).
typedef struct x86_op {
  x86_handler _Nonnull fn;
  uint64_t imm;      // immediate, branch displacement from the block's base, or thunk address
  int64_t disp;      // address displacement; on direct branches: the linked block's first operation, or 0
  uint8_t reg;       // byte offset of the ModRM.reg register in x86_cpu.gpr
  uint8_t rm;        // byte offset of the ModRM.rm register
  uint8_t base, index; // byte offsets of address registers (the zero slot when absent)
  uint8_t scale;     // shift of the index
  uint8_t seg;       // byte offset into segbase
  uint8_t ashift;    // 64 - address size in bits
  uint8_t len;       // instruction length in bytes
  uint16_t off;      // offset of this instruction from the start of its block's page
  uint8_t size;      // operand size in bytes
  uint8_t aux;       // handler specific
  uint32_t extra;    // handler specific
} x86_op;

/// One place of a jump cache: an address, and where translated code goes that goes there. An address is at its hash, which each address space
/// changes by a number of its own, or at the place beside that. One that is empty holds an address that belongs elsewhere.
typedef struct x86_jump {
  uint64_t rip;
  uint64_t code;
} x86_jump;

typedef struct x86_segment {
  uint64_t base;
  uint32_t limit;
  uint16_t selector;
  uint16_t attributes; // type:4 S:1 DPL:2 P:1 0:4 AVL:1 L:1 DB:1 G:1 (descriptor bits 40-47 and 52-55)
} x86_segment;

/// The pages that a base register pointed to last, for translated code: the one it was read through and the one it was
/// written through, each with the way to the host's page: the distance from the guest's addresses for the first
/// X86_WINDOW_CACHES, the host's address of the page for the others. Unlike in the TLB, where an entry's place is part of its
/// address, any tag matches some page here: there is no "none".
typedef struct x86_base_cache {
  uint64_t tag_r, way_r, tag_w, way_w;
} x86_base_cache;
#define X86_WINDOW_CACHES 17
#define X86_NAMED_CACHES 64
#define X86_BASE_CACHES (X86_WINDOW_CACHES + X86_NAMED_CACHES) // of each kind of code: the supervisor's, the user's, and the user's of 32 bits

typedef struct x86_cpu {
  uint64_t gpr[16];
  uint64_t zero;         // offset 128: always 0; the "no register" operand
  uint64_t block_base;   // offset 136: linear address of the page that the running block starts in
  uint64_t t1_flags;     // translated code: LAHF's AH over SETO's AL, or 0xFFFF when fres and faux hold the flags
  uint64_t t1_save;      // translated code: RAX while flags move through it
  uint32_t pending;      // set by any thread; polled at every block entry
  uint32_t exit_reason;
  uint64_t poll;         // 1 when pending is not 0: an index that backward branches use
  uint64_t t1_delta[4];  // host less guest address in the windows of the running segment
  x86_base_cache stack_cache[2]; // of the stack pointer: the supervisor's, then the user's
  uint32_t return_offset; // translated code: where in its page the RET is that is on its way, and what it adds to RSP, times 4096
  uint8_t cpl, mode, lma, inhibit;   // mode: 0 = 16-bit, 1 = 32-bit, 2 = 64-bit code
  uint8_t vector_off;    // why floating-point instructions are not just run: bits of VectorOff
  uint8_t narrow;        // 32-bit code of a program whose segments all begin at address 0: it is translated
  uint8_t pad8[2];
  uint32_t mxcsr;
  uint64_t cr0;
  uint64_t t1_target;    // an indirect call's target while its return address is pushed
  uint8_t upper_in_use;  // the upper half of some vector register may not be zero; not in a word with what is read, see vector_off
  uint8_t pad11[7];
  uint32_t jump_salt;    // of the running privilege's address space, twice: see JumpTable
  uint32_t pad12;
  // Up to here translated code reaches everything but the first eight registers with a displacement of one byte, see Host.bias.
  uint64_t fres, faux;   // lazy arithmetic flags (see Flags.swift)
  uint64_t rip;
  uint64_t *_Nonnull tlb; // the table of the current privilege, see X86_TLB_BYTES
  x86_jump *_Nonnull jcache; // of the current privilege
  uint64_t segbase[8];   // es cs ss ds fs gs, zero: bases in effect (0 in 64-bit mode for es cs ss ds)
  uint64_t rflags;       // every flag that is not lazy: IF DF TF IOPL NT RF AC ID ...
  uint64_t sp_mask;
  uint32_t raw_flags;    // EFLAGS left by a thunk
  // fault being raised
  uint64_t fault_error;
  uint64_t cr2;
  x86_op *_Nullable fault_op;
  uint8_t fault_vector, fault_has_error, pad9[2];
  uint64_t cr3, cr4, cr8, efer;
  uint64_t dr[8];
  x86_segment seg[6];
  x86_segment ldtr, tr;
  uint64_t gdt_base, idt_base;
  uint32_t gdt_limit, idt_limit;
  uint64_t star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip;
  uint64_t *_Nonnull tlb_supervisor;
  uint64_t *_Nonnull tlb_user;
  void *_Nullable core;  // unretained X86Core
  uint64_t x87_control;
  uint64_t t1_edge;      // the edge that an unlinked exit of translated code wants linked: its number, and in the low 12 bits where in the page it leads
  x86_op *_Nullable operations; // of all blocks
  uint64_t own_end;      // behind the base caches of operands' own that hold something, a list of addresses
  uint64_t own_empty;    // the tag of those that do not
  uint64_t xcr0;
  uint64_t host_stack;   // the host's stack pointer while translated code runs
  uint64_t return_stack; // translated code's own stack, see ReturnStack.swift
  uint64_t tsc_origin;   // the time stamp counter was tsc_start when CLOCK_MONOTONIC was this many nanoseconds,
  uint64_t tsc_start;
  uint64_t tsc_scale;    // and has this many ticks a nanosecond, times 2^32
  x86_base_cache base_cache[3 * X86_BASE_CACHES]; // see BaseCache in SegmentMemory.swift; two of the stack's are above
  const void *_Nullable flag_table;  // fres and faux for every LAHF/SETO image
  uint32_t interrupt_latch; // 1 from an interrupt controller's word on until the core asks for the vector
  int32_t pauses;        // PAUSE instructions until the host is asked whether somebody else wants to run, see SystemHandlers.pause
  uint32_t pad10[2];     // up to the alignment of what follows
  uint8_t xmm[512];      // 16 registers of 32 bytes
  uint8_t bounce[128];  // memory operand of a thunk that the fast path cannot reach
  uint8_t fxarea[512];  // FXSAVE image
} x86_cpu;


_Static_assert(offsetof(x86_cpu, fxarea) % 64 == 0, "FXSAVE faults on an unaligned image");
_Static_assert(offsetof(x86_cpu, bounce) % 64 == 0 && offsetof(x86_cpu, xmm) % 64 == 0, "aligned vector accesses fault on unaligned copies");

/// Behind the state, so that translated code reaches them without a pointer: the TLBs and the jump caches, the
/// supervisor's before the user's.
///
/// A TLB is four columns of 8 bytes a page: the tag for reading, the tag for writing, the distance from linear to host addresses, and
/// the guest-physical address. `ea ^ tag` is at most 4096 - size exactly when the access may take the fast path. Neighbouring pages
/// share the host's cache lines. Columns are not a multiple of its cache apart, or a page's four cells would fight for one place in it.
/// The jump caches begin where a large page may, and fill it; X86_JCACHE_OPERATIONS behind a jump cache's places are the first operations of
/// their blocks.
enum { X86_TLB_COLUMN = X86_TLB_SIZE * 8 + 1344, X86_TLB_BYTES = (4 * X86_TLB_COLUMN + 4095) & ~4095, X86_JCACHE_BYTES = X86_JCACHE_SIZE * sizeof(x86_jump), X86_JCACHE_OPERATIONS = 2 * X86_JCACHE_BYTES,
  X86_TLB_TABLES = (sizeof(x86_cpu) + 4095) & ~4095, X86_JCACHE_TABLES = (X86_TLB_TABLES + 2 * X86_TLB_BYTES + (2 << 20) - 1) & -(2 << 20),
  X86_STATE_BYTES = X86_JCACHE_TABLES + X86_JCACHE_OPERATIONS + 2 * X86_JCACHE_BYTES };

/// Offsets that Swift needs as constants.
enum { X86_BOUNCE_OFFSET = offsetof(x86_cpu, bounce), X86_FXAREA_OFFSET = offsetof(x86_cpu, fxarea), X86_SEGBASE_OFFSET = offsetof(x86_cpu, segbase), X86_XMM_OFFSET = offsetof(x86_cpu, xmm), X86_PENDING_OFFSET = offsetof(x86_cpu, pending), X86_SEGMENTS_OFFSET = offsetof(x86_cpu, seg), X86_RAW_FLAGS_OFFSET = offsetof(x86_cpu, raw_flags),
  X86_BLOCK_BASE_OFFSET = offsetof(x86_cpu, block_base), X86_T1_FLAGS_OFFSET = offsetof(x86_cpu, t1_flags), X86_T1_SAVE_OFFSET = offsetof(x86_cpu, t1_save),
  X86_FRES_OFFSET = offsetof(x86_cpu, fres), X86_FAUX_OFFSET = offsetof(x86_cpu, faux), X86_RIP_OFFSET = offsetof(x86_cpu, rip),
  X86_HOST_STACK_OFFSET = offsetof(x86_cpu, host_stack), X86_RETURN_STACK_OFFSET = offsetof(x86_cpu, return_stack), X86_RETURN_OFFSET_OFFSET = offsetof(x86_cpu, return_offset), X86_JCACHE_OFFSET = offsetof(x86_cpu, jcache), X86_JUMP_SALT_OFFSET = offsetof(x86_cpu, jump_salt),
  X86_T1_EDGE_OFFSET = offsetof(x86_cpu, t1_edge), X86_OPERATIONS_OFFSET = offsetof(x86_cpu, operations), X86_INTERRUPT_LATCH_OFFSET = offsetof(x86_cpu, interrupt_latch), X86_PAUSES_OFFSET = offsetof(x86_cpu, pauses),
  X86_T1_TARGET_OFFSET = offsetof(x86_cpu, t1_target), X86_POLL_OFFSET = offsetof(x86_cpu, poll), X86_BASE_CACHE_OFFSET = offsetof(x86_cpu, base_cache), X86_STACK_CACHE_OFFSET = offsetof(x86_cpu, stack_cache), X86_T1_DELTA_OFFSET = offsetof(x86_cpu, t1_delta), X86_FLAG_TABLE_OFFSET = offsetof(x86_cpu, flag_table),
  X86_OWN_END_OFFSET = offsetof(x86_cpu, own_end), X86_OWN_EMPTY_OFFSET = offsetof(x86_cpu, own_empty),
  X86_X87_CONTROL_OFFSET = offsetof(x86_cpu, x87_control), X86_RFLAGS_OFFSET = offsetof(x86_cpu, rflags), X86_CPL_OFFSET = offsetof(x86_cpu, cpl), X86_KERNEL_GS_BASE_OFFSET = offsetof(x86_cpu, kernel_gs_base), X86_SELECTOR_OFFSET = offsetof(x86_segment, selector), X86_VECTOR_OFF_OFFSET = offsetof(x86_cpu, vector_off), X86_UPPER_IN_USE_OFFSET = offsetof(x86_cpu, upper_in_use) };

// Host instructions that Swift has no name for. `lock cmpxchg` and friends as assembly because guest operands may be
// unaligned, which the C atomics leave undefined.
static inline int cx_cas8(uint8_t *_Nonnull p, uint8_t *_Nonnull expected, uint8_t v) {
  uint8_t ok; __asm__ volatile("lock cmpxchgb %3, %1; sete %0" : "=q"(ok), "+m"(*p), "+a"(*expected) : "q"(v) : "memory", "cc"); return ok;
}
static inline int cx_cas16(uint16_t *_Nonnull p, uint16_t *_Nonnull expected, uint16_t v) {
  uint8_t ok; __asm__ volatile("lock cmpxchgw %3, %1; sete %0" : "=q"(ok), "+m"(*p), "+a"(*expected) : "r"(v) : "memory", "cc"); return ok;
}
static inline int cx_cas32(uint32_t *_Nonnull p, uint32_t *_Nonnull expected, uint32_t v) {
  uint8_t ok; __asm__ volatile("lock cmpxchgl %3, %1; sete %0" : "=q"(ok), "+m"(*p), "+a"(*expected) : "r"(v) : "memory", "cc"); return ok;
}
static inline int cx_cas64(uint64_t *_Nonnull p, uint64_t *_Nonnull expected, uint64_t v) {
  uint8_t ok; __asm__ volatile("lock cmpxchgq %3, %1; sete %0" : "=q"(ok), "+m"(*p), "+a"(*expected) : "r"(v) : "memory", "cc"); return ok;
}
static inline int cx_cas128(void *_Nonnull p, uint64_t *_Nonnull lo, uint64_t *_Nonnull hi, uint64_t nlo, uint64_t nhi) {
  uint8_t ok;
  __asm__ volatile("lock cmpxchg16b %1; sete %0" : "=q"(ok), "+m"(*(unsigned __int128 *)p), "+a"(*lo), "+d"(*hi)
                   : "b"(nlo), "c"(nhi) : "memory", "cc");
  return ok;
}
static inline void cx_or32(uint32_t *_Nonnull p, uint32_t v) { __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
static inline void cx_and32(uint32_t *_Nonnull p, uint32_t v) { __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t cx_load32(const uint32_t *_Nonnull p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void cx_store64(uint64_t *_Nonnull p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
int sched_yield(void);
static inline void cx_yield(void) { (void)sched_yield(); }
static inline uint32_t cx_exchange32(uint32_t *_Nonnull p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
/// Zeroed memory whose untouched pages cost nothing; aborts as malloc failure does in Swift.
static inline void *_Nonnull cx_allocate_zeroed(long n) { void *p = calloc(1, (size_t)n); if (!p) abort(); return p; }
static inline void cx_free(void *_Nonnull p) { free(p); }
static inline void cx_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline uint64_t cx_rdtsc(void) { uint32_t a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return ((uint64_t)d << 32) | a; }
static inline uint64_t cx_monotonic(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static inline void cx_pause(void) { __asm__ volatile("pause"); }
static inline void cx_ldmxcsr(uint32_t v) { __asm__ volatile("ldmxcsr %0" : : "m"(v)); }
static inline uint32_t cx_stmxcsr(void) { uint32_t v; __asm__ volatile("stmxcsr %0" : "=m"(v)); return v; }
static inline void cx_fldcw(uint16_t v) { __asm__ volatile("fldcw %0" : : "m"(v)); }
static inline uint16_t cx_fnstcw(void) { uint16_t v; __asm__ volatile("fnstcw %0" : "=m"(v)); return v; }
static inline uint16_t cx_fnstsw(void) { uint16_t v; __asm__ volatile("fnstsw %0" : "=m"(v)); return v; }
// FNSTENV masks every exception, pending ones too: FLDCW would raise them.
static inline void cx_mask_x87(void) { uint8_t v[28]; __asm__ volatile("fnstenv %0" : "=m"(v)); }
static inline void cx_fninit(void) { __asm__ volatile("fninit"); }
static inline void cx_fnclex(void) { __asm__ volatile("fnclex"); }
static inline void cx_fxsave(void *_Nonnull p) { __asm__ volatile("fxsave64 (%0)" : : "r"(p) : "memory"); }
// The XMM registers are dead around these calls only because the compiler is told so.
static inline void cx_fxrstor(const void *_Nonnull p) {
  __asm__ volatile("fxrstor64 (%0)" : : "r"(p) : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                   "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
static inline uint64_t cx_xgetbv(void) {
  uint32_t a, d;
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (uint64_t)d << 32 | a;
}
static inline uint64_t cx_xinuse(void) {
  uint32_t a, d;
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
  return (uint64_t)d << 32 | a;
}
static inline void cx_cpuid(uint32_t leaf, uint32_t sub, uint32_t *_Nonnull out) {
  __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub));
}
/// `size` bytes of memory mapped twice, writable at *rw (2 MiB aligned) and executable right behind at *rx; 0, or -1 when the host
/// refuses.
static inline int cx_code_buffer(unsigned long size, void *_Nullable *_Nonnull rw, void *_Nullable *_Nonnull rx) {
  int fd = (int)syscall(SYS_memfd_create, "vz-code", 1 /* MFD_CLOEXEC */);
  if (fd < 0) return -1;
  if (ftruncate(fd, (off_t)size) != 0) { close(fd); return -1; }
  unsigned long large = 2 << 20;
  char *room = mmap(0, 2 * size + large, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) { close(fd); return -1; }
  unsigned long skip = -(unsigned long)room & (large - 1);
  char *both = room + skip;
  if (skip > 0) munmap(room, skip);
  if (skip < large) munmap(both + 2 * size, large - skip);
  *rw = mmap(both, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  *rx = mmap(both + size, size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
  close(fd);
  if (*rw != MAP_FAILED && *rx != MAP_FAILED) return 0;
  munmap(both, 2 * size);
  return -1;
}
/// Puts memory into large pages; 0, or -1 when the host has none or cannot do that (MADV_COLLAPSE: Linux 6.1).
static inline int cx_collapse(void *_Nonnull p, unsigned long size) { return madvise(p, size, 25); }
/// Zeroed pages that cost nothing until they are touched; aborts as malloc failure does in Swift.
static inline void *_Nonnull cx_map_zeroed(unsigned long size) {
  void *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}
/// Large pages as private memory is touched, where the host has them.
static inline void cx_prefer_large(void *_Nonnull p, unsigned long size) { madvise(p, size, 14 /* MADV_HUGEPAGE */); }
/// Gives pages back; they read as zeroes again. `shared`: of a memory file.
static inline void cx_discard(void *_Nonnull p, unsigned long size, int shared) { madvise(p, size, shared ? MADV_REMOVE : MADV_DONTNEED); }
static inline void cx_unmap(void *_Nonnull p, unsigned long size) { munmap(p, size); }
#endif
