"""
Why the configuration does what it does: for one address, and for the whole.

Pure: gives facts with the place that decided them; the `qmq` command prints
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from qmq.conf.model import Conf, Instance, site_for
from qmq.conf.retired import successor
from qmq.conf.units import disk_text, duration_text, octets_text
from qmq.mail import Address, Seconds
from qmq.queue.schedule import expired, parse_schedule


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact, and the ``path:line`` that decided it; an empty place: the default did."""

    name: str
    value: str
    place: str = ""


def explain(conf: Conf, recipient: Address) -> Iterator[Fact]:
    """What happens to mail for that recipient, in the order in which it happens."""
    domain = recipient.domain or conf.general.me.encode()
    owner = conf.owner(recipient.domain)
    if owner is None:
        yield Fact("accepted", f"no: {_text(domain)} is no instance's")
        return
    instance, key = owner
    accepted = conf.accepts(domain)
    relay = conf.places.get("qmq.relay")
    yield Fact(
        "accepted",
        "yes, from everybody" if accepted else _relayed(conf, domain),
        relay.place if relay and not accepted else "",
    )
    pattern = _text(key) or "*"
    yield Fact("instance", f"{instance.id}:{instance.name}, by {pattern}", _place(conf, instance, f" domain {pattern}"))
    yield _setting(conf, instance, "handover", _handover(conf, instance))
    yield _hop(conf, instance, recipient)
    yield from _limits(conf, instance)
    yield from _wishes(conf, instance)
    times = ", ".join(_rough(t) for t in islice(attempts(instance), 10))
    yield _setting(conf, instance, "retry", f"{instance.retry}: tried after {times}")
    yield _setting(
        conf, instance, "lifetime", f"{duration_text(instance.lifetime)}, then a bounce {_bounce(conf, instance)}"
    )
    yield _setting(conf, instance, "spool", instance.spool)
    for old in conf.instances:
        if successor(old) == instance.name:
            yield Fact("retired", f"what is left in {old.name}'s queue goes here too", _place(conf, old, "."))


def attempts(instance: Instance) -> Iterator[Seconds]:
    """When a message that is always deferred is tried, from its birth on, without jitter; the last one bounces it."""
    schedule = parse_schedule(instance.retry)
    now: Seconds = 0
    count = 0
    yield now
    while not expired(0, now, instance.lifetime):
        now = schedule.next_attempt(0, now, count, 0)
        count += 1
        yield now


def describe(conf: Conf) -> Iterator[Fact]:
    """The whole, one fact an instance."""
    places = conf.places
    listen = " ".join(f"{host or '*'}:{port}" for host, port in conf.primary.listen)
    yield Fact(
        "primary",
        f"{conf.general.me} at {listen}",
        places["primary.listen"].place if "primary.listen" in places else "",
    )
    for instance in conf.instances:
        if instance.retired:
            left = f"retired, what is left goes to {successor(instance)}"
            yield Fact(instance.name, left, _place(conf, instance, "."))
            continue
        domains = " ".join(map(_text, instance.domains)) or "no domains"
        role = "" if instance.role == "normal" else f"{instance.role}, "
        hop = (
            f"{_text(instance.deliver)}, {len(instance.routes)} routes" if instance.routes else _text(instance.deliver)
        )
        yield Fact(f"{instance.id}:{instance.name}", f"{role}{domains} -> {hop}", _place(conf, instance, ".domains"))


def census(conf: Conf) -> str:
    """How many instances there are: ``5 instances``, ``5 instances and 1 retired``."""
    retired = sum(instance.retired for instance in conf.instances)
    count = len(conf.instances) - retired
    return f"{count} instances" + (f" and {retired} retired" if retired else "")


def _relayed(conf: Conf, domain: bytes) -> str:
    who = "from relay clients only" if conf.general.relay else "from nobody, as there is no relay client"
    return f"{who}: {_text(domain)} is in no list"


def _hop(conf: Conf, instance: Instance, recipient: Address) -> Fact:
    key = instance.route(recipient.domain)
    hop = _text(site_for(instance, recipient))
    if key is None:
        return _setting(conf, instance, "deliver", hop)
    return Fact(
        "deliver", f"{hop}, by the route of {_text(key) or '*'}", _place(conf, instance, f" route {_text(key)}")
    )


def _limits(conf: Conf, instance: Instance) -> Iterator[Fact]:
    yield _setting(
        conf, instance, "concurrency", f"{instance.concurrency}, {instance.concurrency_per_host} to one host"
    )
    yield _setting(conf, instance, "databytes", octets_text(min(instance.databytes, conf.primary.databytes)))
    then = f"then to {instance.overflow}" if instance.overflow else "then 452"
    full = f"{instance.limit_messages} messages or {octets_text(instance.limit_bytes)} in its store, {then}"
    yield _setting(conf, instance, "limit-messages", full)
    if instance.limit_disk is not None:
        of = " of its device" if isinstance(instance.limit_disk, float) else " of the disk"
        yield _setting(conf, instance, "limit-disk", f"{disk_text(instance.limit_disk)}{of}, {then}")
    if instance.limit_age is not None:
        yield _setting(
            conf,
            instance,
            "limit-age",
            f"while its oldest message is older than {duration_text(instance.limit_age)}, {then}",
        )
    free = f"{octets_text(instance.reserve)} and {instance.reserve_inodes} inodes stay free on its device, {then}"
    yield _setting(conf, instance, "reserve", free)
    if instance.overflow:
        yield _setting(conf, instance, "overflow", f"{instance.overflow} gets what comes while this one takes none")


def _wishes(conf: Conf, instance: Instance) -> Iterator[Fact]:
    """What the checks do otherwise for this instance's recipients; nothing, if it has not asked for anything."""
    if instance.recipients:
        yield _setting(conf, instance, "recipients", f"those of {instance.recipients}")
    if instance.callout != "no":
        without = "taken" if instance.callout == "open" else "deferred (450)"
        yield _setting(conf, instance, "callout", f"its next hop is asked; without its answer they are {without}")
    if instance.badmailfrom:
        yield _setting(conf, instance, "badmailfrom", f"senders in {instance.badmailfrom} are refused")
    if instance.spf is not None:
        yield _setting(conf, instance, "spf", f"level {instance.spf}")
    if (threshold := instance.spam_threshold) is not None:
        what = "mail is not scanned" if threshold == -1 else f"mail is refused from {threshold:g} on"
        yield _setting(conf, instance, "spam-threshold", what)


def _handover(conf: Conf, instance: Instance) -> str:
    handover = instance.handover
    if handover.host:
        return f"{handover.protocol} to {handover.host}:{handover.port}"
    if not conf.general.workers:
        return "a call: everything is in one process"
    worker = "a shared worker"
    if instance.process == "own":
        memory = "" if instance.memory is None else f" with {octets_text(instance.memory)} of memory"
        worker = f"a worker of its own{memory}"
    return f"{handover.protocol} to {worker}, within {duration_text(conf.primary.handover_time)}"


def _bounce(conf: Conf, instance: Instance) -> str:
    target = conf.bounces or conf.default
    return "by its own queue" if target is None or target.name == instance.name else f"by {target.name}"


def _setting(conf: Conf, instance: Instance, key: str, value: str) -> Fact:
    return Fact(key, value, _place(conf, instance, f".{key}"))


def _place(conf: Conf, instance: Instance, what: str) -> str:
    at = conf.places.get(f"{instance.name}{what}")
    return at.place if at else ""


def _rough(seconds: Seconds) -> str:
    """In the two largest units that it needs: 26m40s, 1h46m."""
    rest = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size}{unit}")
            rest %= size
    return "".join(parts[:2]) or "0s"


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
