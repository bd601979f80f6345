/*
 * The source. Without a rate each session sends its next message when it has the answer (closed loop); with one
 * messages are due by the clock, whatever the answers do (open loop), and one that finds no session free waits
 * for one, and its wait counts.
 */
#include "load.h"

#include <fcntl.h>
#include <sys/uio.h>

static const double PAUSE = 0.05, LONGEST_PAUSE = 2.0; /* after a failure: doubled, up to */

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
    int64_t first, messages, recipients, upcoming;
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
} source;

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
    int64_t recipient = (source.first + c->message) * source.recipients + number;
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
    c->state = GREETING;
    opened(c->fd);
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

static void understand(const struct order *order)
{
    source.first = order->first;
    source.messages = order->messages;
    source.recipients = order->recipients ? order->recipients : 1;
    source.sessions = order->sessions;
    source.per_connection = order->per_connection;
    source.octets = order->octets;
    source.rate = order->rate;
    source.tries = order->tries ? order->tries : order->rate ? 1 : 20;
    source.pipelining = order->pipelining;
    source.to_length = loopback(order->to, &source.to);
    source.text = compose(source.octets);
    read_domains(order->domains);
    source.sent = record(order->record, source.messages, sizeof *source.sent);
}

void run_source(const struct order *order)
{
    understand(order);
    struct client *clients = calloc(source.sessions, sizeof *clients);
    source.resting = calloc(source.sessions, sizeof *source.resting);
    if (!clients || !source.resting) fail("memory");
    source.begun = look();
    double until = now + order->seconds;
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
