// usage: network ADDRESS|vsock[=BUFFER] PORT MEBIBYTES CONNECTS
// Sends to a server on the host and receives from it, then connects, asks and hears an answer many times. Prints lines
// "NAME COUNT NANOSECONDS": count is bytes, or connections. BUFFER: how many bytes may be on their way to the guest; Linux's own
// choice is 256 KiB, and unlike TCP's it does not grow.
// usage: network serve PORT PATH
// That server, on 127.0.0.1 and at a Unix socket: takes (S), gives (R) or only answers (P).
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/vm_sockets.h>
#include <time.h>
#include <unistd.h>

static union {
  struct sockaddr_in network;
  struct sockaddr_vm vsock;
} server;
static uint64_t vsockBuffer;
static char buffer[1 << 18];

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void fail(const char *what) {
  perror(what);
  exit(1);
}
static int ask(char what, unsigned long count) {
  int fd = socket(server.network.sin_family, SOCK_STREAM, 0);
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (vsockBuffer != 0) {
    setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, &vsockBuffer, sizeof vsockBuffer);
    if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &vsockBuffer, sizeof vsockBuffer) != 0) fail("buffer");
  }
  if (connect(fd, (struct sockaddr *)&server, server.network.sin_family == AF_VSOCK ? sizeof server.vsock : sizeof server.network) != 0) fail("connect");
  char request[9] = {what};
  memcpy(request + 1, &count, 8);
  if (write(fd, request, 9) != 9) fail("write");
  return fd;
}
static void readAll(int fd, unsigned long count) {
  while (count > 0) {
    long n = read(fd, buffer, count < sizeof buffer ? count : sizeof buffer);
    if (n <= 0) fail("read");
    count -= n;
  }
}
static void answer(int fd) {
  struct { char what; uint64_t count; } __attribute__((packed)) request;
  if (recv(fd, &request, sizeof request, MSG_WAITALL) != sizeof request) return;
  static char large[1 << 20];
  if (request.what == 'P') request.count = 0;
  while (request.count > 0) {
    size_t most = request.count < sizeof large ? request.count : sizeof large;
    long n = request.what == 'R' ? write(fd, large, most) : read(fd, large, most);
    if (n <= 0) return;
    request.count -= n;
  }
  if (request.what != 'R' && write(fd, "!", 1) != 1) return;
}
static void serve(int fd) {
  if (listen(fd, 128) != 0) fail("listen");
  for (;;) {
    int connection = accept(fd, 0, 0);
    if (connection < 0) fail("accept");
    if (fork() == 0) {
      answer(connection);
      _exit(0);
    }
    close(connection);
  }
}
static int serveBoth(int port, const char *path) {
  signal(SIGCHLD, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  struct sockaddr_in network = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_un local = {.sun_family = AF_UNIX};
  snprintf(local.sun_path, sizeof local.sun_path, "%s", path);
  int first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_UNIX, SOCK_STREAM, 0), one = 1;
  setsockopt(first, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(first, (struct sockaddr *)&network, sizeof network) != 0 || bind(second, (struct sockaddr *)&local, sizeof local) != 0) fail("bind");
  if (fork() == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    serve(second);
  }
  serve(first);
  return 0;
}
int main(int argc, char **argv) {
  if (argc == 4 && strcmp(argv[1], "serve") == 0) return serveBoth(atoi(argv[2]), argv[3]);
  if (argc < 5) return 2;
  if (strncmp(argv[1], "vsock", 5) == 0) {
    if (argv[1][5] == '=') vsockBuffer = strtoul(argv[1] + 6, 0, 10);
    server.vsock = (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = atoi(argv[2])};
  } else {
    server.network.sin_family = AF_INET;
    server.network.sin_port = htons(atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &server.network.sin_addr);
  }
  unsigned long bytes = strtoul(argv[3], 0, 10) << 20;
  int connects = atoi(argv[4]);
  memset(buffer, 'x', sizeof buffer);

  long begin = now();
  int fd = ask('S', bytes);
  for (unsigned long left = bytes; left > 0;) {
    long n = write(fd, buffer, left < sizeof buffer ? left : sizeof buffer);
    if (n <= 0) fail("write");
    left -= n;
  }
  readAll(fd, 1);
  close(fd);
  printf("guest-to-host %lu %ld\n", bytes, now() - begin);

  begin = now();
  fd = ask('R', bytes);
  readAll(fd, bytes);
  close(fd);
  printf("host-to-guest %lu %ld\n", bytes, now() - begin);

  begin = now();
  for (int i = 0; i < connects; i++) {
    fd = ask('P', 1);
    readAll(fd, 1);
    close(fd);
  }
  printf("connect-request-response %d %ld\n", connects, now() - begin);
  return 0;
}
