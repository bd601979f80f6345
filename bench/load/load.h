/* What source, sink and main share: the record, the clock, sockets, octets that wait. */
#ifndef LOAD_H
#define LOAD_H
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LINE = 2048,   /* longest line we take: RFC 5321 4.5.3.1.4 has 512 and allows for extensions */
    EVENTS = 256,  /* looked at in one turn of the loop */
};
#define TURN 0.002 /* what sleeps is looked at so often */

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

extern struct head *head;
extern int poller;
extern double now;        /* looked at once a turn, and where a time is noted */
extern volatile sig_atomic_t over;

/* End with these words, and with those of errno if it is set. */
_Noreturn void fail(const char *what);
double look(void);
/* The record file, mapped; its entries are all zero. */
void *record(const char *path, size_t entries, size_t size);
/* ADDRESS:PORT or [ADDRESS]:PORT, of this machine's loopback or nothing: this is a load, and mail of nobody. */
socklen_t loopback(const char *text, struct sockaddr_storage *found);

/* The one epoll and its clock; an event of the clock has no data. */
void prepare(void);
void watch(int operation, int fd, uint32_t events, void *whose);
/* Wake at that time; 0: not at all. */
void wake(double when);
/* A connection more; its socket sends at once. */
void opened(int fd);

void add(struct octets *out, const void *what, size_t length);
void say(struct octets *out, const char *text);
void drop(struct octets *out, size_t length);

/* What main reads of the command line. */
struct order {
    const char *record, *domains, *to;
    long long first, messages, recipients, sessions, octets, per_connection, tries;
    double rate, seconds;
    bool pipelining;
    int host_count;
    char **hosts;
};
void run_source(const struct order *order);
void run_sink(const struct order *order);

#endif
