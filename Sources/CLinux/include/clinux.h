// What Swift cannot import of the Linux interface: variadic calls, function-like macros, headers outside Glibc's module.
#ifndef CLINUX_H
#define CLINUX_H
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

long syscall(long number, ...);

static inline int clinux_memfd_create(const char *_Nonnull name) { return (int)syscall(SYS_memfd_create, name, 1U /* MFD_CLOEXEC */); }
static inline int clinux_ioctl(int fd, unsigned long request, unsigned long argument) { return ioctl(fd, request, argument); }
static inline int clinux_ioctl_pointer(int fd, unsigned long request, void *_Nullable argument) { return ioctl(fd, request, argument); }
static inline int clinux_fallocate(int fd, int mode, int64_t offset, int64_t length) { return (int)syscall(SYS_fallocate, fd, mode, offset, length); }
/// Gives freed memory of the process back to the host, from the middle of the heaps, too.
static inline void clinux_trim_heaps(void) { malloc_trim(0); }
/// Lets go of the pages of code and constants that the process has from files; those that it needs come back as it runs, from the
/// host's page cache. Not while a debugger is there.
void clinux_forget_cold_code(void);
/// preadv2(2) with RWF_NOWAIT: never waits for the medium.
static inline ssize_t clinux_read_nowait(int fd, const struct iovec *_Nonnull vectors, int count, int64_t offset) {
  return (ssize_t)syscall(SYS_preadv2, fd, vectors, (unsigned long)count, offset, 0L, 8);
}
/// Whether the file lies on a file system that is memory: tmpfs, ramfs.
static inline int clinux_is_in_memory(int fd) {
  struct statfs system;
  return fstatfs(fd, &system) == 0 && (system.f_type == 0x01021994 || system.f_type == 0x858458f6);
}
/// sync_file_range(2): begins to write what a range of the file has in the page cache.
static inline void clinux_begin_writing(int fd, int64_t offset, int64_t length) { syscall(SYS_sync_file_range, fd, offset, length, 2u); }
/// Tells the processor that this is a loop that waits.
static inline void clinux_pause(void) { __builtin_ia32_pause(); }
/// Goes on with a CRC-32C (reflected, neither inverted before nor after) over `count` bytes.
uint32_t clinux_crc32c(uint32_t sum, const void *_Nonnull bytes, size_t count);
/// Whether the host's time stamp counter counts on at one frequency (CPUID 80000007, EDX bit 8).
static inline int clinux_tsc_is_invariant(void) {
  uint32_t a = 0x80000000u, b, c = 0, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (a < 0x80000007u) return 0;
  a = 0x80000007u, c = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return d >> 8 & 1;
}
static inline int clinux_sigrtmin(void) { return SIGRTMIN; }
static inline int clinux_is_connected(int fd) {
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  return getpeername(fd, (struct sockaddr *)&address, &length) == 0;
}
// Socket addresses: Swift does not see through the transparent unions of these calls.
static inline int clinux_connect(int fd, const void *_Nonnull address, unsigned length) { return connect(fd, (const struct sockaddr *)address, length); }
static inline int clinux_bind(int fd, const void *_Nonnull address, unsigned length) { return bind(fd, (const struct sockaddr *)address, length); }
static inline int clinux_getsockname(int fd, void *_Nonnull address, unsigned *_Nonnull length) { return getsockname(fd, (struct sockaddr *)address, length); }
/// Not blocking, closed on exec.
static inline int clinux_accept(int fd, void *_Nonnull address, unsigned *_Nonnull length) {
  return (int)syscall(SYS_accept4, fd, address, length, 04000 /* SOCK_NONBLOCK */ | 02000000 /* SOCK_CLOEXEC */);
}
static inline long clinux_recvfrom(int fd, void *_Nonnull buffer, unsigned long size, void *_Nonnull address, unsigned *_Nonnull length) {
  return recvfrom(fd, buffer, size, MSG_DONTWAIT, (struct sockaddr *)address, length);
}
/// openat2 with RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS: never out of the directory.
static inline int clinux_open_beneath(int directory, const char *_Nonnull name, uint64_t flags, uint64_t mode) {
  struct { uint64_t flags, mode, resolve; } how = {flags, mode, 0x08 | 0x02};
  return (int)syscall(SYS_openat2, directory, name, &how, sizeof how);
}
static inline long clinux_getdents(int fd, void *_Nonnull buffer, unsigned long size) { return syscall(SYS_getdents64, fd, buffer, size); }
static inline int clinux_renameat2(int from, const char *_Nonnull old, int to, const char *_Nonnull name, unsigned flags) {
  return (int)syscall(SYS_renameat2, from, old, to, name, flags);
}
static inline long clinux_copy_file_range(int from, int64_t *_Nonnull fromOffset, int to, int64_t *_Nonnull toOffset, unsigned long count) {
  return syscall(SYS_copy_file_range, from, fromOffset, to, toOffset, count, 0);
}
/// A working directory and umask of the thread's own, the umask 0.
static inline void clinux_private_umask(void) {
  if (syscall(SYS_unshare, 0x200 /* CLONE_FS */) == 0) umask(0);
}
static inline int clinux_is_dir(mode_t m) { return S_ISDIR(m); }
static inline int clinux_is_reg(mode_t m) { return S_ISREG(m); }
static inline int clinux_is_blk(mode_t m) { return S_ISBLK(m); }
static inline int clinux_open(const char *_Nonnull path, int flags, unsigned mode) { return open(path, flags, mode); }
/// An open-file-description lock on byte 0; type F_WRLCK, F_RDLCK or F_UNLCK. Returns 0 or -1 and errno.
static inline int clinux_lock(int fd, int type) {
  struct flock l = {0};
  l.l_type = (short)type; l.l_whence = SEEK_SET; l.l_start = 0; l.l_len = 1;
  return fcntl(fd, 37 /* F_OFD_SETLK */, &l);
}
static inline int clinux_fcntl_setfl(int fd, int flags) { return fcntl(fd, F_SETFL, flags); }
static inline int clinux_fcntl_getfl(int fd) { return fcntl(fd, F_GETFL); }
static inline uint32_t clinux_load_acquire32(const void *_Nonnull p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
static inline uint16_t clinux_load_acquire16(const void *_Nonnull p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
static inline void clinux_store_release16(void *_Nonnull p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }
static inline void clinux_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void clinux_set_name(const char *_Nonnull name) { syscall(SYS_prctl, 15 /* PR_SET_NAME */, name, 0, 0, 0); }
static inline uint64_t clinux_rdtsc(void) { uint32_t a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return ((uint64_t)d << 32) | a; }
/// From now on a page of these that its file does not have (any more) is one of zeroes, instead of a SIGBUS; `event` hears of it.
/// The first call installs this process's handler of SIGBUS, which leaves everything else to the one before it.
/// Returns a number for the two functions below, or -1.
int clinux_window_add(void *_Nonnull start, unsigned long size, int event);
void clinux_window_remove(int window);
/// Whether there were such pages since the last call.
int clinux_window_take_holes(int window);
#endif
