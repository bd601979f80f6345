"""
The classic way to say which domain is whose: smtproutes, qmtproutes, rcpthosts (SPAMCONTROL 1.3, 1.6, 1.8).

In the primary's files a loopback route to port 1000 + NN gives the domain to
instance NN, and the key ``!@`` marks the instance for bounces. All other
routes are routes of the default instance, which then owns their domains. In
an instance's own files every route is its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from qmq.conf.control import Folder
from qmq.conf.units import BadValue, domain_pattern, host_port
from qmq.conf.written import Findings, Written

CLASSIC_BASE = 1000
_BOUNCES = "!@"
_PORTS = {"qmtp": 209, "smtp": 25}


@dataclass(frozen=True, slots=True)
class Route:
    """``key:host:port``. *key*: a domain, a suffix with its dot, "" for all, or ``!@``; no host: the domain's MX."""

    at: Written
    protocol: str
    key: str
    host: str
    port: int

    @property
    def pattern(self) -> str:
        """The key as `domains` says it."""
        return self.key or "*"

    @property
    def loopback(self) -> bool:
        """Whether it stays on this machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def site(self, base: int, numbers: Collection[int]) -> str:
        """The next hop in conf-qmq's words; another instance's classic port becomes the one it has."""
        if not self.host:
            return "mx"
        number = self.instance(base, numbers)
        port = self.port if number is None else base + number
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}:{host}" + ("" if port == _PORTS[self.protocol] else f":{port}")

    def instance(self, base: int, numbers: Collection[int]) -> int | None:
        """The number of the instance meant."""
        if self.loopback:
            for number in (self.port - CLASSIC_BASE, self.port - base):
                if number in numbers:
                    return number
        return None


def routes(folder: Folder, findings: Findings) -> list[Route]:
    """All routes of a folder, qmtproutes first: at an equal key QMTP wins."""
    return [
        route
        for protocol in ("qmtp", "smtp")
        for row in folder.rows(protocol + "routes") or ()
        if (route := _route(row, protocol, findings)) is not None
    ]


def _route(row: Written, protocol: str, findings: Findings) -> Route | None:
    key, colon, relay = row.text.partition(":")
    if not colon:
        findings.warning(row, f"{row.text!r} has no colon and is no route, as in qmail", "write DOMAIN:HOST:PORT")
        return None
    key = key.strip().lower()
    where, bar, _ = relay.strip().partition("|")
    if bar:
        findings.error(row, "a route with a user and password is not supported", "deliver by a host that asks for none")
        return None
    if not where:
        if protocol == "qmtp":
            # The original spoke QMTP to the MX hosts then, or even to the next SMTP route.
            findings.error(row, "a route in qmtproutes needs a host", "write DOMAIN:HOST:PORT, or use smtproutes")
            return None
        return Route(row, protocol, key, "", 0)
    try:
        if key and key != _BOUNCES:
            key = domain_pattern(key).decode()
        host, port = host_port(re.sub(r";([0-9]+)$", r":\1", _bracketed(where)), _PORTS[protocol])
    except BadValue as bad:
        findings.error(row, str(bad), "write DOMAIN:HOST:PORT")
        return None
    return Route(row, protocol, key, host, port)


def _bracketed(where: str) -> str:
    """``2001:db8::1;209``, as s/qmail writes it, with brackets."""
    host, semicolon, port = where.partition(";")
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{host}]{semicolon}{port}"
    return where


@dataclass(slots=True)
class Shares:
    """What the primary's files say: domains by instance number, what is left for the default, who bounces."""

    domains: dict[int, list[Written]] = field(default_factory=dict)
    elsewhere: list[Route] = field(default_factory=list)
    bounces: dict[int, Written] = field(default_factory=dict)


def share_out(primary: list[Route], base: int, numbers: Collection[int], findings: Findings) -> Shares:
    """The primary's routes, each to the instance it means."""
    shares = Shares()
    for route in _effective(primary):
        number = route.instance(base, numbers)
        if route.key == _BOUNCES:
            if number is None:
                findings.warning(route.at, "bounces are not sent to a host", "mark an instance: role = bounce")
            else:
                shares.bounces.setdefault(number, route.at)
        elif number is not None:
            at = route.at
            shares.domains.setdefault(number, []).append(Written(at.path, at.line, route.pattern, classic=True))
        elif route.loopback and (route.protocol == "qmtp" or CLASSIC_BASE <= route.port < CLASSIC_BASE + 100):
            number = route.port - CLASSIC_BASE
            findings.error(
                route.at,
                f"port {route.port} of this machine is no instance's",
                f"write {number:02}:NAME into conf-qmq" if number >= 0 else "write 1000 + its number",
            )
        else:
            shares.elsewhere.append(route)
    return shares


def _effective(primary: list[Route]) -> Iterator[Route]:
    """Without those in smtproutes whose key is in qmtproutes as well: they are never looked at."""
    by_qmtp = {route.key for route in primary if route.protocol == "qmtp"}
    return (route for route in primary if route.protocol == "qmtp" or route.key not in by_qmtp)


def own_routes(folder: Folder, base: int, numbers: Collection[int], findings: Findings) -> tuple[list[Route], Shares]:
    """An instance's own: its routes, and whom its ``!@`` marks."""
    shares = Shares()
    mine = []
    for route in routes(folder, findings):
        if route.key != _BOUNCES:
            mine.append(route)
        elif (number := route.instance(base, numbers)) is not None:
            shares.bounces.setdefault(number, route.at)
        else:
            findings.warning(route.at, "bounces are not sent to a host", "mark an instance: role = bounce")
    return mine, shares


def rcpthosts(folder: Folder, findings: Findings) -> list[Written] | None:
    """Rcpthosts and morercpthosts together; None if there is no rcpthosts."""
    rows = folder.rows("rcpthosts")
    if rows is None:
        return None
    wanted = []
    for row in [*rows, *(folder.rows("morercpthosts") or ())]:
        try:
            text = domain_pattern(row.text.strip()).decode()
        except BadValue as bad:
            findings.error(row, str(bad), "write example.org, .example.org")
            continue
        if text == "*":
            findings.error(row, "'*' would accept mail for every domain", "list the domains")
            continue
        wanted.append(Written(row.path, row.line, text, classic=True))
    return wanted
