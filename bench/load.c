/*
 * The load of the benchmarks: a source and a sink of SMTP, loopback only.
 *
 *   load source TO --record FILE --domains FILE [--messages N] [--sessions S] [--octets L] [--recipients R]
 *               [--per-connection K] [--rate R] [--tries T] [--no-pipelining] [--seconds S]
 *   load sink   --record FILE [--recipients N] [--seconds S] ADDRESS:PORT=MODE[:ARGUMENT]...
 *
 * Recipients are numbered, in their local parts: message m has the recipients m*R to m*R+R-1, and recipient i
 * is of domain i modulo the lines of --domains. The source notes for each message when it was due and when it
 * got its 250; the sink notes for each recipient when a final 250 left for it, and how often. So loss, second
 * copies and waits are exact for each message, if the two records are joined (bench/bed/load.py does).
 *
 * Source: without --rate each session sends its next message when it has the answer (closed loop). With it,
 * messages are due by the clock, whatever the answers do (open loop); one that finds no session free waits
 * for one, and its wait counts. K messages a connection; 0: connections are kept. A message that is refused
 * or lost is tried again, after a pause, --tries times in all (0: twenty in a closed loop, one in an open one).
 *
 * Sink modes:  ok           answers at once
 *              slow:MS      says its banner and its final 250 after so many milliseconds
 *              tarpit:MS    answers an octet each so many milliseconds
 *              blackhole    takes the connection and says nothing
 *              deaf         answers no SYN
 *              defer        451 to each RCPT
 * A sink prints its addresses (port 0: one that is free), one line each, then "ready".
 *
 * Both end after --seconds, with SIGTERM, or with whoever started them. Times are CLOCK_MONOTONIC, in seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    PAGE = 4096,        /* of the record's head */
    LINE = 2048,        /* longest line we take: RFC 5321 4.5.3.1.4 has 512 and allows for extensions */
    GULP = 1 << 18,     /* read at a time */
    EVENTS = 256,       /* looked at in one turn of the loop */
    BUSIEST = 1 << 20,  /* sessions and hosts at most */
};
static const double PAUSE = 0.05, LONGEST_PAUSE = 2.0; /* after a failure: doubled, up to */
static const double TURN = 0.002;                      /* what sleeps is looked at so often */

/* ------------------------------------------------------------------ both: clock, records, sockets, octets */

/* First page of a record file; what follows it is an array of `struct sent` or `struct got`. */
struct head {
    uint64_t done;        /* source: messages over; sink: recipients delivered */
    uint64_t accepted;    /* source: messages that got their 250; sink: final 250s */
    uint64_t doubled;     /* sink: deliveries to a recipient that had the message */
    uint64_t failed;      /* source: connections and transactions; sink: recipients that are none of ours */
    uint64_t connections, open, most;
    uint64_t octets;      /* of texts that were accepted, as on the wire */
    double first, last;   /* source: first due, last 250; sink: first and last final 250 */
};

struct sent {             /* a message, at the source */
    double due, said;     /* said: its 250, or 0 */
    int32_t code;         /* the last code it got; 0: none */
    uint16_t tries;
    uint16_t unsure;      /* tries that were lost after the text had gone: a second copy may be right */
};

struct got {              /* a recipient, at the sink */
    double first;
    uint32_t times, host;
};

struct octets {           /* what waits to be written */
    char *at;
    size_t length, room;
};

static struct head *head;
static int poller, ticker;
static double now;        /* looked at once a turn, and where a time is noted */
static volatile sig_atomic_t over;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static double look(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return now = at.tv_sec + at.tv_nsec * 1e-9;
}

static void end(int signal) { (void)signal; over = 1; }

/* The record file, mapped; its entries are all zero. */
static void *record(const char *path, size_t entries, size_t size)
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

/* ADDRESS:PORT or [ADDRESS]:PORT, of this machine's loopback or nothing: this is a load, and mail of nobody. */
static socklen_t loopback(const char *text, struct sockaddr_storage *found)
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

static void watch(int operation, int fd, uint32_t events, void *whose)
{
    struct epoll_event event = {.events = events, .data.ptr = whose};
    if (epoll_ctl(poller, operation, fd, &event)) fail("epoll");
}

static void at_once(int fd)
{
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static void opened(void)
{
    head->connections++;
    if (++head->open > head->most) head->most = head->open;
}

static void add(struct octets *out, const void *what, size_t length)
{
    if (out->length + length > out->room) {
        out->room = 2 * (out->length + length);
        if (!(out->at = realloc(out->at, out->room))) fail("memory");
    }
    memcpy(out->at + out->length, what, length);
    out->length += length;
}

static void say(struct octets *out, const char *text) { add(out, text, strlen(text)); }

static void drop(struct octets *out, size_t length)
{
    out->length -= length;
    memmove(out->at, out->at + length, out->length);
}

/* Wake at that time; 0: not at all. */
static void wake(double when)
{
    static double set;
    if (when == set) return;
    set = when;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (time_t)when) * 1e9)}};
    if (when > 0 && !at.it_value.tv_sec && !at.it_value.tv_nsec) at.it_value.tv_nsec = 1;
    timerfd_settime(ticker, TFD_TIMER_ABSTIME, &at, NULL);
}

/* ------------------------------------------------------------------ source */

enum state { AWAY, GREETING, HELLO, MAIL, RCPT, DATA, TEXT, READY, LEAVING };

struct client {
    int fd, index;
    enum state state;        /* the reply that is waited for; AWAY: no connection; READY: none is */
    bool pipelining, writing, asleep, resting;
    int sent, left, failures; /* messages on this connection; replies to RCPT to come; failures in a row */
    int32_t refused;
    int64_t message;         /* under way, or -1 */
    double until;            /* asleep */
    size_t text;             /* octets of the text still to write */
    struct octets out;
    size_t length;
    char line[LINE];
};

static struct {
    struct sockaddr_storage to;
    socklen_t to_length;
    int64_t messages, recipients, upcoming;
    int sessions, per_connection, tries;
    size_t octets;
    double rate, begun;
    bool pipelining;
    char **domains;
    int64_t domain_count;
    char *text;
    struct client **resting;  /* a stack: those used last are used next */
    int resting_count, sleepers;
    struct sent *sent;
} source = {.messages = 1000, .recipients = 1, .sessions = 20, .octets = 4096, .pipelining = true};

static void next(struct client *c);

static double due(int64_t message) { return source.rate ? source.begun + message / source.rate : now; }

static void gone(struct client *c)
{
    if (c->state != AWAY) {
        close(c->fd);
        head->open--;
    }
    c->state = AWAY;
    c->out.length = c->length = c->text = 0;
    c->sent = 0;
    c->writing = false;
}

/* The message has come to its end, with this code. */
static void finish(struct client *c, int32_t code)
{
    struct sent *message = &source.sent[c->message];
    message->code = code;
    if (code == 250) {
        message->said = head->last = look();
        head->accepted++;
        head->octets += source.octets;
        c->failures = 0;
    }
    c->message = -1;
    head->done++;
}

/* The connection is of no more use; its message waits for another, or has had its last try. */
static void lose(struct client *c, int32_t code)
{
    head->failed++;
    if (c->resting) { gone(c); return; } /* it dials when it is needed */
    if (c->message >= 0) {
        struct sent *message = &source.sent[c->message];
        message->code = code;
        if (c->state == TEXT && !code && !c->text) message->unsure++;
        if (message->tries >= source.tries) finish(c, code);
    }
    gone(c);
    double pause = PAUSE * (1 << (c->failures < 6 ? c->failures : 6));
    c->failures++;
    c->until = now + (pause < LONGEST_PAUSE ? pause : LONGEST_PAUSE);
    c->asleep = true;
    source.sleepers++;
}

/* Write what can be written: commands, then the text. */
static void flush_client(struct client *c)
{
    while (c->out.length || c->text) {
        struct iovec parts[2] = {
            {c->out.at, c->out.length},
            {source.text + source.octets - c->text, c->text},
        };
        ssize_t wrote = writev(c->fd, parts, c->text ? 2 : 1);
        if (wrote < 0) {
            if (errno != EAGAIN) { lose(c, 0); return; }
            if (!c->writing) watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
            c->writing = true;
            return;
        }
        size_t commands = (size_t)wrote < c->out.length ? (size_t)wrote : c->out.length;
        drop(&c->out, commands);
        c->text -= wrote - commands;
    }
    if (c->writing) watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    c->writing = false;
}

static void say_recipient(struct client *c, int64_t number)
{
    char command[LINE];
    int64_t recipient = c->message * source.recipients + number;
    add(&c->out, command, snprintf(command, sizeof command, "RCPT TO:<u%lld@%s>\r\n", (long long)recipient,
                                   source.domains[recipient % source.domain_count]));
}

static void begin(struct client *c)
{
    c->state = MAIL;
    c->left = source.recipients;
    c->refused = 0;
    source.sent[c->message].tries++;
    say(&c->out, "MAIL FROM:<load@source.test>\r\n");
    if (c->pipelining) { /* RFC 2920 3.1: DATA is the last of a group */
        for (int64_t i = 0; i < source.recipients; i++) say_recipient(c, i);
        say(&c->out, "DATA\r\n");
    }
    flush_client(c);
}

static void dial(struct client *c)
{
    c->fd = socket(source.to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket");
    at_once(c->fd);
    c->state = GREETING;
    opened();
    watch(EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
    if (connect(c->fd, (struct sockaddr *)&source.to, source.to_length) && errno != EINPROGRESS) {
        if (c->message >= 0) source.sent[c->message].tries++;
        lose(c, 0);
    }
}

/* The next message that is due, or -1. */
static int64_t take(void)
{
    int64_t message = source.upcoming;
    if (message == source.messages || (source.rate && due(message) > now)) return -1;
    source.upcoming++;
    source.sent[message].due = due(message);
    if (!message) head->first = due(message);
    return message;
}

/* A session that has nothing under way: a message, if one is due, else a rest. */
static void next(struct client *c)
{
    if (c->message < 0) c->message = take();
    if (c->message < 0) {
        if (!c->resting) source.resting[source.resting_count++] = c;
        c->resting = true;
    } else if (c->state == AWAY) {
        dial(c);
    } else {
        begin(c);
    }
}

/* A whole reply. */
static void reply(struct client *c, int code)
{
    if (c->state == LEAVING) { gone(c); next(c); return; }
    if (code / 100 == 4 || code / 100 == 5) {
        if (c->state == MAIL || c->state == RCPT) c->refused = code;
        else { lose(c, c->refused ? c->refused : code); return; }
        if (!c->pipelining) { lose(c, code); return; }
    }
    switch (c->state) {
    case GREETING:
        c->pipelining = false;
        c->state = HELLO;
        say(&c->out, "EHLO source.test\r\n");
        break;
    case HELLO:
        c->state = READY;
        next(c);
        return;
    case MAIL:
        c->state = RCPT;
        if (!c->pipelining) say_recipient(c, 0);
        break;
    case RCPT:
        if (--c->left) {
            if (!c->pipelining) say_recipient(c, source.recipients - c->left);
            break;
        }
        c->state = DATA;
        if (!c->pipelining) say(&c->out, "DATA\r\n");
        break;
    case DATA: {
        if (c->refused || code != 354) { lose(c, c->refused ? c->refused : code); return; }
        c->state = TEXT;
        c->text = source.octets;
        break;
    }
    case TEXT:
        finish(c, code);
        c->sent++;
        if (source.per_connection && c->sent >= source.per_connection) {
            c->state = LEAVING;
            say(&c->out, "QUIT\r\n");
            break;
        }
        c->state = READY;
        next(c);
        return;
    default: /* nobody asked: the server speaks of its own, such as 421 */
        lose(c, code);
        return;
    }
    flush_client(c);
}

static void read_client(struct client *c)
{
    ssize_t length = read(c->fd, c->line + c->length, sizeof c->line - c->length);
    if (length <= 0) {
        if (length < 0 && errno == EAGAIN) return;
        if (c->state == LEAVING) { gone(c); next(c); return; }
        if (c->message >= 0 && c->state < MAIL) source.sent[c->message].tries++;
        lose(c, 0);
        return;
    }
    c->length += length;
    size_t from = 0;
    char *feed;
    while (from < c->length && (feed = memchr(c->line + from, '\n', c->length - from))) {
        char *line = c->line + from;
        size_t octets = feed - line;
        from += octets + 1;
        if (c->state == HELLO && source.pipelining && octets >= 14 && !strncasecmp(line + 4, "PIPELINING", 10))
            c->pipelining = true;
        if (octets > 3 && line[3] == '-') continue;
        reply(c, atoi(line));
    }
    if (!c->length) return; /* the connection is gone, and what was read of it */
    c->length -= from;
    memmove(c->line, c->line + from, c->length);
    if (c->length == sizeof c->line) lose(c, 0);
}

/* A message of the octets wanted, its end and its end's CRLF.CRLF too; the same for all: recipients tell them apart. */
static char *compose(size_t octets)
{
    static const char top[] = "From: load@source.test\r\nTo: load@sink.test\r\nSubject: load\r\n\r\n";
    static const char line[] = "The quick brown fox jumps over the lazy dog, and again, and again, and...\r\n";
    char *text = malloc(octets + 8);
    if (!text) fail("memory");
    size_t at = sizeof top - 1, width = sizeof line - 1, tail = octets - 5;
    memcpy(text, top, at);
    for (; at < tail; at++) text[at] = line[(at - (sizeof top - 1)) % width];
    if (text[tail - 1] == '\r') text[tail - 1] = '.';
    memcpy(text + tail, "\r\n.\r\n", 5);
    return text;
}

static void read_domains(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) fail(path);
    char line[256];
    int64_t room = 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = 0;
        if (source.domain_count == room) {
            room = room ? 2 * room : 64;
            source.domains = realloc(source.domains, room * sizeof *source.domains);
        }
        if (!source.domains || !(source.domains[source.domain_count++] = strdup(line))) fail("memory");
    }
    fclose(file);
    errno = 0;
    if (!source.domain_count) fail("no domains");
}

static void run_source(double until)
{
    struct client *clients = calloc(source.sessions, sizeof *clients);
    source.resting = calloc(source.sessions, sizeof *source.resting);
    if (!clients || !source.resting) fail("memory");
    source.begun = look();
    until += now;
    for (int i = 0; i < source.sessions; i++) {
        clients[i].index = i;
        clients[i].message = -1;
        next(&clients[i]);
    }
    while (!over && now < until && (int64_t)head->done < source.messages) {
        double then = until;
        if (source.rate && source.resting_count && source.upcoming < source.messages) then = due(source.upcoming);
        if (source.sleepers && now + TURN < then) then = now + TURN;
        wake(then);
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poller, events, EVENTS, -1);
        look();
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (!c) { wake(0); continue; }
            if (events[i].events & EPOLLOUT) flush_client(c);
            if (c->state != AWAY && events[i].events & ~EPOLLOUT) read_client(c);
        }
        while (source.resting_count && source.upcoming < source.messages && due(source.upcoming) <= now) {
            struct client *c = source.resting[--source.resting_count];
            c->resting = false;
            next(c);
        }
        for (int i = 0; source.sleepers && i < source.sessions; i++)
            if (clients[i].asleep && clients[i].until <= now) {
                clients[i].asleep = false;
                source.sleepers--;
                next(&clients[i]);
            }
    }
    for (int i = 0; i < source.sessions; i++)
        if (clients[i].state == READY && write(clients[i].fd, "QUIT\r\n", 6) < 0) continue; /* it was kind to try */
}

/* ------------------------------------------------------------------ sink */

enum mode { OK, SLOW, TARPIT, BLACKHOLE, DEAF, DEFER, MODES };
static const char *const modes[MODES] = {"ok", "slow", "tarpit", "blackhole", "deaf", "defer"};

struct host {
    bool listening;       /* true: tells it from a server in an event */
    int fd;
    uint32_t number;
    enum mode mode;
    double delay;
};

struct server {
    bool listening;       /* false */
    int fd;
    struct host *host;
    bool text, leaving, writing, held;
    double until;         /* held: nothing is written before */
    struct octets out, rest; /* rest: what is no whole line yet */
    int64_t *recipients;  /* those of texts whose 250 waits in out, then those of the transaction under way */
    size_t count, taken, room;
    size_t octets;        /* of the text under way */
    struct server *before, *after; /* among the held */
};

static struct {
    int64_t recipients;
    struct host *hosts;
    int count;
    struct server *held;
    struct got *got;
} sink = {.recipients = 1000};

static void hold(struct server *s, double until)
{
    s->until = until;
    if (s->held) return;
    s->held = true;
    s->before = NULL;
    s->after = sink.held;
    if (s->after) s->after->before = s;
    sink.held = s;
}

static void let_go(struct server *s)
{
    if (!s->held) return;
    s->held = false;
    if (s->after) s->after->before = s->before;
    if (s->before) s->before->after = s->after;
    else sink.held = s->after;
}

static void hang_up(struct server *s)
{
    let_go(s);
    close(s->fd);
    head->open--;
    free(s->out.at);
    free(s->rest.at);
    free(s->recipients);
    free(s);
}

/* Their 250 has left: they are delivered. */
static void delivered(struct server *s)
{
    look();
    for (size_t i = 0; i < s->taken; i++) {
        int64_t number = s->recipients[i];
        if (number < 0 || number >= sink.recipients) { head->failed++; continue; }
        struct got *got = &sink.got[number];
        if (got->times++) { head->doubled++; continue; }
        got->first = now;
        got->host = s->host->number;
        if (!head->done++) head->first = now;
        head->last = now;
    }
    s->count -= s->taken;
    memmove(s->recipients, s->recipients + s->taken, s->count * sizeof *s->recipients);
    s->taken = 0;
}

/* Write what may be written now; false if the connection has ended. */
static bool flush_server(struct server *s)
{
    if (s->held && s->until > now) return true;
    let_go(s);
    while (s->out.length) {
        bool slowly = s->host->mode == TARPIT;
        ssize_t wrote = write(s->fd, s->out.at, slowly ? 1 : s->out.length);
        if (wrote < 0 && errno != EAGAIN) { hang_up(s); return false; }
        if (wrote < 0) {
            if (!s->writing) watch(EPOLL_CTL_MOD, s->fd, EPOLLIN | EPOLLOUT, s);
            s->writing = true;
            return true;
        }
        drop(&s->out, wrote);
        if (slowly && s->out.length) { hold(s, now + s->host->delay); return true; }
    }
    if (s->writing) watch(EPOLL_CTL_MOD, s->fd, EPOLLIN, s);
    s->writing = false;
    if (s->taken) delivered(s);
    if (s->leaving) { hang_up(s); return false; }
    return true;
}

/* The number in RCPT TO:<uNUMBER@...>; -1 if there is none: a bounce, or somebody else's. */
static int64_t numbered(const char *line, size_t length)
{
    const char *at = memchr(line, '<', length);
    if (!at || at[1] != 'u' || at[2] < '0' || at[2] > '9') return -1;
    return strtoll(at + 2, NULL, 10);
}

static void command(struct server *s, const char *line, size_t length)
{
    static const char verbs[][5] = {"EHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT"};
    size_t verb = 0;
    while (verb < 8 && (length < 4 || strncasecmp(line, verbs[verb], 4))) verb++;
    switch (verb) {
    case 0:
        say(&s->out, "250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 104857600\r\n");
        return;
    case 2:
    case 5:
        s->count = s->taken;
        break;
    case 3:
        if (s->host->mode == DEFER) { say(&s->out, "451 4.3.2 not now\r\n"); return; }
        if (s->count == s->room) {
            s->room = s->room ? 2 * s->room : 8;
            if (!(s->recipients = realloc(s->recipients, s->room * sizeof *s->recipients))) fail("memory");
        }
        s->recipients[s->count++] = numbered(line, length);
        break;
    case 4:
        if (s->count == s->taken) { say(&s->out, "503 5.5.1 no recipients\r\n"); return; }
        s->text = true;
        s->octets = 0;
        say(&s->out, "354 go\r\n");
        return;
    case 7:
        s->leaving = true;
        say(&s->out, "221 2.0.0 bye\r\n");
        return;
    case 8:
        say(&s->out, "500 5.5.2 what?\r\n");
        return;
    default:
        break;
    }
    say(&s->out, "250 2.0.0 ok\r\n");
}

/* Take what is there, to the last whole line; how much of it was taken. */
static size_t understand(struct server *s, const char *at, size_t length)
{
    size_t from = 0;
    while (from < length && !s->leaving) {
        if (!s->text) {
            const char *feed = memchr(at + from, '\n', length - from);
            if (!feed) break;
            command(s, at + from, feed - (at + from));
            from = feed + 1 - at;
            if (s->text && from >= 2) from -= 2; /* its CRLF is the one before the text's first line */
            continue;
        }
        const char *stop = memmem(at + from, length - from, "\r\n.\r\n", 5);
        if (!stop) { /* the last four may be the first of the end */
            size_t kept = length - from < 4 ? length - from : 4;
            s->octets += length - from - kept;
            return length - kept;
        }
        s->octets += stop - (at + from) + 3; /* without the CRLF before it, with the full stop's line */
        from = stop + 5 - at;
        s->text = false;
        s->taken = s->count;
        head->accepted++;
        head->octets += s->octets;
        say(&s->out, "250 2.0.0 taken\r\n");
        if (s->host->mode == SLOW) hold(s, now + s->host->delay);
    }
    return from;
}

static void read_server(struct server *s)
{
    static char gulp[LINE + GULP];
    size_t before = s->rest.length;
    if (before) memcpy(gulp, s->rest.at, before);
    ssize_t length = read(s->fd, gulp + before, GULP);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) { hang_up(s); return; }
    if (s->host->mode == BLACKHOLE) return;
    size_t used = understand(s, gulp, before + length);
    size_t left = s->leaving ? 0 : before + length - used;
    if (left > LINE) { hang_up(s); return; }
    s->rest.length = 0;
    if (left) add(&s->rest, gulp + used, left);
    if (s->host->mode == TARPIT && !s->held && s->out.length) hold(s, now + s->host->delay);
    flush_server(s);
}

static void answer(struct host *host)
{
    for (int i = 0; i < EVENTS; i++) {
        int fd = accept4(host->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        struct server *s = calloc(1, sizeof *s);
        if (!s) fail("memory");
        at_once(fd);
        s->fd = fd;
        s->host = host;
        opened();
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, s);
        if (host->mode == BLACKHOLE) continue;
        say(&s->out, "220 sink.test ESMTP\r\n");
        if (host->mode == SLOW || host->mode == TARPIT) hold(s, now + host->delay);
        flush_server(s);
    }
}

/* No SYN is answered by a socket whose queue of connections is full. */
static void deafen(const struct sockaddr_storage *address, socklen_t length)
{
    for (int i = 0; i < 4; i++) {
        int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0 || (connect(fd, (const struct sockaddr *)address, length) && errno != EINPROGRESS)) fail("deaf");
    }
}

/* ADDRESS:PORT=MODE[:ARGUMENT] */
static void host(struct host *h, char *text)
{
    char *mode = strchr(text, '=');
    if (mode) *mode++ = 0;
    char *argument = mode ? strchr(mode, ':') : NULL;
    if (argument) *argument++ = 0;
    while (mode && h->mode < MODES && strcmp(mode, modes[h->mode])) h->mode++;
    errno = 0;
    if (h->mode == MODES) fail("no such mode");
    h->delay = (argument ? atof(argument) : h->mode == TARPIT ? 5000 : 0) / 1000;
    h->listening = true;

    struct sockaddr_storage address;
    socklen_t length = loopback(text, &address);
    int yes = 1;
    h->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(h->fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (h->fd < 0 || bind(h->fd, (struct sockaddr *)&address, length)) fail(text);
    if (listen(h->fd, h->mode == DEAF ? 0 : 4096)) fail(text);
    getsockname(h->fd, (struct sockaddr *)&address, &length);
    if (h->mode == DEAF) deafen(&address, length);
    else watch(EPOLL_CTL_ADD, h->fd, EPOLLIN, h);
    unsigned port = ntohs(((struct sockaddr_in *)&address)->sin_port); /* at the same place in sockaddr_in6 */
    printf("%.*s:%u\n", (int)(strrchr(text, ':') - text), text, port);
}

static void run_sink(double until)
{
    until += look();
    while (!over && now < until) {
        wake(sink.held ? now + TURN : until);
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poller, events, EVENTS, -1);
        look();
        for (int i = 0; i < count; i++) {
            struct server *s = events[i].data.ptr;
            if (!s) wake(0);
            else if (s->listening) answer((struct host *)s);
            else if (!(events[i].events & EPOLLOUT) || flush_server(s)) read_server(s);
        }
        for (struct server *s = sink.held, *after; s; s = after) {
            after = s->after;
            if (s->until <= now) flush_server(s);
        }
    }
}

/* ------------------------------------------------------------------ the command line */

static int64_t whole(const char *text, int64_t least, int64_t most)
{
    char *rest;
    errno = 0;
    long long value = strtoll(text, &rest, 10);
    if (errno || *rest || !*text || value < least || value > most) { errno = 0; fail("a number is out of its bounds"); }
    return value;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"record", 1, NULL, 'o'}, {"domains", 1, NULL, 'd'}, {"messages", 1, NULL, 'n'}, {"sessions", 1, NULL, 's'},
        {"octets", 1, NULL, 'l'}, {"recipients", 1, NULL, 'r'}, {"per-connection", 1, NULL, 'k'},
        {"rate", 1, NULL, 'R'}, {"tries", 1, NULL, 't'}, {"no-pipelining", 0, NULL, 'P'}, {"seconds", 1, NULL, 'S'},
        {NULL, 0, NULL, 0},
    };
    const char *file = NULL, *domains = NULL;
    int64_t recipients = 0;
    double seconds = 300;
    for (int letter; (letter = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (letter) {
        case 'o': file = optarg; break;
        case 'd': domains = optarg; break;
        case 'n': source.messages = whole(optarg, 1, 100000000); break;
        case 's': source.sessions = whole(optarg, 1, BUSIEST); break;
        case 'l': source.octets = whole(optarg, 100, 1 << 30); break;
        case 'r': recipients = whole(optarg, 1, 1000000000); break;
        case 'k': source.per_connection = whole(optarg, 0, 1 << 30); break;
        case 'R': source.rate = atof(optarg); break;
        case 't': source.tries = whole(optarg, 0, 60000); break;
        case 'P': source.pipelining = false; break;
        case 'S': seconds = whole(optarg, 1, 86400); break;
        default: return 2;
        }
    bool sending = optind < argc && !strcmp(argv[optind], "source");
    int rest = argc - optind - 1;
    errno = 0;
    if (!file || rest < 1 || (sending ? !domains || rest != 1 : strcmp(argv[optind], "sink") || rest > BUSIEST))
        fail("usage: load source TO --record FILE --domains FILE ... | load sink --record FILE ADDRESS:PORT=MODE...");

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    poller = epoll_create1(EPOLL_CLOEXEC);
    ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(EPOLL_CTL_ADD, ticker, EPOLLIN, NULL);

    if (sending) {
        if (recipients) source.recipients = recipients;
        if (!source.tries) source.tries = source.rate ? 1 : 20;
        source.to_length = loopback(argv[optind + 1], &source.to);
        source.text = compose(source.octets);
        read_domains(domains);
        source.sent = record(file, source.messages, sizeof *source.sent);
        run_source(seconds);
        return 0;
    }
    if (recipients) sink.recipients = recipients;
    sink.got = record(file, sink.recipients, sizeof *sink.got);
    sink.hosts = calloc(rest, sizeof *sink.hosts);
    if (!sink.hosts) fail("memory");
    for (int i = 0; i < rest; i++) {
        sink.hosts[i].number = i;
        host(&sink.hosts[i], argv[optind + 1 + i]);
    }
    printf("ready\n");
    fflush(stdout);
    run_sink(seconds);
    return 0;
}
