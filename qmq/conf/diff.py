"""
What differs between two configurations: for `qmq diff`, and for the gateway that goes over from one to the other.

Pure. What is said to people is said in the words and units of conf-qmq. A
setting that only follows another (bouncehost follows me) is told by that one
alone. The table of settings is walked, so that a new setting is told too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from qmq.conf.environs import environs
from qmq.conf.model import Conf, Instance, Listen
from qmq.conf.retired import successor
from qmq.conf.settings import TABLES, Setting

PRIMARY = "primary"
_FEW = 12  # words; of longer rows only what came and went is told
_MOST = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """
    What to do, and what to tell; of two equal ones there is nothing, and it is false.

    *added*, *removed*: instances to start and to end, those that are or were
    retired too. *retired*: they run on, and have been before. *changed*: they
    run on with other settings of their own; *common*: something that all
    share has changed ([qmq], [primary] but its rcpthosts, the checks, what is
    set for clients).
    *closed* and *opened*: TCP listeners as (name, where), name being "primary"
    or an instance's; what one closes another may open.

    *lines* come in with a reload; *restart* only with a new process; while
    there is anything in *refused* nothing must be changed at all.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    common: bool = False
    closed: tuple[tuple[str, Listen], ...] = ()
    opened: tuple[tuple[str, Listen], ...] = ()
    lines: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Difference()


When = Literal["live", "restart", "refused"]
_Told = tuple[When, str]

# Read once by each process, and kept: its log, its resolver, its bounds, how many there are; how a store keeps bodies.
_RESTART = {
    "qmq": frozenset({"workers", "worker-memory", "worker-files", "log", "log-format", "nameservers", "stop"}),
    "primary": frozenset({"processes", "inline", "header"}),
    "instance": frozenset[str](),
}
_REFUSED = {
    ("qmq", "spool"): "stores do not move while they are in use: stop qmq, move the folder, start it",
    ("qmq", "user"): "what runs cannot become another account: stop qmq, give the folders to that one, start it",
    ("instance", "spool"): "a store does not move while it is in use: stop qmq, move the folder, start it",
}
# Unless they are said, the instance's or primary's KEY is what another setting says.
_FOLLOWS = {
    "primary": {"greeting": {"me"}, "localiphost": {"me"}, "key": {"certificate"}},
    "instance": {
        "bouncehost": {"me"}, "helohost": {"me"}, "doublebounceto": {"me"}, "spool": {"spool"},
        "qmtp-listen": {"base", "number"}, "memory": {"worker-memory"}, "files": {"worker-files"},
        "reserve": {"reserve"},
    },
}  # fmt: skip


def difference(old: Conf, new: Conf) -> Difference:
    """What to do with a gateway that runs by *old*, so that it runs by *new*."""
    told = [
        *_settings("qmq", "qmq", old.general, new.general, {"retired"}),  # the instances tell
        *_primary(old, new),
        *environs(old, new),
        *_instances(old, new),
    ]
    both = [(old.instance(i.name), i) for i in new.instances if i.name in old]
    before, after = _listening(old), _listening(new)
    return Difference(
        added=tuple(i.name for i in new.instances if i.name not in old),
        removed=tuple(i.name for i in old.instances if i.name not in new),
        retired=tuple(now.name for was, now in both if now.retired and not was.retired),
        changed=tuple(n.name for w, n in both if _running(w) != _running(n) and not (n.retired and not w.retired)),
        common=_common(old) != _common(new),
        closed=tuple(one for one in before if one not in after),
        opened=tuple(one for one in after if one not in before),
        lines=tuple(text for when, text in told if when == "live"),
        restart=tuple(text for when, text in told if when == "restart"),
        refused=tuple(text for when, text in told if when == "refused"),
    )


def in_force(old: Conf, new: Conf) -> Conf:
    """
    *new* as a gateway that runs by *old* goes by it after a reload.

    What waits for a restart is as it was, so that the next difference tells it again.
    """
    general = {setting.field: getattr(old.general, setting.field) for setting in _waiting("qmq")}
    primary = {setting.field: getattr(old.primary, setting.field) for setting in _waiting("primary")}
    return replace(new, general=replace(new.general, **general), primary=replace(new.primary, **primary))


def _waiting(kind: str) -> list[Setting]:
    return [setting for setting in TABLES[kind] if setting.key in _RESTART[kind]]


def _listening(conf: Conf) -> dict[tuple[str, Listen], None]:
    theirs = [(i.name, i.qmtp_listen) for i in conf.instances if i.qmtp_listen is not None and not i.handover.host]
    return dict.fromkeys([*((PRIMARY, listen) for listen in conf.primary.listen), *theirs])


def _running(instance: Instance) -> Instance:
    """Without what says nothing as it is: the bounds of a worker of its own that it has not."""
    return instance if instance.process == "own" else replace(instance, memory=None, files=None)


def _common(conf: Conf) -> tuple[Any, ...]:
    """What all share and a reload can change; the domains, and which are retired, are the instances' own."""
    general = (s.field for s in TABLES["qmq"] if s.key not in {*_RESTART["qmq"], "retired"})
    apart = {"rcpthosts", "said_hosts", "process", *(setting.field for setting in _waiting("primary"))}
    return (
        [getattr(conf.general, field) for field in general],
        [getattr(conf.primary, field.name) for field in fields(conf.primary) if field.name not in apart],
    )


def _primary(old: Conf, new: Conf) -> Iterator[_Told]:
    quiet = _quiet("primary", "primary", _moved(old, new), old, new)
    if _only_theirs(old, new):
        quiet.add("rcpthosts")
    yield from _settings("primary", "primary", old.primary, new.primary, quiet)


def _only_theirs(old: Conf, new: Conf) -> bool:
    """Whether rcpthosts, unsaid, has only got and lost what instances have got and lost."""
    if "primary.rcpthosts" in old.places or "primary.rcpthosts" in new.places:
        return False
    hosts = set(old.primary.rcpthosts or ()) ^ set(new.primary.rcpthosts or ())
    return hosts <= {d for i in old.instances for d in i.domains} ^ {d for i in new.instances for d in i.domains}


def _moved(old: Conf, new: Conf) -> set[str]:
    """The settings that others follow, and that have changed."""
    pairs = {
        "me": (old.general.me, new.general.me),
        "spool": (old.general.spool, new.general.spool),
        "base": (old.general.base, new.general.base),
        "worker-memory": (old.general.worker_memory, new.general.worker_memory),
        "worker-files": (old.general.worker_files, new.general.worker_files),
        "reserve": (old.primary.reserve, new.primary.reserve),
        "certificate": (old.primary.certificate, new.primary.certificate),
    }
    return {key for key, (was, now) in pairs.items() if was != now}


def _quiet(kind: str, section: str, moved: set[str], old: Conf, new: Conf) -> set[str]:
    """The keys of *section* that have but followed another."""
    places = (old.places, new.places)
    follows = _FOLLOWS[kind].items()
    return {key for key, those in follows if those & moved and not any(f"{section}.{key}" in of for of in places)}


def _settings(kind: str, section: str, was: Any, now: Any, quiet: set[str]) -> Iterator[_Told]:
    for setting in TABLES[kind]:
        before, after = _value(setting, was), _value(setting, now)
        if before == after or setting.key in quiet:
            continue
        text = f"~ [{section}] {setting.key}: {worded(setting, before, after)}"
        if (remedy := _REFUSED.get((kind, setting.key))) is not None:
            yield "refused", f"{text}: {remedy}"
        else:
            yield ("restart" if setting.key in _RESTART[kind] else "live"), text


def _value(setting: Setting, of: Any) -> Any:
    """As Setting.said takes it."""
    match setting.key:
        case "deliver":
            return tuple(of.deliver.split())
        case "route":
            return of.routes
        case "checks":
            return tuple(name for name, _ in of.checks)
        case _:
            return getattr(of, setting.field)


def worded(setting: Setting, was: Any, now: Any) -> str:
    """``20 -> 40``; of long rows ``+ new.example, - old.example``."""
    if not setting.each or len(was or ()) + len(now or ()) <= _FEW or set(was or ()) == set(now or ()):
        return f"{setting.said(was)} -> {setting.said(now)}"
    came = [f"+ {setting.text(word)}" for word in now or () if word not in set(was or ())]
    went = [f"- {setting.text(word)}" for word in was or () if word not in set(now or ())]
    words = came + went
    return ", ".join(words[:_MOST]) + (f" and {len(words) - _MOST} more" if len(words) > _MOST else "")


def _instances(old: Conf, new: Conf) -> Iterator[_Told]:
    moved = _moved(old, new)
    stores = {os.path.normpath(i.spool): i.name for i in old.instances if not i.handover.host}
    for instance in new.instances:
        if instance.name in old:
            yield from _kept(old, new, instance.name, moved)
            continue
        yield from _added(new, instance)
        if (other := stores.get(os.path.normpath(instance.spool))) is not None and not instance.handover.host:
            what = f"~ [{instance.name}] spool: {instance.spool} is the store of {other}, which is in use"
            yield "refused", f"{what}: stop qmq for that, or name another folder"
    for instance in old.instances:
        if instance.name not in new:
            yield "live", f"- [{instance.name}]"


def _kept(old: Conf, new: Conf, name: str, moved: set[str]) -> Iterator[_Told]:
    was, now = old.instance(name), new.instance(name)
    if was == now:
        return
    if was.number != now.number and not (was.retired or now.retired):
        yield "live", f"~ [instances] {name}: {was.id} -> {now.id}"
        moved = moved | {"number"}
    quiet = _quiet("instance", name, moved, old, new)
    if now.retired:
        yield from _retired(was, now, quiet)
    elif was.retired:
        yield from _added(new, now)
        yield from (told for told in _settings("instance", name, was, now, quiet) if told[0] == "refused")
    elif now.handover.host and not was.handover.host:
        yield from _settings("instance", name, was, now, quiet | {"handover"})
        setting = next(setting for setting in TABLES["instance"] if setting.key == "handover")
        text = f"~ [{name}] handover: {worded(setting, was.handover, now.handover)}"
        remedy = f"list that host as another instance, cut {name}'s line and section, and write retired = {name}=OTHER"
        yield "refused", f"{text}: mail in its store would stay here: {remedy}"
    else:
        yield from _settings("instance", name, was, now, quiet)


def _retired(was: Instance, now: Instance, quiet: set[str]) -> Iterator[_Told]:
    """All but store and process are its successor's manners, and told there."""
    if not was.retired:
        yield "live", f"- [{now.name}], what is left goes to {successor(now)}"
    elif was.deliver != now.deliver:
        yield "live", f"~ [{now.name}] what is left goes to: {successor(was)} -> {successor(now)}"
    theirs = {setting.key for setting in TABLES["instance"]} - {"spool", "process"}
    yield from _settings("instance", now.name, was, now, quiet | theirs)


def _added(new: Conf, instance: Instance) -> Iterator[_Told]:
    """Domains and next hop of the new one, and what else its section says."""
    name = instance.name
    if instance.retired:
        yield "live", f"+ [{name}] retired, what is left goes to {successor(instance)}"
        return
    for setting in TABLES["instance"]:
        at = new.places.get(f"{name}.{setting.key}")
        if setting.key in {"domains", "deliver"} or (at is not None and not at.classic):
            value = _value(setting, instance)
            few = value[:_MOST] if setting.each else value
            more = f" and {len(value) - _MOST} more" if setting.each and len(value) > _MOST else ""
            yield "live", f"+ [{name}] {setting.key} = {setting.said(few)}{more}"
