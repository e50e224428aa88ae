// usage: peer send|receive|echo WHERE BYTES     one connection; every byte is verified at its end
//        peer ask|crowd WHERE CONNECTIONS       one after the other, or all at once: a byte each way
//        peer serve WHERE                       answers these, for ever
//        peer datagram WHERE BYTES              a datagram there and back; tried for twenty seconds
//        peer reflect WHERE                     sends datagrams back, for ever
// WHERE: ADDRESS:PORT (an IPv6 address in brackets) or vsock:CID:PORT. Prints "peer WHAT ok" or what is wrong.
// A connection starts with an operation (S, R, E, P) and a count of 8 bytes.
#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_storage where;
static socklen_t whereLength;
static unsigned char buffer[1 << 16];

static void die(const char *what) {
  printf("peer %s: %s\n", what, strerror(errno));
  exit(1);
}
// Whoever started it may be gone without a word.
static pid_t parent;
static void look(int signal) {
  (void)signal;
  if (getppid() != parent) _exit(0);
  alarm(2);
}
static void dieWithParent(void) {
  struct sigaction action = {.sa_handler = look, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, 0);
  parent = getppid();
  alarm(2);
}
static void parse(char *text) {
  char *port = strrchr(text, ':');
  if (!port) exit(2);
  *port++ = 0;
  if (strncmp(text, "vsock:", 6) == 0) {
    struct sockaddr_vm *a = (void *)&where;
    *a = (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = strtoul(text + 6, 0, 10), .svm_port = strtoul(port, 0, 10)};
    whereLength = sizeof *a;
  } else if (*text == '[') {
    struct sockaddr_in6 *a = (void *)&where;
    text[strlen(text) - 1] = 0;
    a->sin6_family = AF_INET6;
    a->sin6_port = htons(atoi(port));
    inet_pton(AF_INET6, text + 1, &a->sin6_addr);
    whereLength = sizeof *a;
  } else {
    struct sockaddr_in *a = (void *)&where;
    a->sin_family = AF_INET;
    a->sin_port = htons(atoi(port));
    inet_pton(AF_INET, text, &a->sin_addr);
    whereLength = sizeof *a;
  }
}
static unsigned char at(unsigned long i) { return (i * 31) ^ (i >> 8) ^ (i >> 16) * 7; }
static void put(int fd, const void *bytes, unsigned long count) {
  while (count > 0) {
    long n = write(fd, bytes, count);
    if (n <= 0) die("write");
    bytes = (const char *)bytes + n;
    count -= n;
  }
}
static unsigned long get(int fd, void *bytes, unsigned long count) {
  unsigned long done = 0;
  while (done < count) {
    long n = read(fd, (char *)bytes + done, count - done);
    if (n < 0) die("read");
    if (n == 0) break;
    done += n;
  }
  return done;
}
static void give(int fd, unsigned long count) {
  for (unsigned long done = 0; done < count;) {
    unsigned long n = count - done < sizeof buffer ? count - done : sizeof buffer;
    for (unsigned long i = 0; i < n; i++) buffer[i] = at(done + i);
    put(fd, buffer, n);
    done += n;
  }
}
static int take(int fd, unsigned long count) {
  for (unsigned long done = 0; done < count;) {
    unsigned long n = get(fd, buffer, count - done < sizeof buffer ? count - done : sizeof buffer);
    if (n == 0) return 0;
    for (unsigned long i = 0; i < n; i++)
      if (buffer[i] != at(done + i)) return 0;
    done += n;
  }
  return 1;
}
static int dial(char operation, unsigned long count) {
  int fd = socket(where.ss_family, SOCK_STREAM, 0);
  if (fd < 0) die("socket");
  if (connect(fd, (struct sockaddr *)&where, whereLength) != 0) die("connect");
  char request[9] = {operation};
  memcpy(request + 1, &count, 8);
  put(fd, request, 9);
  return fd;
}
static void serveOne(int fd) {
  char request[9];
  unsigned long count;
  if (get(fd, request, 9) != 9) return;
  memcpy(&count, request + 1, 8);
  switch (request[0]) {
  case 'S': put(fd, take(fd, count) ? "!" : "?", 1); break;
  case 'R': give(fd, count); break;
  case 'P': put(fd, "!", 1); break;
  case 'E':  // until the other side ends, which is not the end of ours
    for (;;) {
      long n = read(fd, buffer, sizeof buffer);
      if (n <= 0) break;
      put(fd, buffer, n);
    }
    break;
  }
}
static void announce(int fd) {
  struct sockaddr_storage mine;
  socklen_t length = sizeof mine;
  getsockname(fd, (struct sockaddr *)&mine, &length);
  printf("peer serves %d\n", where.ss_family == AF_VSOCK ? (int)((struct sockaddr_vm *)&mine)->svm_port : ntohs(((struct sockaddr_in *)&mine)->sin_port));
  fflush(stdout);
}
static void serve(void) {
  signal(SIGCHLD, SIG_IGN);
  dieWithParent();
  int fd = socket(where.ss_family, SOCK_STREAM, 0);
  int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&where, whereLength) != 0 || listen(fd, 256) != 0) die("listen");
  announce(fd);
  for (;;) {
    int c = accept(fd, 0, 0);
    if (c < 0) die("accept");
    if (fork() == 0) {
      close(fd);
      serveOne(c);
      exit(0);
    }
    close(c);
  }
}
static void reflect(void) {
  dieWithParent();
  int fd = socket(where.ss_family, SOCK_DGRAM, 0);
  if (bind(fd, (struct sockaddr *)&where, whereLength) != 0) die("bind");
  announce(fd);
  for (;;) {
    struct sockaddr_storage from;
    socklen_t length = sizeof from;
    long n = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &length);
    if (n >= 0) sendto(fd, buffer, n, 0, (struct sockaddr *)&from, length);
  }
}
static int datagram(unsigned long count) {
  int fd = socket(where.ss_family, SOCK_DGRAM, 0);
  if (connect(fd, (struct sockaddr *)&where, whereLength) != 0) die("connect");
  for (int tries = 0; tries < 10; tries++) {
    for (unsigned long i = 0; i < count; i++) buffer[i] = at(i);
    if (send(fd, buffer, count, 0) != (long)count) {
      if (errno == ECONNREFUSED) continue;
      die("send");
    }
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    if (poll(&entry, 1, 2000) != 1) continue;
    memset(buffer, 0, sizeof buffer);
    if (recv(fd, buffer, sizeof buffer, 0) != (long)count) continue;
    for (unsigned long i = 0; i < count; i++)
      if (buffer[i] != at(i)) return 0;
    return 1;
  }
  return 0;
}
static void echo(unsigned long count) {
  int fd = dial('E', count);
  if (fork() == 0) {
    give(fd, count);
    shutdown(fd, SHUT_WR);
    exit(0);
  }
  if (!take(fd, count) || get(fd, buffer, 1) != 0) {
    printf("peer echo: wrong bytes\n");
    exit(1);
  }
  wait(0);
}
int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IOLBF, 0);
  if (argc < 3) return 2;
  // A thread of libdispatch starts programs with all signals blocked.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, 0);
  signal(SIGPIPE, SIG_IGN);
  parse(argv[2]);
  if (strcmp(argv[1], "serve") == 0) serve();
  if (strcmp(argv[1], "reflect") == 0) reflect();
  if (argc < 4) return 2;
  unsigned long count = strtoul(argv[3], 0, 10);
  if (strcmp(argv[1], "send") == 0) {
    int fd = dial('S', count);
    give(fd, count);
    char answer = 0;
    if (get(fd, &answer, 1) != 1 || answer != '!') {
      printf("peer send: the other side got wrong bytes\n");
      return 1;
    }
  } else if (strcmp(argv[1], "receive") == 0) {
    if (!take(dial('R', count), count)) {
      printf("peer receive: wrong bytes\n");
      return 1;
    }
  } else if (strcmp(argv[1], "datagram") == 0) {
    if (!datagram(count)) {
      printf("peer datagram: no answer, or a wrong one\n");
      return 1;
    }
  } else if (strcmp(argv[1], "echo") == 0) {
    echo(count);
  } else if (strcmp(argv[1], "ask") == 0) {
    for (unsigned long i = 0; i < count; i++) {
      int fd = dial('P', 1);
      if (get(fd, buffer, 1) != 1) die("ask");
      close(fd);
    }
  } else if (strcmp(argv[1], "crowd") == 0) {
    int *fds = calloc(count, sizeof *fds);
    for (unsigned long i = 0; i < count; i++) {
      fds[i] = socket(where.ss_family, SOCK_STREAM, 0);
      if (fds[i] < 0 || connect(fds[i], (struct sockaddr *)&where, whereLength) != 0) die("crowd");
    }
    char request[9] = {'P', 1};
    for (unsigned long i = 0; i < count; i++) put(fds[i], request, 9);
    for (unsigned long i = 0; i < count; i++)
      if (get(fds[i], buffer, 1) != 1) die("crowd");
  } else {
    return 2;
  }
  printf("peer %s ok\n", argv[1]);
  return 0;
}
