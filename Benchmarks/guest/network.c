// usage: network ADDRESS|vsock PORT MEBIBYTES CONNECTS
// Sends to a server on the host and receives from it, then connects, asks and hears an answer many times. Prints lines
// "NAME COUNT NANOSECONDS": count is bytes, or connections.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <time.h>
#include <unistd.h>

static union {
  struct sockaddr_in network;
  struct sockaddr_vm vsock;
} server;
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
int main(int argc, char **argv) {
  if (argc < 5) return 2;
  if (strcmp(argv[1], "vsock") == 0) {
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
