"""
What no single line can tell: do the parts of the configuration fit together, and this machine?

Each function adds to the findings; none changes anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches

from qmq.commands import argv
from qmq.conf import clients, retired
from qmq.conf.control import Folder
from qmq.conf.ground import Ground
from qmq.conf.model import Conf, Instance, Listen
from qmq.conf.read import Document
from qmq.conf.settings import RESERVED, word
from qmq.conf.units import BadValue, duration_text
from qmq.conf.written import Findings, Written

_PRIVILEGED = 1024


def verify(conf: Conf, document: Document, findings: Findings) -> None:
    """All that does not depend on the machine."""
    _names(conf, document, findings)
    _sections(conf, document, findings)
    _roles(conf, document, findings)
    _owners(conf, findings)
    _hops(conf, findings)
    _handovers(conf, findings)
    _stores(conf, findings)
    _ports(conf, document, findings)
    _lifetimes(conf, findings)
    _overflows(conf, findings)
    _bounds(conf, findings)
    _filters(conf, findings)
    retired.verify(conf, document, findings)
    _certificate(conf, findings)


def _names(conf: Conf, document: Document, findings: Findings) -> None:
    if not document.plan and not findings.errors:
        findings.error(document.whole, "names no instance", "write 01:customer1 below [instances]")
    for planned in document.plan:
        if planned.name.lower() in RESERVED:
            findings.error(
                planned.at,
                f"the name {planned.name} is taken by a section of qmq's own",
                f"write {planned.text}:{planned.name}1",
            )
            continue
        if planned.name == "run" or re.fullmatch(r"primary-[0-9]+", planned.name):
            findings.error(
                planned.at,
                f"the name {planned.name} is taken by a folder of qmq's own below spool",
                f"write {planned.text}:{planned.name.replace('-', '')}1",
            )
        try:
            word(planned.name)  # it names a folder and a section
        except BadValue as bad:
            findings.error(planned.at, str(bad), bad.remedy)
        if planned.number + conf.general.base > 65535:
            findings.error(
                planned.at,
                f"port {conf.general.base} + {planned.number} is more than 65535",
                f"write a number up to {65535 - conf.general.base}",
            )


def _sections(conf: Conf, document: Document, findings: Findings) -> None:
    names = [planned.name for planned in document.plan] + [old for old, _, _ in retired.words(document)]
    checks = [name for name, _ in conf.primary.checks]
    for name, section in document.sections.items():
        if name in {"qmq", "primary", "instances"} or name in names or clients.is_section(name):
            continue
        if name.startswith("check "):
            if name.removeprefix("check ") not in checks:
                findings.warning(section.at, f"[{name}] is not used", "name it in checks = of [primary]")
            continue
        close = get_close_matches(name, [*names, "qmq", "primary", "instances"], 1, 0.6)
        remedy = f"do you mean [{close[0]}]?" if close else f"write NUMBER:{name} into [instances], or cut it"
        findings.error(section.at, f"[{name}] is no instance of [instances]", remedy)


def _roles(conf: Conf, document: Document, findings: Findings) -> None:
    for role in ("bounce", "storm"):
        several = [instance for instance in conf.instances if instance.role == role]
        for instance in several[1:]:
            findings.error(
                place(conf, instance, "role"),
                f"{several[0].name} has role = {role} already",
                "one is enough: cut this one",
            )
    if conf.general.relay and conf.default is None:
        findings.warning(
            conf.places.get("qmq.relay", document.whole),
            "relay clients can send to the listed domains only",
            "for all others give an instance `domains = *`",
        )
    if conf.instances and not any(instance.domains for instance in conf.instances):
        findings.warning(
            document.whole,
            "no domain is anybody's: all mail is refused",
            "write domains = example.org into an instance's section",
        )
        return
    for instance in conf.instances:
        if not instance.domains and instance.role == "normal":
            findings.warning(
                place(conf, instance),
                f"{instance.name} has no domains and gets no mail",
                f"write domains = example.org into [{instance.name}]",
            )


def _owners(conf: Conf, findings: Findings) -> None:
    owners: dict[bytes, Instance] = {}
    for instance in conf.instances:
        for pattern in instance.domains:
            owner = owners.setdefault(pattern, instance)
            if owner is not instance:
                text = pattern.decode()
                first = conf.places[f"{owner.name} domain {text}"]
                at = conf.places[f"{instance.name} domain {text}"]
                findings.error(
                    at, f"{text} belongs to {owner.name} already ({first.place})", "a domain has one instance"
                )


def _hops(conf: Conf, findings: Findings) -> None:
    """A customer's MX usually is this gateway: mail would come back."""
    for instance in conf.instances:
        explicit = [d for d in instance.domains if d != b"*" and instance.route(d) is None]
        if (
            explicit
            and instance.role == "normal"
            and f"{instance.name}.deliver" not in conf.places
            and not instance.default
        ):
            at = conf.places[f"{instance.name} domain {explicit[0].decode()}"]
            findings.warning(
                at,
                f"{explicit[0].decode()} is delivered to its MX, which may be this gateway",
                f"write deliver = smtp:HOST into [{instance.name}], or deliver = mx if that is meant",
            )


def _handovers(conf: Conf, findings: Findings) -> None:
    for instance in conf.instances:
        handover = instance.handover
        if handover.host or handover.protocol == "qmtp":
            continue
        at = place(conf, instance, "handover")
        if handover.protocol == "lmtp":
            findings.error(at, "an instance of this machine takes no LMTP", "write qmtp or smtp, or lmtp:HOST:PORT")
        elif instance.qmtp_listen is None:
            findings.error(
                at, "a hand-over by SMTP needs a port", "write qmtp-listen = 127.0.0.1:PORT, or cut the none"
            )


def _stores(conf: Conf, findings: Findings) -> None:
    owners: dict[str, Instance] = {}
    for instance in conf.instances:
        owner = owners.setdefault(os.path.realpath(instance.spool), instance)
        if owner is not instance:
            findings.error(
                place(conf, instance, "spool"),
                f"{instance.spool} is {owner.name}'s store",
                "give each instance a folder of its own",
            )
    root = os.path.realpath(conf.general.spool)
    ours = [root, *(os.path.join(root, name) for name in ("primary", "run"))]
    for folder, instance in owners.items():
        above = list(_above(folder))
        taken = [f"{name}, which is {owners[name].name}'s store" for name in above if name in owners]
        taken += [f"{name}, which is qmq's own" for name in ours[1:] if folder == name or name in above]
        taken += [f"{root}, which has all stores" for _ in range(folder == root)]
        if taken:
            at = place(conf, instance, "spool")
            findings.error(at, f"{instance.spool} is in {taken[0]}", "give each instance a folder of its own")


def _above(folder: str) -> Iterator[str]:
    while (parent := os.path.dirname(folder)) != folder:
        yield (folder := parent)


def _ports(conf: Conf, document: Document, findings: Findings) -> None:
    taken: dict[int, list[tuple[str, Listen]]] = {}
    for name, at, listen in _listening(conf, document):
        others = taken.setdefault(listen[1], [])
        if (other := next((name for name, theirs in others if _clash(listen, theirs)), None)) is not None:
            findings.error(at, f"{name} and {other} both listen on port {listen[1]}", "give one another port")
        others.append((name, listen))


def _clash(one: Listen, other: Listen) -> bool:
    """Of two on one port: whether they have an address in common (`::` may be every IPv4 address too)."""
    hosts = {one[0] or "0.0.0.0", other[0] or "0.0.0.0"}
    everywhere = "::" in hosts or ("0.0.0.0" in hosts and not any(":" in host for host in hosts))
    return len(hosts) == 1 or everywhere


def _listening(conf: Conf, document: Document) -> Iterator[tuple[str, Written, Listen]]:
    for listen in conf.primary.listen:
        yield "primary", conf.places.get("primary.listen", document.whole), listen
    for instance in conf.instances:
        if instance.qmtp_listen is not None and not instance.handover.host:
            yield instance.name, place(conf, instance, "qmtp-listen"), instance.qmtp_listen


def _lifetimes(conf: Conf, findings: Findings) -> None:
    for instance in conf.instances:
        if instance.lifetime < 3600 and not instance.retired:
            at = place(conf, instance, "lifetime")
            remedy = "qmail's number is in seconds: 86400 is a day" if at.classic else "24h is a day"
            findings.warning(at, f"mail is given up after {duration_text(instance.lifetime)}", remedy)


def _overflows(conf: Conf, findings: Findings) -> None:
    """Mail that overflows comes to an instance that takes it, and does not go round."""
    takers = [i.name for i in conf.instances if i.role in {"storm", "normal"}]
    takers.sort(key=lambda name: conf.instance(name).role != "storm")  # that is what one is for
    for instance in conf.instances:
        if not (name := instance.overflow):
            continue
        at = place(conf, instance, "overflow")
        others = [taker for taker in takers if taker != instance.name]
        remedy = f"write overflow = {others[0]}, or cut this line" if others else "cut this line"
        target = conf.instance(name) if name in conf else None
        if target is None:
            close = get_close_matches(name, others, 1, 0.6)
            what, remedy = "is no instance", f"do you mean {close[0]}?" if close else remedy
        elif target is instance:
            what = "is this instance itself"
        elif target.retired:
            what = "is retired and takes no mail"
        elif target.role == "bounce":
            what = "sends the bounces of all, and they would wait behind this mail"
        elif _first_of_circle(conf, instance):
            what, remedy = f"leads back to {instance.name}", "cut one of these lines"
        else:
            continue
        findings.error(at, f"overflow: {name} {what}", remedy)


def _filters(conf: Conf, findings: Findings) -> None:
    """A filter is there, and its answer comes before the primary gives the hand-over up."""
    for instance in conf.instances:
        if not instance.filter or instance.handover.host:
            continue
        try:
            argv(instance.filter, os.path.dirname(conf.path))
        except ValueError as error:
            findings.error(
                place(conf, instance, "filter"), f"filter: {error}", "write the program's path, then its words"
            )
        most = conf.primary.handover_time
        if instance.filter_time >= most:
            at = place(conf, instance, "filter-time")
            said = duration_text(most)
            findings.error(at, f"filter-time: a hand-over is given up after {said}", f"write less than {said}")


def _first_of_circle(conf: Conf, start: Instance) -> bool:
    """Whether overflows from *start* lead back to it; of a circle one is told, the first of [instances]."""
    names = [start.name]
    while (name := conf.instance(names[-1]).overflow) and name in conf and name not in names:
        names.append(name)
    return name == start.name and start is next(i for i in conf.instances if i.name in names)


def _bounds(conf: Conf, findings: Findings) -> None:
    """Limits that do not do what somebody means by them."""
    if conf.primary.processes > 1 and not conf.general.workers:
        findings.error(
            conf.places["primary.processes"],
            f"processes: with workers = 0 everything is in one process, not in {conf.primary.processes}",
            "write workers = 1 or more into [qmq], or cut this line",
        )
    for instance in conf.instances:
        if instance.retired:
            continue
        if instance.limit_age is not None and instance.limit_age < 60:
            text = f"{instance.name} takes no mail once a message is {duration_text(instance.limit_age)} old"
            remedy = "a message that is deferred once is older: write 1h or more"
            findings.warning(place(conf, instance, "limit-age"), text, remedy)
        for key in ("memory", "files"):
            if instance.process != "own" and (at := conf.places.get(f"{instance.name}.{key}")) is not None:
                findings.warning(
                    at,
                    f"{key} does not count: {instance.name} shares its worker",
                    f"write process = own too, or worker-{key} into [qmq]",
                )


def _certificate(conf: Conf, findings: Findings) -> None:
    primary = conf.primary
    if primary.key and not primary.certificate:
        findings.error(conf.places["primary.key"], "a key without a certificate", "write certificate = PATH too")
    for key, path in (("certificate", primary.certificate), ("key", primary.key)):
        at = conf.places.get(f"primary.{key}")
        if path and at is not None and _missing(path):
            findings.error(at, f"{key}: there is no file {path}", "put the PEM file there, or cut this line")


def _missing(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # a key is root's alone: after the start we may not even look
    return False


def verify_rcpthosts(conf: Conf, rows: list[Written] | None, folder: Folder, findings: Findings) -> None:
    """Each domain of rcpthosts is somebody's; qmail would have looked up its MX, or delivered it here."""
    local = {row.text.lower() for row in folder.rows("locals") or ()}
    for row in rows or ():
        if conf.instance_for(row.text.encode()) is not None:
            continue
        if row.text in local:
            findings.warning(
                row,
                f"{row.text} was delivered on this machine: its mail is refused here",
                f"give it an instance, by {row.text}:127.0.0.1:1000+NUMBER in qmtproutes",
            )
        else:
            findings.error(
                row,
                f"no instance delivers mail for {row.text}",
                f"write {row.text}:127.0.0.1:1000+NUMBER into qmtproutes, or make an instance the default",
            )


def verify_ground(conf: Conf, document: Document, findings: Findings, here: Ground) -> None:
    """Whether this account may open the ports, and whom it can become."""
    user = conf.general.user
    low = [(name, at, listen[1]) for name, at, listen in _listening(conf, document) if listen[1] < _PRIVILEGED]
    at_user = conf.places.get("qmq.user", document.whole)
    if user and here.root and user not in here.accounts:
        findings.error(at_user, f"there is no account {user}", f"create it (useradd --system {user}), or name another")
    if user and not here.root and user != here.account:
        findings.warning(
            at_user, "only root can become another account: user is not used", "start it as root, or cut this line"
        )
    for name, at, port in low:
        if port < here.lowest_port:
            findings.error(
                at,
                f"{name} listens on port {port}, which needs root",
                "start it as root with user = ACCOUNT in [qmq], or write a port from 1024 on",
            )
    if here.root and not user:
        if low:
            findings.error(
                low[0][1],
                f"port {low[0][2]} is opened as root, and then everything would run as root",
                "write user = ACCOUNT into [qmq]",
            )
        else:
            findings.warning(document.whole, "runs as root", "write user = ACCOUNT into [qmq]")


def place(conf: Conf, instance: Instance, key: str = "") -> Written:
    """Where an instance's setting was said; if nowhere, where the instance was."""
    return conf.places.get(f"{instance.name}.{key}") or conf.places[f"{instance.name}."]
