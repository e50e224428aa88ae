// Files that the guest maps from the host's memory (DAX).
// usage: mapped is FILE               says whether Linux uses it so
//        mapped watch FILE PLACE      maps FILE, and says what is at PLACE (a byte) each time it reads a line
//        mapped put FILE PLACE TEXT   writes in place
//        mapped fill FILE             maps FILE and writes to each page; says how many MiB there was room for, and what write(2) says then
//        mapped answer                prints a number that stands in its code
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
enum { ATTRIBUTE_DAX = 0x200000 };

static int fail(const char *what) {
  perror(what);
  return 1;
}
static sigjmp_buf without_room;
static void no_room(int number) { siglongjmp(without_room, number); }
static int fill(const char *path) {
  int fd = open(path, O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status)) return fail(path);
  volatile char *map = mmap(0, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return fail("mmap");
  static volatile long place;
  struct sigaction action = {.sa_handler = no_room};
  sigaction(SIGBUS, &action, 0);
  if (!sigsetjmp(without_room, 1))
    for (; place < status.st_size; place += 4096) map[place] = 1;
  printf("FILLED %ld MiB\n", place >> 20);
  if (place < status.st_size) printf("WRITE %s\n", pwrite(fd, "x", 1, place) == 1 ? "went through" : errno == ENOSPC ? "says no space" : strerror(errno));
  return 0;
}
static __attribute__((noinline)) unsigned answer(void) {
  unsigned value;
  __asm__ volatile("movl $0x51A7E001, %0" : "=r"(value));
  return value;
}
int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IOLBF, 0);
  if (argc == 3 && !strcmp(argv[1], "is")) {
    struct statx status;
    if (statx(AT_FDCWD, argv[2], 0, STATX_BASIC_STATS, &status)) return fail(argv[2]);
    printf("%s is %s\n", argv[2], status.stx_attributes & ATTRIBUTE_DAX ? "mapped" : "cached");
    return 0;
  }
  if (argc == 4 && !strcmp(argv[1], "watch")) {
    int fd = open(argv[2], O_RDWR);
    if (fd < 0) fd = open(argv[2], O_RDONLY);
    long place = atol(argv[3]);
    struct stat status;
    if (fd < 0 || fstat(fd, &status)) return fail(argv[2]);
    volatile char *map = mmap(0, status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return fail("mmap");
    char line[100];
    do printf("SEEN %d\n", map[place]);
    while (fgets(line, sizeof line, stdin) && line[0] != '.');
    return 0;
  }
  if (argc == 5 && !strcmp(argv[1], "put")) {
    int fd = open(argv[2], O_RDWR);
    if (fd < 0) return fail(argv[2]);
    long size = strlen(argv[4]);
    return pwrite(fd, argv[4], size, atol(argv[3])) == size ? 0 : fail("pwrite");
  }
  if (argc == 3 && !strcmp(argv[1], "fill")) return fill(argv[2]);
  if (argc == 2 && !strcmp(argv[1], "answer")) {
    unsigned value = 0;
    for (int i = 0; i < 1000000; i++) value = answer();
    printf("ANSWER %x\n", value);
    return 0;
  }
  return 2;
}
