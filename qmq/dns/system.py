"""What the system knows of names: /etc/hosts and /etc/resolv.conf, read again when they change."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from qmq.dns.query import Server
from qmq.mail import Octets, Seconds, value

T = TypeVar("T")

# A file is looked at no more often than this.
_LOOK: Seconds = 5
_LONGEST_FILE: Octets = 1 << 20


class SystemFile(Generic[T]):
    """A small file of the system, parsed, and read again when it changed; one that can't be read is empty."""

    def __init__(self, path: str, parse: Callable[[str], T], clock: Callable[[], Seconds]) -> None:
        self._path = path
        self._parse = parse
        self._clock = clock
        self._looked: Seconds | None = None
        self._version: tuple[int, int] | None = None
        self._content = parse("")

    def content(self) -> T:
        """What the file says now, or said at most 5 s ago."""
        now = self._clock()
        if self._looked is not None and 0 <= now - self._looked < _LOOK:
            return self._content
        self._looked = now
        try:
            facts = os.stat(self._path)
            version = (facts.st_mtime_ns, facts.st_size)
            if version != self._version:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._content = self._parse(file.read(_LONGEST_FILE))
                self._version = version
        except OSError:
            self._content, self._version = self._parse(""), None
        return self._content


@value
class Hosts:
    """/etc/hosts both ways."""

    addresses: dict[str, Sequence[str]]
    names: dict[str, Sequence[str]]


def read_hosts(text: str) -> Hosts:
    """Of each line an address and its names; other lines are passed over."""
    addresses: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for line in text.split("\n"):
        words = line.partition("#")[0].lower().split()
        try:
            address = str(ipaddress.ip_address(words[0]))
        except (IndexError, ValueError):
            continue
        for name in words[1:]:
            addresses.setdefault(name.removesuffix("."), []).append(address)
            names.setdefault(address, []).append(name.removesuffix("."))
    return Hosts({k: tuple(v) for k, v in addresses.items()}, {k: tuple(v) for k, v in names.items()})


def read_resolv_conf(text: str) -> Sequence[Server]:
    """The name servers, port 53."""
    lines = [line.split() for line in text.split("\n")]
    found = [(words[1], 53) for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return tuple(found[:3]) or (("127.0.0.1", 53),)  # resolv.conf(5): three, and this machine if there is none
