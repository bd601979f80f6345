"""
Senders whom we take nothing from: control/badmailfrom (SPAMCONTROL 2.8).

Beside addresses, ``@domain`` and the patterns of qmq.rules.wildmat a line may be

- ``?address``: never refused here, nor for want of its domain in DNS;
- ``@domain+``: refused from clients that may not relay: our own domain;
- ``@domain-``: refused from clients without a name in DNS;
- ``@domain=``: refused from clients whose name is not within the domain;
- ``~suffix``: clients whose name is within it may send in its name only.

``+``, ``-`` and ``=`` may stand behind a whole address too. Names are compared
by whole labels, and in any case. Such a line is no pattern also, as it is in the
original; one with a special octet of patterns in it is nothing but a pattern.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmq.mail import Address
from qmq.rules.watched import lines
from qmq.rules.wildmat import Rules, Walk, plain

UNKNOWN = "unknown"  # the name of a client that has none in DNS
_CONDITIONS = frozenset({b"+", b"-", b"="})


class BadMailFrom:
    """The rules of one file; *path* is for complaints. Raises BadLine."""

    __slots__ = ("_exempt", "_listed", "_own_hosts", "_walk", "empty")

    def __init__(self, rules: Rules, path: str) -> None:
        exempt: set[bytes] = set()
        own_hosts: set[bytes] = set()
        self._listed: dict[bytes, str] = {}  # an address, or @domain: the conditions under which it is refused
        patterns: list[tuple[int, bytes]] = []
        for number, line in rules:
            key, mark = line.lower(), line[:1]
            if mark == b"?" and mark + b"@" != line[:2] and plain(key[1:]):
                exempt.add(key[1:])
            elif mark == b"~" and plain(key):
                own_hosts.add(key[1:])
            elif mark != b"!" and b"@" in key and key[-1:] in _CONDITIONS and plain(key):
                self._list(key[:-1], chr(key[-1]))
            else:
                if mark != b"!":
                    self._list(key, "@")
                patterns.append((number, line))
        self._exempt = frozenset(exempt)
        self._own_hosts = frozenset(own_hosts)
        self._walk = Walk(patterns, path)
        self.empty = not (self._listed or own_hosts or patterns)  # nobody is refused

    def _list(self, key: bytes, condition: str) -> None:
        self._listed[key] = self._listed.get(key, "") + condition

    def exempts(self, sender: Address) -> bool:
        """Whether the sender is in the file behind a question mark."""
        return bool(self._exempt) and bytes(sender).lower() in self._exempt

    def condition(self, sender: Address, host: str, relay: bool) -> str:
        """
        Why mail of *sender* is refused: one of ``+ - = ~ @ *``; empty: it is not.

        *host* is the client's name in DNS, or UNKNOWN; *relay*: it may send anywhere.
        """
        if self.empty:
            return ""
        raw = sender.local + b"@" + sender.domain if sender.domain else sender.local
        key = raw.lower()
        if key in self._exempt:
            return ""
        listed = self._listed
        if (conditions := listed.get(key, "") + listed.get(b"@" + sender.domain, "")) and (
            why := _first(conditions, sender.domain, host, relay)
        ):
            return why
        if self._own_hosts and raw and host != UNKNOWN and self._foreign(sender.domain, host.lower().encode()):
            return "~"
        if "@" in conditions:
            return "@"
        return "*" if self._walk.refuses(raw) else ""

    def _foreign(self, domain: bytes, host: bytes) -> bool:
        """Whether a suffix of *host* is listed that *domain* has no part in."""
        for suffix in suffixes(host):
            if suffix in self._own_hosts:
                # Within a suffix of one label everybody is: it asks for the host's own domain.
                shared = b"." in suffix and within(domain, suffix)
                if not (shared or within(domain, host) or within(host, domain)):
                    return True
        return False


def _first(conditions: str, domain: bytes, host: str, relay: bool) -> str:
    """The first of + - = that holds."""
    if "+" in conditions and not relay:
        return "+"
    if host == UNKNOWN:
        return "-" if "-" in conditions else ""
    return "=" if "=" in conditions and not within(host.lower().encode(), domain) else ""


def within(name: bytes, domain: bytes) -> bool:
    """Whether *name* is *domain* or stands under it."""
    return name == domain or (bool(domain) and name.endswith(b"." + domain))


def suffixes(name: bytes) -> Sequence[bytes]:
    """The name, and what is left of it behind each dot."""
    found = []
    while name:
        found.append(name)
        name = name.partition(b".")[2]
    return found


def read_badmailfrom(path: str) -> BadMailFrom:
    """The rules in the file at *path*; raises OSError and BadLine. To be given to Context.watch."""
    return BadMailFrom(lines(path), path)


NOBODY = BadMailFrom((), "")
