"""
conf-qmq and the classic folders beside it, to one Conf: ``load(path)``.

What decides, from strong to weak: the section in conf-qmq, the instance's
classic folder, for instances the primary's classic folder, the table's
default. Nothing stops at the first error; ConfErrors has them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmq.conf import checks, clients, control, retired, routes, verify
from qmq.conf.control import Folder
from qmq.conf.ground import Ground, ground
from qmq.conf.model import Conf, General, Instance, Primary
from qmq.conf.read import Document, Planned, read
from qmq.conf.routes import CLASSIC_BASE, Route, Shares
from qmq.conf.settings import RESERVED, TABLES, Setting, find, line, nearest, path, site, word
from qmq.conf.units import BadValue, address_or_nothing
from qmq.conf.words import WORDS
from qmq.conf.written import Findings, Written, in_order

_BASE = 11000  # an ordinary user can bind from here on
_BAD = object()


def load(conf_path: str, here: Ground | None = None, *, rules: bool = True) -> Conf:
    """
    The configuration of that file; ConfErrors if it cannot be used.

    *here* is what machine and account allow; by default they are asked. With
    *rules* every check is made once, without its doing anything, so that the
    errors in its file of rules are told too; who only looks something up may
    do without.
    """
    findings = Findings()
    document = read(os.path.abspath(conf_path), findings)
    if not (document.plan or document.sections):
        findings.raise_errors()  # nothing could be read: what else would be told follows from that
    conf = _Builder(document, findings, here).conf()
    verify.verify(conf, document, findings)
    if rules:
        clients.verify(conf, findings)
        checks.verify(conf, document, findings)
    findings.raise_errors()
    return Conf(conf.path, conf.general, conf.primary, conf.instances, in_order(findings.warnings), conf.places)


@dataclass(slots=True)
class _Beginning:
    """What is known of an instance before its values are read."""

    planned: Planned
    folder: Folder
    written: dict[str, Written]
    domains: list[Written] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)


class _Builder:
    """Holds what every step needs: the document, the findings, who decided what."""

    def __init__(self, document: Document, findings: Findings, here: Ground | None) -> None:
        self._document = document
        self._findings = findings
        self._folder = os.path.dirname(document.path)
        general = self._section("qmq")
        self._here = here or ground(general["user"].text if "user" in general else "")
        self._places: dict[str, Written] = {}
        self._plan = {p.number: p for p in reversed(document.plan)}  # the first of a number counts
        self._base = _BASE

    def conf(self) -> Conf:
        """All steps, in order."""
        self._check_keys()
        general_written = self._section("qmq")
        said = general_written.get("control", Written("", 0, "control"))
        folder = Folder(os.path.join(self._folder, said.text), self._findings)
        primary_routes = routes.routes(folder, self._findings)
        general = self._general(general_written, folder, primary_routes)
        shares = routes.share_out(primary_routes, self._base, self._plan, self._findings)
        beginnings = [
            self._beginning(planned) for planned in self._document.plan if self._plan[planned.number] is planned
        ]
        inherited = control.instance_settings(folder, self._findings, general.me, own=False)
        for beginning in beginnings:
            self._own_files(beginning, shares, inherited, general.me)
        self._elsewhere(beginnings, shares)
        rcpthosts = routes.rcpthosts(folder, self._findings)
        primary = self._primary(folder, general, beginnings, rcpthosts, shares)
        instances = tuple(self._instance(beginning, general, primary) for beginning in beginnings)
        instances += tuple(retired.retire(general.retired, instances, general.spool, self._of_retired))
        control.say_what_is_not_here(folder, self._findings)
        conf = Conf(self._document.path, general, primary, instances, (), self._places)
        verify.verify_ground(conf, self._document, self._findings, self._here)
        verify.verify_rcpthosts(conf, rcpthosts, folder, self._findings)
        return conf

    def _section(self, name: str) -> dict[str, Written]:
        section = self._document.sections.get(name)
        return section.settings if section else {}

    def _check_keys(self) -> None:
        names = {planned.name for planned in self._document.plan}
        for name, section in self._document.sections.items():
            kind = name if name in {"qmq", "primary"} else "instance"
            if name == "instances" or name.startswith("check ") or (kind == "instance" and name not in names):
                continue  # unknown sections are told by verify, those of clients by clients
            for key, at in section.settings.items():
                if find(kind, key) is None and not (kind == "primary" and key in WORDS):
                    self._findings.error(at, f"[{name}] knows no {key}", nearest(kind, key))

    def _general(self, written: Mapping[str, Written], folder: Folder, primary_routes: list[Route]) -> General:
        merged = dict(written)
        if "me" not in merged and (me := folder.first("me")) and me.text:
            merged["me"] = me
        values = self._values("qmq", "qmq", merged)
        if not values["me"]:
            if "me" not in merged:
                self._findings.error(
                    self._document.whole,
                    "who is this? there is no me",
                    "write me = mx.example.org into [qmq], or the name into control/me",
                )
            values["me"] = "localhost"
        if values["workers"] is None:
            values["workers"] = max(1, self._here.cores - 1)
        values["base"] = self._base = self._port_base(values["base"], primary_routes)
        values["user"] = values["user"] or self._classic_user()
        if not folder:
            if "control" in written:
                self._findings.error(
                    written["control"], f"there is no folder {folder.path}", "create it or cut this line"
                )
            values["control"] = ""
        return General(**values)

    def _port_base(self, said: int | None, primary_routes: Iterable[Route]) -> int:
        if said is not None:
            return said
        classic = [r for r in primary_routes if r.loopback and r.port - CLASSIC_BASE in self._plan]
        if not classic:
            return _BASE
        lowest = CLASSIC_BASE + min(self._plan)
        if lowest >= self._here.lowest_port:
            return CLASSIC_BASE
        self._findings.warning(
            classic[0].at,
            f"port {lowest} needs root: QMTP ports are {_BASE} + number here, hand-overs follow by themselves",
            "start as root with user = ACCOUNT in [qmq], or write base = 11000 there",
        )
        return _BASE

    def _classic_user(self) -> str:
        """A classic file cannot say `user`: root becomes qmq or qmails, whichever is there."""
        if not self._document.classic:
            return ""
        if not self._here.root:
            return self._here.account
        user = next((name for name in ("qmq", "qmails") if name in self._here.accounts), "")
        if user:
            self._findings.warning(
                self._document.whole, f"runs as {user} once its ports are open", "say user = ACCOUNT in [qmq]"
            )
        return user

    def _beginning(self, planned: Planned) -> _Beginning:
        written = self._section(planned.name) if planned.name not in RESERVED else {}
        folder = Folder(os.path.join(self._folder, f"control-{planned.text}"), self._findings)
        if "home" in written:
            home = os.path.join(self._folder, written["home"].text)
            folder = Folder(os.path.join(home, "control"), self._findings)
            if not folder:
                self._findings.error(
                    written["home"], f"there is no folder {folder.path}", "home = qmail's folder, with control/ in it"
                )
        elif not folder:
            folder = Folder(os.path.join(f"{self._folder}-{planned.text}", "control"), self._findings)
        return _Beginning(planned, folder, written)

    def _own_files(self, beginning: _Beginning, shares: Shares, inherited: Mapping[str, Written], me: str) -> None:
        """Domains, routes and settings of its classic folder, under what its section says."""
        planned, folder, said = beginning.planned, beginning.folder, beginning.written
        own = control.instance_settings(folder, self._findings, me, own=True)
        beginning.written = {**inherited, **own}
        if planned.bind:
            beginning.written["bind"] = Written(planned.at.path, planned.at.line, planned.bind)
        beginning.written.update(said)
        beginning.domains = [*said["domains"].words()] if "domains" in said else []
        beginning.domains += shares.domains.get(planned.number, [])
        if not beginning.domains:
            beginning.domains = routes.rcpthosts(folder, self._findings) or []
        beginning.routes, marked = routes.own_routes(folder, self._base, self._plan, self._findings)
        for number, at in marked.bounces.items():
            shares.bounces.setdefault(number, at)

    def _elsewhere(self, beginnings: list[_Beginning], shares: Shares) -> None:
        """The primary's routes to other hosts are the default's; whom ``!@`` marks is the bounce instance."""
        default = next((b for b in beginnings if any(w.text == "*" for w in b.domains)), None)
        for route in shares.elsewhere:
            owner = next((b for b in beginnings if any(w.text == route.pattern for w in b.domains)), default)
            if owner is None:
                self._findings.error(
                    route.at,
                    f"no instance delivers to {route.host or 'that domain'}",
                    "make one the default: `domains = *`, or `:127.0.0.1:1080` in qmtproutes",
                )
                continue
            owner.routes.append(route)
            if owner is default and route.key:
                owner.domains.append(Written(route.at.path, route.at.line, route.pattern, classic=True))
        for beginning in beginnings:
            if (at := shares.bounces.get(beginning.planned.number)) is not None:
                beginning.written.setdefault("role", Written(at.path, at.line, "bounce", (at.line,), classic=True))

    def _primary(
        self, folder: Folder, general: General, beginnings: list[_Beginning], rows: list[Written] | None, shares: Shares
    ) -> Primary:
        said = self._section("primary")
        classic = control.settings(folder, control.PRIMARY, self._findings)
        values = self._values("primary", "primary", {**classic, **said})
        if "rcpthosts" not in said:
            values["rcpthosts"] = self._rcpthosts(folder, beginnings, rows, shares)
        ours = (word.text for b in beginnings for word in b.domains if not word.classic and word.text != "*")
        values["said_hosts"] = None if "rcpthosts" in said else tuple(text.encode() for text in ours)
        values["checks"] = tuple((name, self._options(name)) for name in values["checks"])
        values["greeting"] = values["greeting"] or general.me
        values["localiphost"] = values["localiphost"] or general.me
        values["rules"] = clients.rules_path(
            said["rules"].text if "rules" in said else "", self._folder, general.control
        )
        found = clients.read(self._document, values["listen"], self._findings)
        values.update(environment=found.everywhere, listeners=found.listeners, clients=found.clients)
        values["process"] = self._here.environment
        values["key"] = values["key"] or values["certificate"]
        return Primary(**values)

    def _rcpthosts(
        self, folder: Folder, beginnings: list[_Beginning], rows: list[Written] | None, shares: Shares
    ) -> tuple[bytes, ...] | None:
        """What strangers may send to, if that is not simply the domains of all instances (None)."""
        domains = [word for b in beginnings for word in b.domains if word.text != "*"]
        if rows is not None:
            listed = [row.text for row in rows] + [word.text for word in domains if not word.classic]
            return tuple(text.encode() for text in dict.fromkeys(listed))
        if any(word.classic for word in domains):
            self._findings.warning(
                folder.place("rcpthosts"),
                "there is none: mail is taken for the domains of instances only",
                "list in it what strangers may send to (qmail would have relayed everything)",
            )
        # A route to another host does not make its domain ours: only relay clients may send there.
        hosts = {route.pattern for route in shares.elsewhere}
        if not hosts:
            return None
        return tuple(word.text.encode() for word in domains if not word.classic or word.text not in hosts)

    def _options(self, check: str) -> dict[str, str]:
        return {key: at.text for key, at in self._section(f"check {check}").items()}

    def _instance(self, beginning: _Beginning, general: General, primary: Primary) -> Instance:
        planned, name = beginning.planned, beginning.planned.name
        values = self._values("instance", name, beginning.written)
        self._places[f"{name}."] = planned.at
        values["domains"] = self._domains(beginning)
        values["routes"] = (*self._said_routes(name, values.pop("route")), *self._classic_routes(beginning))
        values["deliver"] = b" ".join(values["deliver"])
        values["bouncehost"] = values["bouncehost"] or general.me
        values["helohost"] = values["helohost"] or general.me
        values["spool"] = values["spool"] or os.path.join(general.spool, name)
        values["reserve"] = primary.reserve if values["reserve"] is None else values["reserve"]
        # None is a value of theirs: no bound.
        values["memory"] = values["memory"] if "memory" in beginning.written else general.worker_memory
        values["files"] = values["files"] if "files" in beginning.written else general.worker_files
        if not beginning.written.get("doublebounceto"):
            values["doublebounceto"] = f"postmaster@{general.me}"
        if "qmtp-listen" not in beginning.written:
            values["qmtp_listen"] = ("127.0.0.1", general.base + planned.number)
        values["home"] = os.path.dirname(beginning.folder.path) if beginning.folder else ""
        return Instance(id=planned.text, number=planned.number, name=name, **values)

    def _of_retired(self, name: str) -> Mapping[str, Any]:
        """What the section of a retired instance says; its place is that of the word that retires it."""
        self._places[f"{name}."] = next(at for old, _, at in retired.words(self._document) if old == name)
        return self._values("instance", name, retired.still_said(self._section(name)))

    def _domains(self, beginning: _Beginning) -> tuple[bytes, ...]:
        found: list[bytes] = []
        parse = find("instance", "domains")
        assert parse is not None
        for at in beginning.domains:
            try:
                pattern: bytes = parse.parse(at.text)
            except BadValue:
                continue  # told when the setting was read
            self._places.setdefault(f"{beginning.planned.name} domain {pattern.decode()}", at)
            found.append(pattern)
        return tuple(dict.fromkeys(found))

    def _said_routes(self, name: str, said: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
        for row in self._section(name)["route"].words() if "route" in self._section(name) else ():
            key = row.text.partition("=")[0].lower().removesuffix(".")
            self._places.setdefault(f"{name} route {'' if key == '*' else key}", row)
        return said

    def _classic_routes(self, beginning: _Beginning) -> Iterable[tuple[bytes, bytes]]:
        for route in beginning.routes:
            try:
                hop = site(route.site(self._base, self._plan))
            except BadValue as bad:
                self._findings.error(route.at, str(bad), bad.remedy)
                continue
            self._places.setdefault(f"{beginning.planned.name} route {route.key}", route.at)
            yield route.key.encode(), hop

    def _values(self, kind: str, section: str, written: Mapping[str, Written]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for setting in TABLES[kind]:
            value = None
            if (at := written.get(setting.key)) is not None:
                self._places[f"{section}.{setting.key}"] = at
                value = self._value(setting, at)
            elif setting.default or setting.each:
                value = self._read(setting, setting.default)
            elif setting.parse in {path, str, line, word, address_or_nothing}:
                value = ""
            if setting.parse is path and value:
                value = os.path.join(self._folder, value)
            values[setting.field] = value
        if values.get("log", "-") != "-":
            values["log"] = os.path.join(self._folder, values["log"])
        return values

    @staticmethod
    def _read(setting: Setting, text: str) -> Any:
        if setting.each:
            return tuple(setting.parse(word) for word in text.split())
        return setting.parse(text) if text else None

    def _value(self, setting: Setting, at: Written) -> Any:
        """What is written; the default if it cannot be read, so that the rest can be looked at too."""
        if setting.each:
            return tuple(value for word in at.words() if (value := self._one(setting, word)) is not _BAD)
        value = self._one(setting, Written(at.path, at.line, " ".join(at.text.split("\n")), classic=at.classic))
        return self._read(setting, setting.default) if value is _BAD else value

    def _one(self, setting: Setting, at: Written) -> Any:
        try:
            value = setting.parse(at.text)
        except BadValue as bad:
            self._findings.error(at, f"{setting.key}: {bad}", bad.remedy)
            return _BAD
        low = setting.floor is not None and value is not None and value < setting.floor
        high = setting.ceiling is not None and value is not None and value > setting.ceiling
        if low or high:
            bound = setting.text(setting.floor if low else setting.ceiling)
            text = f"{setting.key}: {at.text} is {'less' if low else 'more'} than {bound}"
            if at.classic:
                self._findings.warning(at, f"{text}; it is taken as it is", f"{bound} would be in bounds")
            else:
                self._findings.error(at, text, f"write {bound}{' or more' if low else ' or less'}")
        return value
