"""
What `bench/dead-domains` does: most of the traffic is for domains whose hosts are dead, and one domain is well.

By the clock and not by the replies; healthy messages that have not come at the end
count as waiting until then, so that who delivers few does not look quick.
"""

import os
import shutil
import tempfile
import time

from . import cpu, peers
from .load import Sink, Source, Unavailable, joined, mix, quantile
from .speeds import free_port

HEALTHY = "ok.test"
# What a dead host does: in words, and in load's; None: nobody listens.
WAYS = {
    "tarpit": ("answers, an octet each 5 s", "tarpit:5000"),
    "blackhole": ("answers no SYN", "deaf"),
    "slow:2000": ("takes 2 s for its banner and 2 s for each message", "slow:2000"),
    "refused": ("refuses the connection", None),
    "defer": ("says 451 to each recipient", "defer"),
    "silent": ("takes the connection and says nothing", "blackhole"),
    "": ("is well", "ok"),
}
SESSIONS = 100
# Nine in ten messages are for the dead.
_DEAD_PART = 9
# Messages of the run that says what a target carries, for one of pace 1.
_CAPACITY = 1500
# Processes that start: over by then.
_REST = 1.5
_OCTETS = 4096


def asked(words):
    """As peers.asked, but `qmq-one` too: qmq with all domains in one instance."""
    found = []
    for label in filter(None, words.split(",")):
        named = label.replace("qmq-one", "qmq:instances=1", 1) if label.startswith("qmq-one") else label
        found += [(label, kind, settings) for _, kind, settings in peers.asked(named)]
    return found


def domains(count):
    """The dead ones' names."""
    return [f"dead{n}.test" for n in range(1, count + 1)]


def way_of(word):
    """What load's sink is told for a way of being dead: as in WAYS, or slow:MS; raises Unavailable."""
    if word.startswith("slow:") and word[5:].isdigit():
        return word
    if word not in WAYS:
        raise Unavailable(f"no such way to be dead: {word}; there are {', '.join(filter(None, WAYS))}")
    return WAYS[word][1]


class Scene:
    """A target, a healthy host at 127.0.0.1 and *count* hosts at 127.0.1.1 and on, dead in a way (or well: "")."""

    def __init__(self, kind, settings, way, count, place, messages, seconds):
        self.folder = tempfile.mkdtemp(prefix="dead-", dir=place)
        os.chmod(self.folder, 0o755)
        self.tree = cpu.tree()
        port, mode = free_port(), way_of(way)
        dead = [f"127.0.1.{n}" for n in range(1, count + 1)]
        hosts = ["127.0.0.1:0=ok", *(f"{host}:{port}={mode}" for host in dead if mode)]
        self.sink = Sink(recipients=messages, hosts=hosts, seconds=seconds)
        self._kind, self._settings = kind, settings
        self._dead = [(name, host, port) for name, host in zip(domains(count), dead, strict=True)]
        self.turns = mix({HEALTHY: 1, tuple(domains(count)): _DEAD_PART})

    def __enter__(self):
        try:
            self.sink.start()
            host, _, port = self.sink.addresses[0].rpartition(":")
            routes = [(HEALTHY, host, int(port)), *self._dead]
            self.target = self._kind(self.folder, free_port(), routes, **self._settings)
            self.target.start(self.tree)
        except BaseException:
            self.__exit__()
            raise
        self.tree.sample()
        time.sleep(_REST)
        return self

    def __exit__(self, *_):
        self.tree.close()
        self.sink.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def source(self, messages, seconds, rate):
        """A load in which each tenth message is for the healthy domain."""
        return Source(
            to=f"127.0.0.1:{self.target.port}", messages=messages, sessions=SESSIONS, octets=_OCTETS,
            domains=self.turns, rate=rate, seconds=seconds,
        )  # fmt: skip


def capacity(kind, settings, count, place, say, limit=30.0):
    """Messages a second, end to end, if all hosts are well."""
    messages = _CAPACITY * kind.pace
    with Scene(kind, settings, "", count, place, messages, 2 * limit + 60) as scene:
        say("as fast as it goes")
        with scene.source(messages, limit, 0) as source:
            source.wait(limit)
            scene.sink.settle(source.head().accepted, 10, limit)
            done, first = scene.sink.head(), source.head().first
    return done.done / max(0.001, done.last - first)


def conduct(kind, settings, way, count, rate, seconds, settle, place, say):
    """*seconds* of it, and up to *settle* more for healthy messages that have not come: its facts."""
    messages = max(10, round(rate * seconds))
    with Scene(kind, settings, way, count, place, messages, seconds + settle + 60) as scene:
        used = scene.tree.cpu()
        with scene.source(messages, seconds + settle, rate) as source:
            source.wait(seconds + settle, lambda accepted: say(f"{accepted} of {messages} accepted"))
            zero = source.head().first
            while time.monotonic() < zero + seconds + settle and (late := waiting(source, scene.sink)):
                say(f"{late} to come")
                time.sleep(0.25)
            time.sleep(0.3)  # second copies
            pairs, end = joined(source, scene.sink, is_healthy), time.monotonic()
            accepted = source.head().accepted
        return {
            "way": way, "dead": count, "rate": round(rate, 1), "seconds": seconds, "accepted": accepted,
            "messages": messages, **told(pairs, zero, seconds, end),
            "cpu": round(1e6 * (scene.tree.cpu() - used) / messages), "memory": scene.tree.peak,
        }  # fmt: skip


def waiting(source, sink):
    """How many healthy messages have their 250 and are not there."""
    return sum(bool(sent.said) and not got.first for sent, got in joined(source, sink, is_healthy))


def is_healthy(domain):
    """The healthy domain's."""
    return domain == HEALTHY


def told(pairs, zero, seconds, end):
    """
    Of healthy messages, (sent, got) each, that were due from *zero* on for *seconds*, looked at until *end*.

    *per_second* are deliveries in that time, *offered* what they should be; waits are from 250 to delivery, of what
    has not come until *end*. *time*: for each second when, acknowledged, delivered, p50, p99 (by the time of the 250).
    """
    spans, came = {}, [0] * max(1, int(seconds))
    for sent, got in pairs:
        if sent.said:
            wait = max(0.0, (got.first or end) - sent.said)
            spans.setdefault(int(sent.said - zero), []).append(wait)
        if got.first and 0 <= (second := int(got.first - zero)) <= len(came):
            came[min(second, len(came) - 1)] += 1  # the last is due at the end of the last second
    waits = sorted(wait for some in spans.values() for wait in some)
    return {
        "healthy": len(pairs),
        "offered": len(pairs) / seconds,
        "per_second": sum(came) / seconds,
        "p50": quantile(waits, 0.5), "p99": quantile(waits, 0.99), "max": quantile(waits, 1),
        "refused": sum(not sent.said for sent, _ in pairs),
        "undelivered": sum(bool(sent.said) and not got.times for sent, got in pairs),
        "doubled": sum(max(0, got.times - 1 - sent.unsure) for sent, got in pairs),
        "time": [
            [second, len(some), came[second] if second < len(came) else 0, quantile(some, 0.5), quantile(some, 0.99)]
            for second, some in ((second, sorted(some)) for second, some in sorted(spans.items()))
        ],
        "came": came,
    }  # fmt: skip


# A fault may cost the healthy domain so much of p99 (the greater of the two), and of its deliveries no more than what
# is on its way at the end.
FACTOR, MORE, ALL = 2.0, 0.020, 0.98


def allowed(base):
    """The p99 that dead domains may bring the healthy one, in seconds."""
    return max(FACTOR * base["p99"], base["p99"] + MORE)


def verdict(one, base):
    """What speaks against it; nothing if it is passed."""
    against = ["deliveries"] if one["per_second"] < ALL * one["offered"] else []
    against += ["p99"] if one["p99"] > allowed(base) else []
    return against + [word for word in ("refused", "undelivered", "doubled") if one[word]]
