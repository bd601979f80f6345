/* What source and sink have in common: load.h says what it is for. */
#include "load.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>

enum { PAGE = 4096 }; /* of the record's head */

struct head *head;
double now;
volatile sig_atomic_t over;
int poller;
static int ticker;

_Noreturn void fail(const char *what)
{
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

double look(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return now = at.tv_sec + at.tv_nsec * 1e-9;
}

void *record(const char *path, size_t entries, size_t size)
{
    size_t length = PAGE + entries * size;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, length)) fail(path);
    char *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) fail(path);
    close(fd);
    head = (struct head *)at;
    return at + PAGE;
}

socklen_t loopback(const char *text, struct sockaddr_storage *found)
{
    char address[64];
    const char *colon = strrchr(text, ':');
    if (!colon || (size_t)(colon - text) >= sizeof address) { errno = 0; fail("an address is ADDRESS:PORT"); }
    bool brackets = text[0] == '[' && colon[-1] == ']';
    snprintf(address, sizeof address, "%.*s", (int)(colon - text) - 2 * brackets, text + brackets);
    char *rest;
    long port = strtol(colon + 1, &rest, 10);
    struct sockaddr_in *four = (struct sockaddr_in *)found;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)found;
    memset(found, 0, sizeof *found);
    errno = 0;
    if (*rest || port < 0 || port > 65535) fail("a port is 0 to 65535");
    if (inet_pton(AF_INET, address, &four->sin_addr) == 1 && ntohl(four->sin_addr.s_addr) >> 24 == 127) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        return sizeof *four;
    }
    if (inet_pton(AF_INET6, address, &six->sin6_addr) == 1 && IN6_IS_ADDR_LOOPBACK(&six->sin6_addr)) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
        return sizeof *six;
    }
    fail("only loopback: 127.0.0.0/8 or ::1");
}

void prepare(void)
{
    poller = epoll_create1(EPOLL_CLOEXEC);
    ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(EPOLL_CTL_ADD, ticker, EPOLLIN, NULL);
}

void watch(int operation, int fd, uint32_t events, void *whose)
{
    struct epoll_event event = {.events = events, .data.ptr = whose};
    if (epoll_ctl(poller, operation, fd, &event)) fail("epoll");
}

void opened(int fd)
{
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    head->connections++;
    if (++head->open > head->most) head->most = head->open;
}

void add(struct octets *out, const void *what, size_t length)
{
    if (out->length + length > out->room) {
        out->room = 2 * (out->length + length);
        if (!(out->at = realloc(out->at, out->room))) fail("memory");
    }
    memcpy(out->at + out->length, what, length);
    out->length += length;
}

void say(struct octets *out, const char *text) { add(out, text, strlen(text)); }

void drop(struct octets *out, size_t length)
{
    out->length -= length;
    memmove(out->at, out->at + length, out->length);
}

void wake(double when)
{
    static double set;
    if (when == set) return;
    set = when;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (time_t)when) * 1e9)}};
    if (when > 0 && !at.it_value.tv_sec && !at.it_value.tv_nsec) at.it_value.tv_nsec = 1;
    timerfd_settime(ticker, TFD_TIMER_ABSTIME, &at, NULL);
}
