"""
What `bench/growth` lets grow: axes, the points of each, and what each point is of configuration and load.

Pure. A point is one gateway; its loads are measured beside the base: one instance,
one host, an empty queue, 40 sessions, 4 kB, one recipient.
"""

from dataclasses import dataclass, replace

from .side import Load

BASE_MESSAGES = 4000
# A queue of that many messages is to fit into memory.
PRELOAD_OCTETS = 1024
# Of one load, at most: 50 MB a message and sessions at work are a few messages only.
_OCTETS = 200 << 20
_RECIPIENTS = 20_000
# A deferred message of the preloaded ones is not due while we look.
_LATER = 3600
# Nobody listens there.
_DEAD = "smtp:127.0.0.1:1"


@dataclass(frozen=True)
class Point:
    """
    One gateway and the loads it gets, each with the *series* it belongs to.

    *instances* or *hosts* are how many there are; *route* says that one instance has a route to each host, else
    each instance has its host. *preload*: messages in the first instance's queue, to *site*, due *later* or at once.
    """

    axis: str
    value: int
    loads: tuple[tuple[str, Load], ...]
    instances: int = 1
    hosts: int = 1
    domains: int = 1
    primary: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    preload: int = 0
    later: int = 0
    idle: int = 0  # sessions that say nothing, beside those of the load

    def sections(self, addresses):
        """Its instances' sections of conf-qmq, for hosts at *addresses*."""
        if self.domains > 1:
            routes = [f"route = d1.test=smtp:{addresses[0]}"] if self.hosts > 1 else []
            routes += [f" d{n}.test=smtp:{addresses[n - 1]}" for n in range(2, self.domains + 1) if self.hosts > 1]
            names = ["domains = d1.test", *(f" d{n}.test" for n in range(2, self.domains + 1))]
            return [("i1", [*names, *routes, f"deliver = smtp:{addresses[0]}", *self.section])]
        return [
            (f"i{n}", [f"domains = i{n}.test", f"deliver = smtp:{addresses[(n - 1) % len(addresses)]}", *self.section])
            for n in range(1, self.instances + 1)
        ]

    @property
    def sinks(self):
        """Its hosts, as of load's sink: each has an address of its own, and so is a site of its own."""
        return [f"{address(n)}:0=ok" for n in range(self.hosts)]

    @property
    def queue(self):
        """What its first instance's queue holds, as of Side."""
        if not self.preload:
            return None
        return "i1", self.preload, (_DEAD, "--octets", str(PRELOAD_OCTETS),
                                    *(["--later", str(self.later)] if self.later else []))  # fmt: skip


def address(number):
    """The address of the host of that number, on loopback: 127.2.0.1 and on, 250 in each third octet."""
    return f"127.2.{number // 250}.{number % 250 + 1}"


BASE = Point("base", 1, (("base", Load(BASE_MESSAGES)),))


def domains(letter, count):
    """i1.test, i2.test, ..."""
    return tuple(f"{letter}{n}.test" for n in range(1, count + 1))


def depth(most):
    """Messages in the queue: deferred till later; and due, but their host is dead."""
    load, raised = Load(BASE_MESSAGES), ("limit-messages = 2000000",)
    for value in (0, 1000, 10_000, 100_000, 1_000_000):
        if value <= most:
            yield Point("depth", value, (("deferred", load),), section=raised, preload=value, later=_LATER)
    for value in (1000, 10_000, 100_000, 1_000_000):
        if value <= most:
            yield Point("depth", value, (("due, host dead", load),), section=raised, preload=value)


def instances(most):
    """Instances in one configuration, each with a host of its own; traffic to the first, to ten, to all."""
    for value in (1, 10, 100, 1000):
        if value <= most:
            loads = [("to 1", Load(BASE_MESSAGES))]
            loads += [("to 10", Load(BASE_MESSAGES, domains=domains("i", 10)))] if value >= 10 else []
            loads += [("to all", Load(BASE_MESSAGES, domains=domains("i", value)))] if value >= 10 else []
            yield Point("instances", value, tuple(loads), instances=value, hosts=value)


def recipients(most):
    """Recipients of a message, all at one host."""
    for value in (1, 10, 100, 1000):
        if value <= most:
            messages = min(BASE_MESSAGES, _RECIPIENTS // value)
            yield Point("recipients", value, (("", Load(messages, recipients=value)),))


def size(most):
    """Octets of a message; the largest is larger than the shipped limit allows."""
    for value in (1000, 4096, 65_536, 1 << 20, 10 << 20, 50 << 20):
        if value <= most:
            messages = max(4, min(BASE_MESSAGES, _OCTETS // value))
            raised = ("databytes = 100M",)
            yield Point("size", value, (("", Load(messages, octets=value)),), primary=raised, section=raised)


def sessions(most):
    """Sessions that are open: all at work; or 40 at work, beside so many that say nothing."""
    raised = ("sessions = 6000", "share = 1")
    for value in (1, 10, 100, 1000, 5000):
        if value <= most:
            messages = BASE_MESSAGES // 4 if value == 1 else BASE_MESSAGES
            load = Load(max(messages, 2 * value), sessions=value)
            yield Point("sessions", value, (("at work", load),), primary=raised)
    for value in (1, 10, 100, 1000, 5000):
        if value <= most:
            yield Point("sessions", value, (("idle, beside 40", Load(BASE_MESSAGES)),), primary=raised, idle=value)


def destinations(most):
    """Domains of one instance: all at one host; or each at a host of its own."""
    for value in (1, 10, 100, 1000, 10_000):
        if value <= most:
            load = Load(BASE_MESSAGES, domains=domains("d", value) if value > 1 else ("i1.test",))
            yield Point("destinations", value, (("at one host", load),), domains=value)
            if value > 1:
                yield Point("destinations", value, (("a host each", load),), domains=value, hosts=value)


AXES = {axis.__name__: axis for axis in (depth, instances, recipients, size, sessions, destinations)}
# Enough to see that all works.
QUICK = {"depth": 10_000, "instances": 100, "recipients": 1000, "size": 10 << 20, "sessions": 1000,
         "destinations": 1000}  # fmt: skip


def plan(words, quick):
    """The points of the axes of those names; with *quick* the smaller ones, with a quarter of the messages."""
    found = []
    for word in words:
        for point in AXES[word](QUICK[word] if quick else 1 << 40):
            loads = tuple((series, scaled(load, quick)) for series, load in point.loads)
            found.append(replace(point, loads=loads))
    return found


def scaled(load, quick):
    """The load, or a quarter of it; a message for each session at least."""
    if not quick:
        return load
    return replace(load, messages=min(load.messages, max(4, load.messages // 4, load.sessions)))
