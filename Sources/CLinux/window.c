// What happens when a mapped file has become shorter: the host's processor finds no page. See DirectWindow.swift.
#define _GNU_SOURCE
#include "clinux.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

// PIECE: DirectWindow.pieceSize. SINGLE: pages that are covered one by one before a guest is taken to be after something: each may
// be a mapping more, and a process that has too many of them cannot go on.
enum { WINDOWS = 256, PAGE = 4096, PIECE = 2 << 20, SINGLE = 64 };
typedef struct {
  atomic_uintptr_t start, end;
  atomic_int event, holes;
} window;
static window windows[WINDOWS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int installed;
static struct sigaction before;

// A page of zeroes instead, and word to who put the file there. Only what may be called in a signal handler.
static int cover(uintptr_t address) {
  for (int i = 0; i < WINDOWS; i++) {
    uintptr_t start = atomic_load(&windows[i].start);
    if (!start || address < start || address >= atomic_load(&windows[i].end)) continue;
    void *page = (void *)(address & ~(uintptr_t)(PAGE - 1));
    size_t size = atomic_load(&windows[i].holes) < SINGLE ? PAGE : PIECE - (size_t)((uintptr_t)page - start) % PIECE;
    if (mmap(page, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) return 0;
    atomic_fetch_add(&windows[i].holes, 1);  // behind it: who takes them looks at pages that are there
    uint64_t one = 1;
    if (write(atomic_load(&windows[i].event), &one, sizeof one) < 0) {}  // full: it has been told already
    return 1;
  }
  return 0;
}
static void on_bus_error(int number, siginfo_t *info, void *context) {
  int error = errno;
  if (info->si_code == BUS_ADRERR && cover((uintptr_t)info->si_addr)) {
    errno = error;
    return;
  }
  errno = error;
  if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
  else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(number);
  else signal(SIGBUS, SIG_DFL);  // the instruction runs again and ends the process, as it should
}

int clinux_window_add(void *start, unsigned long size, int event) {
  int slot = -1;
  pthread_mutex_lock(&lock);
  if (!installed) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    installed = sigaction(SIGBUS, &action, &before) == 0;
  }
  for (int i = 0; installed && i < WINDOWS && slot < 0; i++)
    if (!atomic_load(&windows[i].start)) slot = i;
  if (slot >= 0) {
    atomic_store(&windows[slot].event, event);
    atomic_store(&windows[slot].holes, 0);
    atomic_store(&windows[slot].end, (uintptr_t)start + size);
    atomic_store(&windows[slot].start, (uintptr_t)start);
  }
  pthread_mutex_unlock(&lock);
  return slot;
}
void clinux_window_remove(int slot) { atomic_store(&windows[slot].start, 0); }
int clinux_window_take_holes(int slot) { return atomic_exchange(&windows[slot].holes, 0); }
