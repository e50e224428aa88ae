// usage: posix DIRECTORY      what POSIX and Linux say of files, tried in an empty directory, as root
// Prints each line that does not hold, then "posix N checks, M wrong".
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int checks, wrong;
#define CHECK(condition)                                                              \
  do {                                                                                \
    checks++;                                                                         \
    errno = 0;                                                                        \
    if (!(condition)) {                                                               \
      wrong++;                                                                        \
      printf("posix.c:%d: %s (%s)\n", __LINE__, #condition, strerror(errno));         \
    }                                                                                 \
  } while (0)
#define FAILS(call, code) CHECK((call) == -1 && errno == (code))

static int make(const char *name, const char *text) {
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0 && write(fd, text, strlen(text)) < 0) wrong++;
  return fd;
}
static int holds(const char *name, const char *text) {
  char buffer[4096] = "";
  int fd = open(name, O_RDONLY);
  if (fd < 0) return 0;
  long n = read(fd, buffer, sizeof buffer - 1);
  close(fd);
  return n == (long)strlen(text) && memcmp(buffer, text, n) == 0;
}
static mode_t mode(const char *name) {
  struct stat s;
  return lstat(name, &s) == 0 ? s.st_mode : 0;
}
static void names(void) {
  char longest[257];
  memset(longest, 'n', 256);
  longest[256] = 0;
  FAILS(open(longest, O_RDWR | O_CREAT, 0644), ENAMETOOLONG);
  longest[255] = 0;
  CHECK(close(make(longest, "x")) == 0 && unlink(longest) == 0);
  FAILS(open("missing", O_RDONLY), ENOENT);
  FAILS(access("missing", F_OK), ENOENT);
  close(make("file", "text"));
  FAILS(open("file/below", O_RDONLY), ENOTDIR);
  FAILS(open("file", O_RDWR | O_CREAT | O_EXCL, 0644), EEXIST);
  FAILS(mkdir("file", 0755), EEXIST);
  FAILS(rmdir("file"), ENOTDIR);
  CHECK(mkdir("directory", 0755) == 0);
  FAILS(open("directory", O_WRONLY), EISDIR);
  FAILS(unlink("directory"), EISDIR);
  CHECK(close(make("directory/\xff\xfe odd\tname\n", "")) == 0);
  FAILS(rmdir("directory"), ENOTEMPTY);
  CHECK(unlink("directory/\xff\xfe odd\tname\n") == 0 && rmdir("directory") == 0 && unlink("file") == 0);
  FAILS(unlink("file"), ENOENT);
}
static void modes(void) {
  mode_t old = umask(022);
  int fd = open("m", O_RDWR | O_CREAT | O_EXCL, 0666);
  CHECK(fd >= 0 && mode("m") == (S_IFREG | 0644));
  close(fd);
  unlink("m");
  umask(0);
  fd = open("m", O_RDWR | O_CREAT | O_EXCL, 0);
  CHECK(fd >= 0 && mode("m") == S_IFREG);
  CHECK(write(fd, "ok", 2) == 2);
  close(fd);
  unlink("m");
  fd = open("m", O_RDWR | O_CREAT | O_EXCL, 0666);
  CHECK(mode("m") == (S_IFREG | 0666));
  for (int i = 0; i <= 07777; i += 0333) CHECK(chmod("m", i) == 0 && mode("m") == (S_IFREG | i));
  CHECK(fchmod(fd, 0640) == 0 && mode("m") == (S_IFREG | 0640));
  CHECK(mkdir("d", 01777) == 0 && mode("d") == (S_IFDIR | 01777));
  struct stat s;
  CHECK(chown("m", 1234, 5678) == 0 && stat("m", &s) == 0 && s.st_uid == 1234 && s.st_gid == 5678);
  CHECK(chown("m", -1, 77) == 0 && stat("m", &s) == 0 && s.st_uid == 1234 && s.st_gid == 77);
  CHECK(symlink("m", "l") == 0 && stat("l", &s) == 0 && s.st_uid == 1234);
  unlink("l");
  close(fd);
  umask(022);
  chmod(".", 0755);
  if (fork() == 0) {
    int bad = setgid(1000) || setuid(1000);
    bad |= !(open("m", O_RDONLY) == -1 && errno == EACCES);
    bad |= !(open("new", O_RDWR | O_CREAT, 0644) == -1 && errno == EACCES);
    bad |= !(chmod("m", 0777) == -1 && errno == EPERM);
    fd = open("d/mine", O_RDWR | O_CREAT | O_EXCL, 0600);
    bad |= fd < 0 || fstat(fd, &s) || s.st_uid != 1000 || s.st_gid != 1000;
    bad |= mkdir("d/sub", 0700) != 0 || stat("d/sub", &s) || s.st_uid != 1000;
    bad |= symlink("x", "d/link") != 0 || lstat("d/link", &s) || s.st_uid != 1000;
    exit(bad);
  }
  int status;
  wait(&status);
  CHECK(status == 0);
  if (fork() == 0) {  // sticky: another user's file stays
    int bad = setgid(1001) || setuid(1001);
    bad |= !(unlink("d/mine") == -1 && errno == EPERM);
    exit(bad);
  }
  wait(&status);
  CHECK(status == 0);
  CHECK(mkdir("g", 02775) == 0 && chown("g", 0, 4321) == 0 && chmod("g", 02775) == 0);
  CHECK(close(make("g/f", "")) == 0 && stat("g/f", &s) == 0 && s.st_gid == 4321);
  CHECK(mkdir("g/s", 0755) == 0 && stat("g/s", &s) == 0 && s.st_gid == 4321 && s.st_mode & 02000);
  CHECK(unlink("d/mine") == 0 && rmdir("d/sub") == 0 && unlink("d/link") == 0 && rmdir("d") == 0);
  CHECK(unlink("g/f") == 0 && rmdir("g/s") == 0 && rmdir("g") == 0 && unlink("m") == 0);
  umask(old);
}
/// The guest's root does what modes deny, and a file without rights still has its owner.
static void privileges(void) {
  struct stat s;
  CHECK(close(make("r", "old")) == 0 && chmod("r", 0444) == 0);
  int fd = open("r", O_WRONLY | O_TRUNC);
  CHECK(fd >= 0 && write(fd, "new", 3) == 3 && close(fd) == 0 && mode("r") == (S_IFREG | 0444));
  CHECK(chown("r", 1234, 5678) == 0 && stat("r", &s) == 0 && s.st_uid == 1234 && s.st_gid == 5678 && s.st_mode == (S_IFREG | 0444));
  CHECK(truncate("r", 2) == 0 && setxattr("r", "user.a", "b", 1, 0) == 0 && chmod("r", 0) == 0);
  CHECK(holds("r", "ne") && stat("r", &s) == 0 && s.st_uid == 1234 && s.st_mode == S_IFREG);
  CHECK(chown("r", 5, 6) == 0 && chmod("r", 0600) == 0 && stat("r", &s) == 0 && s.st_uid == 5 && s.st_mode == (S_IFREG | 0600));
  CHECK(chmod("r", 0) == 0 && chown("r", 0, 0) == 0 && stat("r", &s) == 0 && s.st_uid == 0 && unlink("r") == 0);
  CHECK(mkdir("p", 0) == 0 && mkdir("q", 0500) == 0 && mkdir("q/moves", 0555) == 0);
  CHECK(close(make("p/f", "")) == 0 && rename("p/f", "q/f") == 0 && link("q/f", "p/f") == 0 && symlink("x", "p/l") == 0 && mkfifo("p/i", 0600) == 0);
  CHECK(rename("q/moves", "p/moves") == 0 && mode("p/moves") == (S_IFDIR | 0555) && mode("p") == S_IFDIR && mode("q") == (S_IFDIR | 0500));
  DIR *d = opendir("p");
  int count = 0;
  while (d && readdir(d)) count++;
  CHECK(count == 6 && closedir(d) == 0);
  CHECK(rmdir("p/moves") == 0 && unlink("p/f") == 0 && unlink("p/l") == 0 && unlink("p/i") == 0 && unlink("q/f") == 0 && rmdir("q") == 0 && rmdir("p") == 0);
  // What others make without the right to write it is theirs.
  CHECK(mkdir("o", 0) == 0 && chmod("o", 0777) == 0);
  pid_t child = fork();
  if (child == 0) {
    if (setgid(1001) || setuid(1000)) _exit(1);
    umask(022);
    int own = open("o/mine", O_WRONLY | O_CREAT | O_EXCL, 0444), nobodys = open("o/none", O_WRONLY | O_CREAT | O_EXCL, 0);
    int bad = own < 0 || nobodys < 0 || write(own, "x", 1) != 1 || close(own) || close(nobodys) || mkdir("o/sub", 0555);
    bad |= stat("o/mine", &s) || s.st_uid != 1000 || s.st_gid != 1001 || s.st_mode != (S_IFREG | 0444) || utimensat(AT_FDCWD, "o/mine", 0, 0);
    bad |= stat("o/none", &s) || s.st_uid != 1000 || open("o/none", O_RDONLY) != -1 || errno != EACCES || open("o/mine", O_WRONLY) != -1;
    bad |= mkfifo("o/pipe", 0600) || stat("o/pipe", &s) || s.st_uid != 1000 || s.st_gid != 1001 || chmod("o/pipe", 0640) != 0;
    int pipe = open("o/pipe", O_RDWR);
    bad |= pipe < 0 || stat("o/pipe", &s) || s.st_mode != (S_IFIFO | 0640);
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "o/socket"};
    bad |= bind(server, (void *)&a, sizeof a) || listen(server, 1) || connect(client, (void *)&a, sizeof a) || unlink("o/socket") || unlink("o/pipe");
    bad |= stat("o/sub", &s) || s.st_uid != 1000 || mkdir("o/sub/x", 0700) != -1 || errno != EACCES || chmod("o/sub", 0700) != 0;
    _exit(bad);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(unlink("o/mine") == 0 && unlink("o/none") == 0 && rmdir("o/sub") == 0 && rmdir("o") == 0);
}
/// What a file gives to those that run it is gone when somebody else, or its owner, has changed it; root may.
static int in_child(int (*body)(void)) {
  pid_t child = fork();
  if (child == 0) _exit(setgid(1000) || setuid(1000) || body());
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}
static int writes(void) {
  int fd = open("s", O_RDWR);
  return fd < 0 || write(fd, "new", 3) != 3 || close(fd);
}
static int writes_past_the_cache(void) {
  int fd = open("s", O_WRONLY | O_TRUNC);
  return fd < 0 || write(fd, "new", 3) != 3 || close(fd);
}
static int appends(void) {
  int fd = open("s", O_WRONLY | O_APPEND);
  return fd < 0 || write(fd, "new", 3) != 3 || close(fd);
}
static int truncates(void) { return truncate("s", 1); }
static int opens_truncating(void) { return close(open("s", O_RDWR | O_TRUNC | O_CREAT, 0600)); }
static int allocates(void) {
  int fd = open("s", O_RDWR);
  return fd < 0 || fallocate(fd, 0, 0, 8192) || close(fd);
}
static int copies(void) {
  int from = open("from", O_RDONLY), to = open("s", O_RDWR);
  return from < 0 || to < 0 || copy_file_range(from, 0, to, 0, 4, 0) != 4 || close(from) || close(to);
}
static void set_id_bits(void) {
  int (*const ways[])(void) = {writes, writes_past_the_cache, appends, truncates, opens_truncating, allocates, copies};
  CHECK(close(make("from", "text")) == 0 && chmod(".", 0755) == 0);
  for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
    CHECK(close(make("s", "some text")) == 0 && chown("s", 0, 1000) == 0 && chmod("s", 06777) == 0 && mode("s") == (S_IFREG | 06777));
    CHECK(in_child(ways[i]) == 0);
    CHECK(mode("s") == (S_IFREG | 0777) || (printf("way %u: %o\n", i, mode("s")), 0));
    CHECK(unlink("s") == 0);
  }
  // And capabilities (vfs_cap_data of version 2: cap_net_raw), whoever writes.
  const uint32_t capabilities[5] = {0x02000001, 1 << 13};
  for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
    uint32_t got[5] = {0};
    CHECK(close(make("s", "some text")) == 0 && chmod("s", 0777) == 0 && setxattr("s", "security.capability", capabilities, 20, 0) == 0);
    CHECK(getxattr("s", "security.capability", got, 20) == 20 && got[1] == 1 << 13);
    CHECK((i & 1 ? in_child(ways[i]) : ways[i]()) == 0 && getxattr("s", "security.capability", got, 20) == -1 && errno == ENODATA);
    CHECK(unlink("s") == 0);
  }
  int fd = make("s", "some text");
  CHECK(setxattr("s", "security.capability", capabilities, 20, 0) == 0 && write(fd, "x", 1) == 1 && getxattr("s", "security.capability", 0, 0) == -1);
  CHECK(setxattr("s", "security.capability", capabilities, 20, 0) == 0 && chown("s", 5, 5) == 0 && getxattr("s", "security.capability", 0, 0) == -1);
  close(fd);
  fd = open("s", O_WRONLY | O_TRUNC);
  CHECK(setxattr("s", "security.capability", capabilities, 20, 0) == 0 && write(fd, "x", 1) == 1 && getxattr("s", "security.capability", 0, 0) == -1);
  CHECK(close(fd) == 0);
  // What was written by a mapping was written before, whenever it goes to the disk.
  fd = open("s", O_RDWR);
  char *mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(mapped != MAP_FAILED && (*mapped = 'm') && setxattr("s", "security.capability", capabilities, 20, 0) == 0 && msync(mapped, 4096, MS_SYNC) == 0);
  CHECK(getxattr("s", "security.capability", 0, 0) == 20 && munmap(mapped, 4096) == 0 && close(fd) == 0 && unlink("s") == 0);
  // Without the right to run it for the group, that bit means something else.
  CHECK(close(make("s", "some text")) == 0 && chmod("s", 06767) == 0 && in_child(writes) == 0);
  CHECK((mode("s") & ~02000) == (S_IFREG | 0767));
  CHECK(chmod("s", 06755) == 0 && chown("s", 1000, -1) == 0 && mode("s") == (S_IFREG | 0755));
  CHECK(chmod("s", 06755) == 0 && chown("s", -1, 1001) == 0 && mode("s") == (S_IFREG | 0755));
  if (!getenv("HOST_IS_NOT_ROOT")) {
    CHECK(chmod("s", 06755) == 0 && writes() == 0 && truncates() == 0 && mode("s") == (S_IFREG | 06755));
  }
  CHECK(unlink("s") == 0 && unlink("from") == 0);
}
static int rename2(const char *old, const char *new, unsigned flags) { return syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, flags); }
static void renames(void) {
  close(make("a", "A"));
  close(make("b", "B"));
  CHECK(rename("a", "b") == 0 && holds("b", "A") && access("a", F_OK) == -1);
  close(make("a", "A2"));
  FAILS(rename2("a", "b", 1), EEXIST);
  CHECK(rename2("a", "b", 2) == 0 && holds("a", "A") && holds("b", "A2"));
  CHECK(rename2("a", "c", 1) == 0 && holds("c", "A"));
  mkdir("d", 0755);
  mkdir("e", 0755);
  close(make("e/x", ""));
  FAILS(rename("d", "d/below"), EINVAL);
  FAILS(rename("d", "e"), ENOTEMPTY);
  FAILS(rename("b", "d"), EISDIR);
  FAILS(rename("d", "b"), ENOTDIR);
  CHECK(rename("e", "d") == 0 && access("d/x", F_OK) == 0);
  CHECK(rename("d/x", "x") == 0 && rmdir("d") == 0);
  // A file that is open is the same after its name has changed, or has gone to another file.
  int fd = open("c", O_RDWR);
  struct stat s, t;
  CHECK(rename("c", "moved") == 0 && fstat(fd, &s) == 0 && stat("moved", &t) == 0 && s.st_ino == t.st_ino);
  CHECK(rename("b", "moved") == 0 && fstat(fd, &s) == 0 && s.st_nlink == 0 && write(fd, "gone", 4) == 4);
  close(fd);
  CHECK(unlink("moved") == 0 && unlink("x") == 0);
}
static void links(void) {
  struct stat s, t;
  close(make("one", "1"));
  CHECK(link("one", "two") == 0 && stat("one", &s) == 0 && stat("two", &t) == 0 && s.st_ino == t.st_ino && t.st_nlink == 2);
  CHECK(unlink("one") == 0 && stat("two", &t) == 0 && t.st_nlink == 1 && holds("two", "1"));
  FAILS(link("missing", "x"), ENOENT);
  FAILS(link("two", "two"), EEXIST);
  char target[4096], got[4096];
  memset(target, 't', sizeof target);
  target[4095] = 0;
  CHECK(symlink(target, "long") == 0 && readlink("long", got, sizeof got) == 4095 && memcmp(got, target, 4095) == 0);
  CHECK(symlink("../..//etc/./passwd", "odd") == 0 && readlink("odd", got, sizeof got) == 19);
  CHECK(lstat("odd", &s) == 0 && S_ISLNK(s.st_mode) && s.st_size == 19);
  CHECK(symlink("loop", "loop") == 0);
  FAILS(open("loop", O_RDONLY), ELOOP);
  FAILS(open("loop", O_RDONLY | O_CREAT | O_EXCL, 0644), EEXIST);
  CHECK(link("loop", "loop2") == 0 && lstat("loop2", &s) == 0 && S_ISLNK(s.st_mode));
  CHECK(unlink("long") == 0 && unlink("odd") == 0 && unlink("loop") == 0 && unlink("loop2") == 0 && unlink("two") == 0);
  int fd = make("open", "before");
  CHECK(unlink("open") == 0 && fstat(fd, &s) == 0 && s.st_nlink == 0);
  CHECK(pwrite(fd, "after!", 6, 6) == 6 && pread(fd, got, 100, 0) == 12 && memcmp(got, "beforeafter!", 12) == 0);
  CHECK(ftruncate(fd, 3) == 0 && fstat(fd, &s) == 0 && s.st_size == 3 && fchmod(fd, 0600) == 0);
  close(fd);
  fd = open(".", O_TMPFILE | O_RDWR, 0640);
  CHECK(fd >= 0 && write(fd, "tmp", 3) == 3);
  char path[64];
  sprintf(path, "/proc/self/fd/%d", fd);
  CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0 && holds("named", "tmp") && mode("named") == (S_IFREG | 0640));
  close(fd);
  unlink("named");
}
static void special(void) {
  CHECK(mkfifo("fifo", 0644) == 0 && S_ISFIFO(mode("fifo")));
  if (fork() == 0) {
    int fd = open("fifo", O_WRONLY);
    exit(write(fd, "through", 7) != 7);
  }
  char got[16];
  int fd = open("fifo", O_RDONLY);
  CHECK(fd >= 0 && read(fd, got, 16) == 7);
  close(fd);
  wait(0);
  struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "socket"};
  int s = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(bind(s, (void *)&a, sizeof a) == 0 && listen(s, 1) == 0 && S_ISSOCK(mode("socket")));
  CHECK(connect(c, (void *)&a, sizeof a) == 0);
  close(s);
  close(c);
  CHECK(unlink("fifo") == 0 && unlink("socket") == 0);
  struct statvfs v;
  CHECK(statvfs(".", &v) == 0 && v.f_blocks > 0 && v.f_namemax == 255);
}
static void contents(void) {
  struct stat s;
  char got[8192];
  int fd = make("f", "0123456789");
  CHECK(ftruncate(fd, 1 << 20) == 0 && fstat(fd, &s) == 0 && s.st_size == 1 << 20);
  CHECK(pread(fd, got, 20, 5) == 20 && memcmp(got, "56789\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20) == 0);
  CHECK(pwrite(fd, "end", 3, (1 << 20) - 3) == 3);
  CHECK(lseek(fd, 1 << 16, SEEK_DATA) > 1 << 16 && lseek(fd, 0, SEEK_HOLE) < 1 << 20);
  FAILS(lseek(fd, 2 << 20, SEEK_DATA), ENXIO);
  CHECK(fallocate(fd, 0, 0, 1 << 20) == 0 && fsync(fd) == 0 && fstat(fd, &s) == 0 && s.st_blocks >= 2048);
  CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 1 << 19) == 0 && pread(fd, got, 10, 0) == 10 && memcmp(got, "0123456789", 10) == 0);
  CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 1 << 20, 4096) == 0 && fstat(fd, &s) == 0 && s.st_size == 1 << 20);
  CHECK(truncate("f", 4) == 0 && holds("f", "0123"));
  FAILS(ftruncate(fd, -1), EINVAL);
  close(fd);
  fd = open("f", O_WRONLY | O_TRUNC);
  CHECK(fd >= 0 && fstat(fd, &s) == 0 && s.st_size == 0);
  FAILS(read(fd, got, 1), EBADF);
  close(fd);
  for (int p = 0; p < 4; p++)
    if (fork() == 0) {
      fd = open("f", O_WRONLY | O_APPEND);
      for (int i = 0; i < 100; i++)
        if (write(fd, "12345678", 8) != 8) exit(1);
      exit(0);
    }
  for (int p = 0, status; p < 4; p++) {
    wait(&status);
    CHECK(status == 0);
  }
  CHECK(stat("f", &s) == 0 && s.st_size == 3200);
  fd = open("f", O_RDWR);
  char *map = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED && memcmp(map, "12345678", 8) == 0);
  memcpy(map + 8, "mapped!!", 8);
  CHECK(msync(map, 8192, MS_SYNC) == 0 && pread(fd, got, 16, 0) == 16 && memcmp(got, "12345678mapped!!", 16) == 0);
  munmap(map, 8192);
  int out = open("copy", O_RDWR | O_CREAT, 0644);
  off_t from = 8, to = 100;
  CHECK(copy_file_range(fd, &from, out, &to, 8, 0) == 8 && pread(out, got, 8, 100) == 8 && memcmp(got, "mapped!!", 8) == 0);
  close(out);
  close(fd);
  fd = open("f", O_RDWR | O_DIRECT);
  void *aligned;
  if (posix_memalign(&aligned, 4096, 65536)) exit(1);
  memset(aligned, 'd', 65536);
  CHECK(fd >= 0 && pwrite(fd, aligned, 65536, 0) == 65536);
  memset(aligned, 0, 65536);
  CHECK(pread(fd, aligned, 65536, 0) == 65536 && ((char *)aligned)[65535] == 'd');
  close(fd);
  struct timespec times[2] = {{1000000000, 123456789}, {2000000000, 987654321}};
  CHECK(utimensat(AT_FDCWD, "f", times, 0) == 0 && stat("f", &s) == 0 && s.st_atim.tv_nsec == 123456789 && s.st_mtim.tv_sec == 2000000000);
  times[0].tv_nsec = UTIME_OMIT;
  times[1].tv_nsec = UTIME_NOW;
  CHECK(utimensat(AT_FDCWD, "f", times, 0) == 0 && stat("f", &s) == 0 && s.st_atim.tv_sec == 1000000000 && s.st_mtim.tv_sec != 2000000000);
  struct statx x;
  CHECK(statx(AT_FDCWD, "f", 0, STATX_BASIC_STATS, &x) == 0 && x.stx_size == 65536);
  CHECK(unlink("f") == 0 && unlink("copy") == 0);
}
static int sees_nothing_trusted(void) {
  char got[100];
  return getxattr("x", "trusted.t", got, 10) != -1 || setxattr("x", "trusted.t", "u", 1, 0) != -1 || errno != EPERM || listxattr("x", 0, 0) != 9 ||
         setxattr("x", "security.capability", "u", 1, 0) != -1;
}
static void attributes(void) {
  char got[70000], *big = malloc(3000);
  memset(big, 'v', 3000);
  close(make("x", ""));
  CHECK(setxattr("x", "user.one", "1", 1, 0) == 0 && getxattr("x", "user.one", got, 100) == 1 && got[0] == '1');
  CHECK(setxattr("x", "user.big", big, 3000, XATTR_CREATE) == 0 && getxattr("x", "user.big", 0, 0) == 3000 && getxattr("x", "user.big", got, sizeof got) == 3000);
  FAILS(getxattr("x", "user.big", got, 10), ERANGE);
  FAILS(setxattr("x", "user.one", "2", 1, XATTR_CREATE), EEXIST);
  FAILS(setxattr("x", "user.none", "2", 1, XATTR_REPLACE), ENODATA);
  FAILS(getxattr("x", "user.none", got, 10), ENODATA);
  CHECK(listxattr("x", got, sizeof got) == 18);
  CHECK(setxattr("x", "user.\xfe", "1", 1, 0) == 0 && getxattr("x", "user.\xff", 0, 0) == -1 && removexattr("x", "user.\xfe") == 0);
  CHECK(removexattr("x", "user.one") == 0 && listxattr("x", 0, 0) == 9);
  FAILS(removexattr("x", "user.one"), ENODATA);
  // For the kernel: not for programs without its leave.
  CHECK(setxattr("x", "trusted.t", "t", 1, 0) == 0 && getxattr("x", "trusted.t", got, 10) == 1 && listxattr("x", 0, 0) == 19 && chmod("x", 0666) == 0);
  CHECK(in_child(sees_nothing_trusted) == 0);
  CHECK(removexattr("x", "trusted.t") == 0 && listxattr("x", 0, 0) == 9);
  unlink("x");
  CHECK(symlink("none", "l") == 0 && listxattr("l", 0, 0) == -1 && llistxattr("l", 0, 0) == 0 && lchown("l", 7, 8) == 0);
  struct stat s;
  CHECK(lstat("l", &s) == 0 && s.st_uid == 7 && s.st_gid == 8 && unlink("l") == 0);
}
/// What a layered file system needs of the one that it writes to.
static void layers(void) {
  struct stat s;
  CHECK(mknod("w", S_IFCHR, 0) == 0 && lstat("w", &s) == 0 && S_ISCHR(s.st_mode) && s.st_rdev == 0 && unlink("w") == 0);
  close(make("old", "text"));
  CHECK(rename2("old", "new", 4) == 0 && holds("new", "text") && lstat("old", &s) == 0 && S_ISCHR(s.st_mode) && s.st_rdev == 0);
  close(make("newer", "more"));
  CHECK(rename2("newer", "old", 2) == 0 && holds("old", "more") && lstat("newer", &s) == 0 && S_ISCHR(s.st_mode));
  FAILS(rename2("old", "new", 4 | 1), EEXIST);
  FAILS(rename2("old", "new", 4 | 2), EINVAL);
  CHECK(unlink("old") == 0 && unlink("new") == 0 && unlink("newer") == 0);
}
static void locks(void) {
  int fd = make("lock", "");
  struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10};
  CHECK(fcntl(fd, F_SETLK, &l) == 0);
  int status;
  if (fork() == 0) {
    int mine = open("lock", O_RDWR);
    struct flock m = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 15, .l_len = 1};
    int bad = !(fcntl(mine, F_SETLK, &m) == -1 && (errno == EAGAIN || errno == EACCES));
    bad |= fcntl(mine, F_GETLK, &m) != 0 || m.l_pid != getppid();
    m = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 20, .l_len = 1};
    bad |= fcntl(mine, F_SETLK, &m) != 0;
    exit(bad);
  }
  wait(&status);
  CHECK(status == 0);
  CHECK(flock(fd, LOCK_EX) == 0);
  int other = open("lock", O_RDWR);
  FAILS(flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
  CHECK(flock(fd, LOCK_UN) == 0 && flock(other, LOCK_EX | LOCK_NB) == 0);
  close(fd);
  close(other);
  unlink("lock");
}
static void directories(void) {
  enum { COUNT = 1500 };
  static char seen[COUNT];
  char name[64];
  mkdir("many", 0755);
  for (int i = 0; i < COUNT; i++) {
    sprintf(name, "many/a-name-that-takes-some-room-%d", i);
    close(open(name, O_RDWR | O_CREAT | O_EXCL, 0644));
  }
  for (int pass = 0; pass < 2; pass++) {
    memset(seen, 0, sizeof seen);
    DIR *d = opendir("many");
    int extra = 0, count = 0;
    long place = 0;
    for (struct dirent *e; (e = readdir(d));) {
      int i = -1;
      sscanf(e->d_name, "a-name-that-takes-some-room-%d", &i);
      if (i >= 0 && i < COUNT && !seen[i]++) count++;
      else extra++;
      if (count == 700) place = telldir(d);
    }
    CHECK(count == COUNT && extra == 2);
    seekdir(d, place);
    int rest = 0;
    while (readdir(d)) rest++;
    CHECK(rest >= COUNT - 700 && rest <= COUNT - 700 + 2);
    rewinddir(d);
    // Entries that go away while they are read.
    int removed = 0;
    for (struct dirent *e; pass == 1 && (e = readdir(d));)
      if (e->d_name[0] != '.') removed += unlinkat(dirfd(d), e->d_name, 0) == 0;
    CHECK(pass == 0 || removed == COUNT);
    closedir(d);
  }
  CHECK(rmdir("many") == 0);
  // One winner for each name.
  int winners[2];
  if (pipe(winners)) exit(1);
  for (int p = 0; p < 8; p++)
    if (fork() == 0) {
      for (int i = 0; i < 100; i++) {
        sprintf(name, "race-%d", i);
        if (open(name, O_RDWR | O_CREAT | O_EXCL, 0644) >= 0 && write(winners[1], "!", 1) != 1) exit(1);
      }
      exit(0);
    }
  for (int p = 0; p < 8; p++) wait(0);
  close(winners[1]);
  char got[1000];
  int count = 0;
  for (long n; (n = read(winners[0], got, sizeof got)) > 0;) count += n;
  CHECK(count == 100);
  for (int i = 0; i < 100; i++) {
    sprintf(name, "race-%d", i);
    CHECK(unlink(name) == 0);
  }
  // A tree, deep.
  char path[4096] = "";
  for (int i = 0; i < 60; i++) {
    strcat(path, i ? "/deep" : "deep");
    if (mkdir(path, 0755)) wrong++;
  }
  CHECK(access(path, F_OK) == 0);
  for (int i = 0; i < 60; i++) {
    if (rmdir(path)) wrong++;
    char *slash = strrchr(path, '/');
    if (slash) *slash = 0;
  }
  CHECK(access("deep", F_OK) == -1);
}
// Random operations, and what must be there after each. A file that is there already keeps what it has.
static void random_operations(int rounds, const char *name, int SIZE) {
  enum { MOST = 8 << 20 };
  static unsigned char model[MOST], got[MOST];
  int fd = open(name, O_RDWR | O_CREAT, 0644), size = read(fd, model, SIZE);
  CHECK(fd >= 0 && size >= 0);
  unsigned long state = 12345;
  for (int i = 0; i < rounds; i++) {
    state = state * 6364136223846793005UL + 1442695040888963407UL;
    unsigned r = state >> 33;
    int at = r % SIZE, count = (r >> 3) % 20000;
    if (at + count > SIZE) count = SIZE - at;
    int bad = 0;
    switch ((state >> 20) % 8) {
    case 0:
    case 1:
      for (int k = 0; k < count; k++) got[k] = state >> (k & 31);
      bad = pwrite(fd, got, count, at) != count;
      if (count && at > size) memset(model + size, 0, at - size);
      memcpy(model + at, got, count);
      if (count && at + count > size) size = at + count;
      break;
    case 2:
    case 3:
    case 4: {
      int expected = at >= size ? 0 : at + count > size ? size - at : count;
      bad = pread(fd, got, count, at) != expected || memcmp(got, model + at, expected);
      break;
    }
    case 5:
      bad = ftruncate(fd, at) != 0;
      if (at > size) memset(model + size, 0, at - size);
      size = at;
      break;
    case 6:
      if (size) {
        unsigned char *map = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        at %= size;
        if (at + count > size) count = size - at;
        bad = map == MAP_FAILED || memcmp(map + at, model + at, count);
        if (!bad) {
          memset(map + at, r, count);
          memset(model + at, r, count);
          munmap(map, size);
        }
      }
      break;
    case 7:
      if (r & 1) bad = fsync(fd) != 0;
      else {
        close(fd);
        fd = open(name, O_RDWR);
        struct stat s;
        bad = fd < 0 || fstat(fd, &s) || s.st_size != size;
      }
    }
    checks++;
    if (bad) {
      wrong++;
      printf("posix.c: random operation %d (%d bytes at %d of %d): %s\n", i, count, at, size, strerror(errno));
      break;
    }
  }
  close(fd);
  unlink(name);
}
int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IOLBF, 0);
  if (argc < 2 || chdir(argv[1]) != 0) return 2;
  names();
  modes();
  privileges();
  set_id_bits();
  renames();
  links();
  special();
  contents();
  attributes();
  layers();
  locks();
  directories();
  random_operations(argc > 2 ? atoi(argv[2]) : 3000, "fsx", 1 << 18);
  if (argc > 3) random_operations(argc > 2 ? atoi(argv[2]) : 3000, argv[3], 8 << 20);
  printf("posix %d checks, %d wrong\n", checks, wrong);
  return wrong != 0;
}
