// usage: share DIRECTORY [drop]     many small files, a large one, and small writes; with "drop" the page cache is emptied before reading
// Prints "NAME COUNT NANOSECONDS": files, or bytes.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DIRECTORIES = 20, FILES = 50, LARGE = 256 << 20, WRITES = 4000 };
static char buffer[1 << 20], path[4096], other[4096];
static int drops;

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void fail(const char *what) {
  perror(what);
  exit(1);
}
static void drop(void) {
  if (!drops) return;
  sync();
  int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
  if (fd < 0 || write(fd, "3", 1) != 1) fail("drop_caches");
  close(fd);
}
static void name(char *target, const char *root, int d, int f, const char *kind) { sprintf(target, "%s/dir%d/%s%d", root, d, kind, f); }
static void report(const char *what, long count, long begin) {
  printf("%s %ld %ld\n", what, count, now() - begin);
  fflush(stdout);
}
int main(int argc, char **argv) {
  if (argc < 2) return 2;
  const char *root = argv[1];
  drops = argc > 2;
  memset(buffer, 's', sizeof buffer);
  long begin = now();
  for (int d = 0; d < DIRECTORIES; d++) {
    sprintf(path, "%s/dir%d", root, d);
    if (mkdir(path, 0755)) fail("mkdir");
    for (int f = 0; f < FILES; f++) {
      name(path, root, d, f, "file");
      int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
      if (fd < 0 || write(fd, buffer, 1000 + f * 100) < 0 || close(fd)) fail("create");
    }
  }
  report("create", DIRECTORIES * FILES, begin);
  drop();
  begin = now();
  long seen = 0;
  for (int d = 0; d < DIRECTORIES; d++) {
    sprintf(path, "%s/dir%d", root, d);
    DIR *dir = opendir(path);
    if (!dir) fail("opendir");
    struct stat s;
    for (struct dirent *e; (e = readdir(dir));) seen += fstatat(dirfd(dir), e->d_name, &s, AT_SYMLINK_NOFOLLOW) == 0;
    closedir(dir);
  }
  report("list", seen, begin);
  drop();
  begin = now();
  for (int d = 0; d < DIRECTORIES; d++)
    for (int f = 0; f < FILES; f++) {
      name(path, root, d, f, "file");
      int fd = open(path, O_RDONLY);
      if (fd < 0 || read(fd, buffer, sizeof buffer) < 1000 || close(fd)) fail("read");
    }
  report("read-small", DIRECTORIES * FILES, begin);
  begin = now();
  for (int d = 0; d < DIRECTORIES; d++)
    for (int f = 0; f < FILES; f++) {
      name(path, root, d, f, "file");
      name(other, root, d, f, "moved");
      if (rename(path, other)) fail("rename");
    }
  report("rename", DIRECTORIES * FILES, begin);
  begin = now();
  for (int d = 0; d < DIRECTORIES; d++) {
    for (int f = 0; f < FILES; f++) {
      name(path, root, d, f, "moved");
      if (unlink(path)) fail("unlink");
    }
    sprintf(path, "%s/dir%d", root, d);
    if (rmdir(path)) fail("rmdir");
  }
  report("remove", DIRECTORIES * FILES, begin);

  sprintf(path, "%s/large", root);
  begin = now();
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);  // as cp, dd and tar do
  for (long done = 0; done < LARGE; done += sizeof buffer)
    if (write(fd, buffer, sizeof buffer) != sizeof buffer) fail("write");
  close(fd);
  report("write-large", LARGE, begin);
  drop();
  begin = now();
  fd = open(path, O_RDONLY);
  long total = 0;
  for (long n; (n = read(fd, buffer, sizeof buffer)) > 0;) total += n;
  if (total != LARGE) fail("read");
  close(fd);
  report("read-large", LARGE, begin);
  // What databases and logs do.
  begin = now();
  fd = open(path, O_RDWR);
  for (long i = 0; i < WRITES; i++)
    if (pwrite(fd, buffer, 4096, i * 37 % (LARGE / 4096) * 4096L) != 4096) fail("pwrite");
  close(fd);
  report("write-pages", WRITES, begin);
  unlink(path);
  begin = now();
  fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  for (long i = 0; i < WRITES; i++)
    if (write(fd, buffer, 100) != 100) fail("append");
  close(fd);
  report("append", WRITES, begin);
  unlink(path);
  return 0;
}
