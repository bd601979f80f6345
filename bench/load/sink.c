/* The sink: hosts, each in its mode, that take mail and note for whom it was. */
#include "load.h"

#include <netinet/in.h>

enum { GULP = 1 << 18 }; /* read at a time */

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
} sink;

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
        s->fd = fd;
        s->host = host;
        opened(fd);
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

void run_sink(const struct order *order)
{
    sink.recipients = order->recipients ? order->recipients : 1000;
    sink.got = record(order->record, sink.recipients, sizeof *sink.got);
    sink.hosts = calloc(order->host_count, sizeof *sink.hosts);
    if (!sink.hosts) fail("memory");
    for (int i = 0; i < order->host_count; i++) {
        sink.hosts[i].number = i;
        host(&sink.hosts[i], order->hosts[i]);
    }
    printf("ready\n");
    fflush(stdout);
    double until = look() + order->seconds;
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
