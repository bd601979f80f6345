/*
 * The load of the benchmarks: a source and a sink of SMTP, loopback only.
 *
 *   load source TO --record FILE --domains FILE [--messages N] [--sessions S] [--octets L] [--recipients R]
 *               [--per-connection K] [--rate R] [--tries T] [--first F] [--no-pipelining] [--seconds S]
 *   load sink   --record FILE [--recipients N] [--seconds S] ADDRESS:PORT=MODE[:ARGUMENT]...
 *
 * Recipients are numbered, in their local parts: message m (from --first on) has the recipients m*R to m*R+R-1,
 * and recipient i is of domain i modulo the lines of --domains. The source notes for each message when it was due and when it
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
#include "load.h"

#include <getopt.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { BUSIEST = 1 << 20 }; /* sessions and hosts at most */

static int64_t whole(const char *text, int64_t least, int64_t most)
{
    char *rest;
    errno = 0;
    long long value = strtoll(text, &rest, 10);
    if (errno || *rest || !*text || value < least || value > most) { errno = 0; fail("a number is out of its bounds"); }
    return value;
}

static void end(int signal) { (void)signal; over = 1; }

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"record", 1, NULL, 'o'}, {"domains", 1, NULL, 'd'}, {"messages", 1, NULL, 'n'}, {"sessions", 1, NULL, 's'},
        {"octets", 1, NULL, 'l'}, {"recipients", 1, NULL, 'r'}, {"per-connection", 1, NULL, 'k'},
        {"rate", 1, NULL, 'R'}, {"tries", 1, NULL, 't'}, {"no-pipelining", 0, NULL, 'P'}, {"seconds", 1, NULL, 'S'},
        {"first", 1, NULL, 'f'},
        {NULL, 0, NULL, 0},
    };
    struct order order = {.messages = 1000, .sessions = 20, .octets = 4096, .pipelining = true, .seconds = 300};
    for (int letter; (letter = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (letter) {
        case 'o': order.record = optarg; break;
        case 'd': order.domains = optarg; break;
        case 'n': order.messages = whole(optarg, 1, 100000000); break;
        case 'f': order.first = whole(optarg, 0, 1000000000); break;
        case 's': order.sessions = whole(optarg, 1, BUSIEST); break;
        case 'l': order.octets = whole(optarg, 100, 1 << 30); break;
        case 'r': order.recipients = whole(optarg, 1, 1000000000); break;
        case 'k': order.per_connection = whole(optarg, 0, 1 << 30); break;
        case 'R': order.rate = atof(optarg); break;
        case 't': order.tries = whole(optarg, 0, 60000); break;
        case 'P': order.pipelining = false; break;
        case 'S': order.seconds = whole(optarg, 1, 86400); break;
        default: return 2;
        }
    const char *role = optind < argc ? argv[optind] : "";
    order.host_count = argc - optind - 1;
    order.hosts = argv + optind + 1;
    bool sending = !strcmp(role, "source") && order.host_count == 1 && order.domains;
    bool taking = !strcmp(role, "sink") && order.host_count > 0 && order.host_count < BUSIEST;
    errno = 0;
    if (!order.record || !(sending || taking))
        fail("usage: load source TO --record FILE --domains FILE ... | load sink --record FILE ADDRESS:PORT=MODE...");

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    prepare();
    if (sending) {
        order.to = order.hosts[0];
        run_source(&order);
    } else {
        run_sink(&order);
    }
    return 0;
}
